//! Sealing: plaintext to object and back. Frame, inner lock, outer lock, in that order; opened in reverse.
//!
//! Invariant: an object opens only as the kind, domain, epoch and name it was sealed for, whole and unchanged; a
//! failure wipes the buffers and gives nothing. Sealing uses no randomness: the same chunk gives the same bytes.
//! Called by the writeback and fetch workers, one [`Sealer`] per thread. Layout: FORMAT.md, "Object".

mod compress;
pub(crate) mod frame;
pub(crate) mod inner;
mod lanes;
pub(crate) mod outer;

pub use compress::{Compress, DEFAULT_LEVEL};

use crate::keys::{DomainKeys, EpochKeys};
use crate::reference::Reference;
use crate::secret::{hash, keyed};
use bytes::Bytes;
use compress::Coder;
use frame::Codec;
use inner::InnerData;
use outer::OuterKey;
use sealdrive_proto::header::{
    BEFORE_NONCE, COMMIT_LEN, HEADER_LEN, NONCE_LEN, ObjectHeader, SUITE, TAG_LEN, inner_len,
    stored_len,
};
use sealdrive_proto::id::{CommitHash, DomainId, DriveId, Epoch, Kind, LinkHash, Sid};
use sealdrive_proto::limits::{MAX_CHUNK, MAX_OBJECT};
use std::sync::Arc;
use zeroize::Zeroize;

const INNER_LABEL: &str = "sealdrive/v1/object/inner";
/// Chunks that are worth sealing together.
pub const SEAL_TOGETHER: usize = lanes::LANES;
/// Where the inner ciphertext begins in an object.
const INNER_AT: usize = HEADER_LEN + COMMIT_LEN;

/// A sealed object and the id it is stored under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedObject {
    /// The id.
    pub sid: Sid,
    /// Header, commitment and ciphertext.
    pub bytes: Bytes,
}

/// Why an object does not open. For the local event log: to a reader all of these are EIO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Malformed, or not the object that was asked for.
    #[error("object header is not the expected one")]
    Header,
    /// The object or the reference is of an epoch this device has no keys for.
    #[error("no keys for the epoch of this object")]
    Epoch,
    /// The key commitment does not match.
    #[error("object is committed to another key")]
    Commitment,
    /// The outer lock refused.
    #[error("outer seal is broken")]
    Outer,
    /// The inner lock refused.
    #[error("inner seal is broken")]
    Inner,
    /// Both locks opened, but the frame is not canonical.
    #[error("frame is malformed")]
    Frame,
    /// The payload does not decompress to the promised length.
    #[error("payload does not decompress")]
    Payload,
    /// The plaintext is not the one the reference names.
    #[error("content is not what its reference names")]
    Content,
}

/// Name of a commit body, which has no cid: `BLAKE3("sealdrive/v1/loc/commit" ‖ drive ‖ seq ‖ prev_hash)`.
pub fn commit_location(drive: &DriveId, seq: u64, prev: &CommitHash) -> [u8; 32] {
    hash(&[
        b"sealdrive/v1/loc/commit",
        drive.as_bytes(),
        &seq.to_le_bytes(),
        prev.as_bytes(),
    ])
}

/// Name of a label: `BLAKE3("sealdrive/v1/loc/label" ‖ chain ‖ type u8 ‖ target ‖ version u64)`.
pub fn label_location(chain: &LinkHash, kind: u8, target: &[u8; 32], version: u64) -> [u8; 32] {
    hash(&[
        b"sealdrive/v1/loc/label",
        chain.as_bytes(),
        &[kind],
        target,
        &version.to_le_bytes(),
    ])
}

/// Seals and opens the objects of one domain. One per worker thread: it reuses its buffers.
pub struct Sealer {
    keys: Arc<DomainKeys>,
    coder: Coder,
    scratch: Vec<u8>,
}

impl Sealer {
    /// Buffers are reserved whole (2.3 MiB of address space), because one that grew would leave unwiped copies
    /// behind.
    pub fn new(keys: Arc<DomainKeys>) -> Self {
        Self {
            keys,
            coder: Coder::new(),
            scratch: Vec::with_capacity(MAX_OBJECT),
        }
    }

    /// The keys it uses.
    pub fn keys(&self) -> &Arc<DomainKeys> {
        &self.keys
    }

    /// Seals the plaintext that `r` names, under the newest epoch (which may be later than `r`'s).
    pub fn seal(
        &mut self,
        kind: Kind,
        r: &Reference,
        plaintext: &[u8],
        compress: Compress,
    ) -> SealedObject {
        self.check(kind, r, plaintext);
        self.seal_named(kind, r.variant, r.cid.as_bytes(), plaintext, compress)
    }

