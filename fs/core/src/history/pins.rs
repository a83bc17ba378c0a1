//! Pins: what a device has seen of a drive, kept where the server cannot reach it.
//!
//! Invariant: they only go forward, and only to a verified head. They include the head's *spine*: the commits whose
//! numbers are the head's with its lowest bits cleared one after the other, which is what the next commit's skip
//! hash is taken from.
//! Called by the engine, which keeps them in a file of two alternating sealed copies (FORMAT.md, "Local records").

use super::{HistoryError, Verified};
use crate::commit_body::{BadBody, CommitBody};
use sealdrive_proto::commit::{SignedCommit, skip_seq};
use sealdrive_proto::fields::{Fields, Misshapen};
use sealdrive_proto::id::{CommitHash, LinkHash};

const VERSION: u8 = 1;
/// Longest spine: one entry per set bit of a u64.
const MAX_SPINE: usize = 64;

/// What a device has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    seq: u64,
    hash: CommitHash,
    spine: Vec<(u64, CommitHash)>,
    body: Option<CommitBody>,
    /// Last number this device signed with, accepted or not.
    pub device_seq: u64,
    /// Newest account link seen: its number and hash.
    pub membership: (u64, LinkHash),
    /// Newest login slot seen.
    pub slot_generation: u64,
}

/// Bytes are not pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPins {
    /// Not what this program writes.
    #[error("pins are malformed")]
    Malformed,
    /// The pinned commit is of a format this program does not read.
    #[error(transparent)]
    Format(BadBody),
}

impl From<Misshapen> for BadPins {
    fn from(_: Misshapen) -> Self {
        Self::Malformed
    }
}

impl From<BadBody> for BadPins {
    fn from(body: BadBody) -> Self {
        match body {
            BadBody::Malformed => Self::Malformed,
            other => Self::Format(other),
        }
    }
}

impl Pins {
    /// A device that has seen nothing.
    pub fn none() -> Self {
        Self {
            seq: 0,
            hash: CommitHash::NONE,
            spine: Vec::new(),
            body: None,
            device_seq: 0,
            membership: (0, LinkHash([0; 32])),
            slot_generation: 0,
        }
    }

    /// Number of the newest commit seen; 0 for none.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Its hash.
    pub fn hash(&self) -> CommitHash {
        self.hash
    }

    /// Its body, if this device has opened one.
    pub fn body(&self) -> Option<&CommitBody> {
        self.body.as_ref()
    }

    /// What the next commit must name: `seq`, `prev` and `skip` of its fields.
    pub fn successor(&self) -> (u64, CommitHash, CommitHash) {
        let seq = self.seq + 1;
        let skip = self
            .spine_hash(skip_seq(seq))
            .expect("the spine holds every skip of the next commit");
        (seq, self.hash, skip)
    }

    pub(super) fn spine(&self) -> &[(u64, CommitHash)] {
        &self.spine
    }

    pub(super) fn spine_hash(&self, seq: u64) -> Option<CommitHash> {
        if seq == 0 {
            return Some(CommitHash::NONE);
        }
        self.spine
            .iter()
            .find(|(at, _)| *at == seq)
            .map(|(_, hash)| *hash)
    }

    /// Moves to the commit this device made itself and the server has accepted.
    pub fn advance(&mut self, own: &SignedCommit, body: CommitBody) -> Result<(), HistoryError> {
        let fields = own.fields();
        if (fields.seq, fields.prev, fields.skip) != self.successor() {
            return Err(HistoryError::Fork);
        }
        let mut spine = vec![(fields.seq, own.hash())];
        spine.extend(
            self.spine
                .iter()
                .filter(|(seq, _)| *seq <= skip_seq(fields.seq)),
        );
        (self.seq, self.hash, self.spine, self.body) = (fields.seq, own.hash(), spine, Some(body));
        self.device_seq = self.device_seq.max(fields.device_seq);
        Ok(())
    }

    /// Moves to a verified head whose body has been opened. `membership_seq` is the position of `body.membership` in
    /// the account's verified chain.
    pub fn accept(
        &mut self,
        head: Verified,
        body: CommitBody,
        membership_seq: u64,
    ) -> Result<(), HistoryError> {
        self.check_body(&body, membership_seq)?;
        self.membership = (membership_seq, body.membership);
        (self.seq, self.hash) = (head.commit.fields().seq, head.commit.hash());
        (self.spine, self.body) = (head.spine, Some(body));
        Ok(())
    }

    /// Along a chain neither the membership head nor any device's last commit goes back.
    fn check_body(&self, body: &CommitBody, membership_seq: u64) -> Result<(), HistoryError> {
        let (pinned_seq, pinned) = self.membership;
        let same = membership_seq == pinned_seq && pinned_seq != 0;
        if membership_seq < pinned_seq || (same && body.membership != pinned) {
            return Err(HistoryError::Forgetful);
        }
        let before = self.body.iter().flat_map(|body| &body.heads);
        for old in before {
            match body.head_of(&old.device) {
                Some(new) if new.seq > old.seq || (new.seq == old.seq && new.hash == old.hash) => {}
                _ => return Err(HistoryError::Forgetful),
            }
        }
        Ok(())
    }

    /// `1 ‖ seq u64 ‖ hash32 ‖ device_seq u64 ‖ membership seq u64 ‖ hash32 ‖ slot_generation u64 ‖ count u8 ‖
    /// count × (seq u64 ‖ hash32) ‖ body length u32 ‖ body`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(self.hash.as_bytes());
        out.extend_from_slice(&self.device_seq.to_le_bytes());
        out.extend_from_slice(&self.membership.0.to_le_bytes());
        out.extend_from_slice(self.membership.1.as_bytes());
        out.extend_from_slice(&self.slot_generation.to_le_bytes());
        out.push(self.spine.len() as u8);
        for (seq, hash) in &self.spine {
            out.extend_from_slice(&seq.to_le_bytes());
            out.extend_from_slice(hash.as_bytes());
        }
        let body = self
            .body
            .as_ref()
            .map(CommitBody::encode)
            .unwrap_or_default();
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// Reads exactly what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadPins> {
        let mut fields = Fields::new(bytes);
        if fields.u8()? != VERSION {
            return Err(BadPins::Malformed);
        }
        let mut pins = Self::none();
        pins.seq = fields.u64()?;
        pins.hash = CommitHash(fields.array()?);
        pins.device_seq = fields.u64()?;
        pins.membership = (fields.u64()?, LinkHash(fields.array()?));
        pins.slot_generation = fields.u64()?;
        let count = usize::from(fields.u8()?);
        if count > MAX_SPINE {
            return Err(BadPins::Malformed);
        }
        let mut expected = pins.seq;
        for _ in 0..count {
            let (seq, hash) = (fields.u64()?, CommitHash(fields.array()?));
            if seq != expected || seq == 0 {
                return Err(BadPins::Malformed);
            }
            pins.spine.push((seq, hash));
            expected = skip_seq(expected);
        }
        let newest = pins
            .spine
            .first()
            .map_or(CommitHash::NONE, |(_, hash)| *hash);
        if expected != 0 || newest != pins.hash {
            return Err(BadPins::Malformed);
        }
        let body_len = fields.u32()? as usize;
        let body = fields.bytes(body_len)?;
        fields.finish()?;
        if !body.is_empty() {
            pins.body = Some(CommitBody::decode(body)?);
        }
        Ok(pins)
    }
}