    /// Seals several, in about half the time: the same bytes as [`Self::seal`] makes of each. More than
    /// [`SEAL_TOGETHER`] are no faster.
    pub fn seal_together(
        &mut self,
        kind: Kind,
        plaintexts: &[(Reference, &[u8])],
        compress: Compress,
    ) -> Vec<SealedObject> {
        for (r, plaintext) in plaintexts {
            self.check(kind, r, plaintext);
        }
        let drafts = plaintexts
            .iter()
            .map(|(_, plaintext)| self.draft(plaintext, compress));
        let mut drafts: Vec<Draft> = drafts.collect();
        let epoch = self.keys.current();
        let what = what(kind, self.keys.domain(), epoch.epoch);
        let fields = plaintexts
            .iter()
            .map(|(r, _)| [&what[..], r.cid.as_bytes()]);
        let fields: Vec<[&[u8]; 2]> = fields.collect();
        let rooms = drafts.iter_mut().zip(&fields);
        let rooms = rooms.map(|(draft, fields)| (inner_data(fields), draft.sealed()));
        inner::lock_together(&epoch.kind(kind).siv, rooms);
        let sealed = drafts.into_iter().zip(plaintexts);
        let sealed =
            sealed.map(|(draft, (r, _))| self.finish(kind, r.variant, r.cid.as_bytes(), draft));
        sealed.collect()
    }

    fn check(&self, kind: Kind, r: &Reference, plaintext: &[u8]) {
        assert_eq!(
            plaintext.len(),
            r.plain_len as usize,
            "the reference names this plaintext"
        );
        debug_assert_eq!(
            self.keys.cid(kind, plaintext),
            r.cid,
            "the reference names this plaintext"
        );
        assert!(
            r.epoch <= self.keys.epoch(),
            "no reference comes from the future"
        );
    }

    /// Opens the object that `r` names. The object may be of a later epoch than `r`.
    pub fn open(&mut self, kind: Kind, r: &Reference, object: &[u8]) -> Result<Bytes, OpenError> {
        let plaintext = self.open_named(kind, r.variant, r.cid.as_bytes(), r.epoch, object)?;
        if plaintext.len() != r.plain_len as usize || self.keys.cid(kind, &plaintext) != r.cid {
            return Err(wiped(plaintext, OpenError::Content));
        }
        Ok(plaintext.into())
    }

    /// Seals what is named by its place instead of its content (commit bodies, labels); see [`commit_location`].
    /// Opening it proves key and place, not freshness: a signature over the object's hash must stand beside it.
    pub fn seal_located(&mut self, kind: Kind, location: &[u8; 32], plaintext: &[u8]) -> Bytes {
        self.seal_named(kind, 0, location, plaintext, Compress::DEFAULT)
            .bytes
    }

    /// Opens what [`Self::seal_located`] sealed at the same place.
    pub fn open_located(
        &mut self,
        kind: Kind,
        location: &[u8; 32],
        object: &[u8],
    ) -> Result<Bytes, OpenError> {
        self.open_named(kind, 0, location, Epoch(0), object)
            .map(Bytes::from)
    }

    fn seal_named(
        &mut self,
        kind: Kind,
        variant: u8,
        name: &[u8; 32],
        plain: &[u8],
        compress: Compress,
    ) -> SealedObject {
        let mut draft = self.draft(plain, compress);
        let epoch = self.keys.current();
        let what = what(kind, self.keys.domain(), epoch.epoch);
        let fields: [&[u8]; 2] = [&what, name];
        inner::lock(&epoch.kind(kind).siv, inner_data(&fields), draft.sealed());
        self.finish(kind, variant, name, draft)
    }

    /// The object is built in place: the frame at its final position, then locked twice around itself.
    fn draft(&mut self, plain: &[u8], compress: Compress) -> Draft {
        assert!(
            (1..=MAX_CHUNK).contains(&plain.len()),
            "a chunk has 1 to MAX_CHUNK bytes"
        );
        let packed = self.coder.compress(plain, compress);
        let (codec, payload) = packed.map_or((Codec::Raw, plain), |payload| (Codec::Zstd, payload));
        let len = stored_len(payload.len());
        let mut object = Vec::with_capacity(len);
        object.resize(INNER_AT + TAG_LEN, 0);
        frame::append(codec, plain.len(), payload, &mut object);
        object.resize(len, 0);
        Draft {
            object,
            sealed_len: inner_len(payload.len()),
        }
    }

    /// Header, commitment and the outer lock around what the inner one has sealed.
    fn finish(&self, kind: Kind, variant: u8, name: &[u8; 32], draft: Draft) -> SealedObject {
        let epoch = self.keys.current();
        let keys = epoch.kind(kind);
        let Draft {
            mut object,
            sealed_len,
        } = draft;
        let (head, rest) = object.split_at_mut(INNER_AT);
        let (sealed, tag) = rest.split_at_mut(sealed_len);
        let mut header = ObjectHeader {
            domain: self.keys.domain(),
            epoch: epoch.epoch,
            inner_len: sealed_len as u32,
            sid: epoch.sid(kind, variant, name),
            nonce: [0; NONCE_LEN],
        };
        header.nonce = nonce(epoch, kind, &header.encode()[..BEFORE_NONCE], sealed);
        let clear = header.encode();
        let key = OuterKey::derive(&keys.out, &clear);
        tag.copy_from_slice(&key.lock(
            &header.nonce,
            &outer_data(&clear, key.commitment(), kind),
            sealed,
        ));
        head[..HEADER_LEN].copy_from_slice(&clear);
        head[HEADER_LEN..].copy_from_slice(key.commitment());
        SealedObject {
            sid: header.sid,
            bytes: object.into(),
        }
    }

    /// The order is the specification's: header, commitment, outer, inner, frame, payload (and content, by the
    /// caller).
    fn open_named(
        &mut self,
        kind: Kind,
        variant: u8,
        name: &[u8; 32],
        not_before: Epoch,
        object: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        let header = ObjectHeader::parse(object).map_err(|_| OpenError::Header)?;
        if header.domain != self.keys.domain() || header.epoch < not_before {
            return Err(OpenError::Header);
        }
        if object.len() > MAX_OBJECT {
            return Err(OpenError::Header);
        }
        let epoch = self.keys.of_epoch(header.epoch).ok_or(OpenError::Epoch)?;
        if header.sid != epoch.sid(kind, variant, name) {
            return Err(OpenError::Header);
        }
        let keys = epoch.kind(kind);
        let what = what(kind, header.domain, header.epoch);
        let fields: [&[u8]; 2] = [&what, name];
        let (clear, rest) = object
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(OpenError::Header)?;
        let (commit, rest) = rest
            .split_first_chunk::<COMMIT_LEN>()
            .ok_or(OpenError::Header)?;
        let (body, tag) = rest
            .split_last_chunk::<TAG_LEN>()
            .ok_or(OpenError::Header)?;

        let key = OuterKey::derive(&keys.out, clear);
        if !key.is_committed_by(commit) {
            return Err(OpenError::Commitment);
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(body);
        let sealed = &mut self.scratch[..];
        key.unlock(&header.nonce, &outer_data(clear, commit, kind), sealed, tag)
            .map_err(|_| OpenError::Outer)?;
        let frame =
            inner::unlock(&keys.siv, inner_data(&fields), sealed).map_err(|_| OpenError::Inner)?;
        let plaintext = read_frame(&mut self.coder, frame);
        if plaintext.is_err() {
            self.scratch.zeroize();
        }
        plaintext
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.scratch.zeroize();
    }
}

fn read_frame(coder: &mut Coder, frame: &[u8]) -> Result<Vec<u8>, OpenError> {
    let frame = frame::parse(frame).map_err(|_| OpenError::Frame)?;
    match frame.codec {
        Codec::Raw => Ok(frame.payload.to_vec()),
        Codec::Zstd => coder
            .decompress(frame.payload, frame.plain_len)
            .ok_or(OpenError::Payload),
    }
}

fn wiped(mut plaintext: Vec<u8>, error: OpenError) -> OpenError {
    plaintext.zeroize();
    error
}

/// An object before it is locked: the frame at its place, and zeros.
struct Draft {
    object: Vec<u8>,
    sealed_len: usize,
}

impl Draft {
    /// What the inner lock works on.
    fn sealed(&mut self) -> &mut [u8] {
        &mut self.object[INNER_AT..INNER_AT + self.sealed_len]
    }
}

/// AD1 label, then the fields: AD2 [`what`], AD3 cid or location.
fn inner_data<'a>(fields: &'a [&'a [u8]; 2]) -> InnerData<'a> {
    InnerData {
        label: INNER_LABEL,
        fields,
    }
}

/// `suite ‖ kind ‖ domain ‖ epoch`: what an object is, for the inner lock.
fn what(kind: Kind, domain: DomainId, epoch: Epoch) -> [u8; 38] {
    let mut what = [0; 38];
    what[0] = SUITE;
    what[1] = kind as u8;
    what[2..34].copy_from_slice(domain.as_bytes());
    what[34..].copy_from_slice(&epoch.0.to_le_bytes());
    what
}

/// `H ‖ commit ‖ kind`: the kind is authenticated but not stored, so the server cannot tell data from tree.
fn outer_data(
    clear: &[u8; HEADER_LEN],
    commit: &[u8; COMMIT_LEN],
    kind: Kind,
) -> [u8; HEADER_LEN + COMMIT_LEN + 1] {
    let mut out = [0; HEADER_LEN + COMMIT_LEN + 1];
    out[..HEADER_LEN].copy_from_slice(clear);
    out[HEADER_LEN..INNER_AT].copy_from_slice(commit);
    out[INNER_AT] = kind as u8;
    out
}

/// `BLAKE3-keyed(K_nonce, kind ‖ H[0..80] ‖ inner)[..24]`: no randomness to fail, and unequal contents get unequal
/// nonces.
fn nonce(epoch: &EpochKeys, kind: Kind, before: &[u8], sealed: &[u8]) -> [u8; NONCE_LEN] {
    *keyed::<NONCE_LEN>(epoch.nonce.expose(), &[&[kind as u8], before, sealed]).expose()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
