//! The drive's commit chain as this device has verified it, and the way to verify more of it.
//!
//! Invariant: pins only go forward, and only along hashes and signatures that were checked here; what the server says
//! of its head is believed no further. Called by open (a machine without memory) and by the commit thread.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use sealdrive_core::commit_body::CommitBody;
use sealdrive_core::tree::Root;
use sealdrive_proto::commit::{CommitError, SignedCommit, body_hash, skip_seq};
use sealdrive_proto::id::{CommitHash, DeviceId, DriveId};
use tokio::time::timeout;

use crate::limits::CALL_DEADLINE;
use crate::remote::{CommitAnswer, HeadAnswer, Remote, RemoteError};

/// Why a head is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The server was not reached, or refused.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The server's head is older than what this device has seen.
    #[error("the server shows an older state than this device has seen")]
    Rollback,
    /// The server's head does not continue what this device has seen.
    #[error("the server's history does not continue what this device has seen")]
    Fork,
    /// Signed by a device that the account's chain does not know.
    #[error("a commit is signed by an unknown device")]
    UnknownDevice,
    /// The commit itself does not hold.
    #[error("commit: {0}")]
    Commit(#[from] CommitError),
    /// Another drive's commit, or another commit's body.
    #[error("a commit or its body is not the one asked for")]
    Foreign,
}

/// What this device has seen of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pins {
    /// Newest commit seen; 0: none.
    pub(super) seq: u64,
    /// Its hash.
    pub(super) hash: CommitHash,
    /// Commits whose numbers are `seq` with its lowest bits cleared, newest first: what the next skip hash is taken
    /// from.
    pub(super) prefixes: Vec<(u64, CommitHash)>,
    /// Last number this device signed with.
    pub(super) device_seq: u64,
    /// Body of the newest commit, if this device made or opened it.
    pub(super) body: Option<CommitBody>,
}

impl Pins {
    const VERSION: u8 = 1;

    /// A device that has seen nothing.
    pub(super) fn none() -> Self {
        Self {
            seq: 0,
            hash: CommitHash::NONE,
            prefixes: Vec::new(),
            device_seq: 0,
            body: None,
        }
    }

    /// Hash of a commit that `seq + 1` may skip to.
    pub(super) fn skip_hash(&self, seq: u64) -> CommitHash {
        self.prefixes
            .iter()
            .find(|(n, _)| *n == seq)
            .map_or(CommitHash::NONE, |(_, hash)| *hash)
    }

    /// Moves on to a commit whose predecessor is pinned.
    fn advance(&mut self, commit: &SignedCommit) {
        let fields = commit.fields();
        assert_eq!(fields.seq, self.seq + 1, "one at a time, each checked");
        self.prefixes
            .retain(|(n, _)| *n <= skip_seq(fields.seq) && *n != 0);
        self.prefixes.insert(0, (fields.seq, commit.hash()));
        self.seq = fields.seq;
        self.hash = commit.hash();
    }

    /// Tree of the newest commit, if known.
    pub(super) fn root(&self) -> Option<Root> {
        self.body.as_ref().map(|body| Root(body.root))
    }

    /// `ver ‖ seq u64 ‖ hash32 ‖ device_seq u64 ‖ body length u32 ‖ body ‖ (seq u64 ‖ hash32)*`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![Self::VERSION];
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(self.hash.as_bytes());
        out.extend_from_slice(&self.device_seq.to_le_bytes());
        let body = self
            .body
            .as_ref()
            .map(CommitBody::encode)
            .unwrap_or_default();
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        for (seq, hash) in &self.prefixes {
            out.extend_from_slice(&seq.to_le_bytes());
            out.extend_from_slice(hash.as_bytes());
        }
        out
    }

    /// Strict.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (seq, rest) = rest.split_first_chunk::<8>()?;
        let (hash, rest) = rest.split_first_chunk::<32>()?;
        let (device_seq, rest) = rest.split_first_chunk::<8>()?;
        let (body_len, rest) = rest.split_first_chunk::<4>()?;
        let (body, rest) = rest.split_at_checked(u32::from_le_bytes(*body_len) as usize)?;
        if *version != Self::VERSION || rest.len() % 40 != 0 {
            return None;
        }
        let prefix = |p: &[u8]| {
            let (seq, hash) = p.split_first_chunk::<8>()?;
            Some((u64::from_le_bytes(*seq), CommitHash::try_from(hash).ok()?))
        };
        Some(Self {
            seq: u64::from_le_bytes(*seq),
            hash: CommitHash(*hash),
            prefixes: rest.chunks_exact(40).map(prefix).collect::<Option<_>>()?,
            device_seq: u64::from_le_bytes(*device_seq),
            body: if body.is_empty() {
                None
            } else {
                Some(CommitBody::decode(body).ok()?)
            },
        })
    }
}

/// Pins, and whom to ask for what lies beyond them.
pub(super) struct Chain {
    drive: DriveId,
    devices: HashMap<DeviceId, VerifyingKey>,
    remote: Arc<dyn Remote>,
    runtime: tokio::runtime::Handle,
    pins: Pins,
}

impl Chain {
    /// The chain as far as `pins`.
    pub(super) fn new(
        drive: DriveId,
        devices: HashMap<DeviceId, VerifyingKey>,
        remote: Arc<dyn Remote>,
        runtime: tokio::runtime::Handle,
        pins: Pins,
    ) -> Self {
        Self {
            drive,
            devices,
            remote,
            runtime,
            pins,
        }
    }

    /// What has been verified.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The server's head, unverified.
    pub(super) fn head(&self) -> Result<Option<HeadAnswer>, RemoteError> {
        self.call(self.remote.get_head())
    }

    /// The same, not waiting longer than this.
    pub(super) fn head_within(&self, at_most: Duration) -> Result<Option<HeadAnswer>, RemoteError> {
        let late = |_| RemoteError::Unreachable("no answer in time".into());
        let call = self.remote.get_head();
        self.runtime
            .block_on(async { timeout(at_most, call).await.map_err(late)? })
    }

    /// Submits a commit.
    pub(super) fn submit(
        &self,
        commit: &SignedCommit,
        body: &[u8],
        gc_generation: u64,
    ) -> Result<CommitAnswer, RemoteError> {
        let commit = bytes::Bytes::copy_from_slice(commit.bytes());
        self.call(
            self.remote
                .commit(commit, bytes::Bytes::copy_from_slice(body), gc_generation),
        )
    }

    /// Verifies a head: signature, body, and that it continues what is pinned. Does not move the pins.
    pub(super) fn check_head(&self, head: &HeadAnswer) -> Result<SignedCommit, ChainError> {
        let commit = self.verified(&head.commit)?;
        if commit.fields().body_hash != body_hash(&head.body) {
            return Err(ChainError::Foreign);
        }
        if commit.fields().seq < self.pins.seq {
            return Err(ChainError::Rollback);
        }
        self.path(&commit)?;
        Ok(commit)
    }

    /// Pins a commit that `check_head` returned, or that continues the pinned one.
    pub(super) fn advance(
        &mut self,
        commit: &SignedCommit,
        body: CommitBody,
        device_seq: u64,
    ) -> Result<&Pins, ChainError> {
        if commit.fields().seq == self.pins.seq + 1 && commit.fields().prev == self.pins.hash {
            self.pins.advance(commit);
        } else if commit.hash() != self.pins.hash {
            self.pins.prefixes = self.path_to_start(commit)?;
            self.pins.seq = commit.fields().seq;
            self.pins.hash = commit.hash();
        }
        self.pins.body = Some(body);
        self.pins.device_seq = self.pins.device_seq.max(device_seq);
        Ok(&self.pins)
    }

    fn verified(&self, bytes: &[u8]) -> Result<SignedCommit, ChainError> {
        let commit = SignedCommit::parse(bytes)?;
        if commit.fields().drive != self.drive {
            return Err(ChainError::Foreign);
        }
        let key = self
            .devices
            .get(&commit.fields().device)
            .ok_or(ChainError::UnknownDevice)?;
        commit.verify(key)?;
        Ok(commit)
    }

    /// Walks down from `commit` to the pinned one, by skips where they do not pass it.
    fn path(&self, commit: &SignedCommit) -> Result<(), ChainError> {
        let mut at = commit.clone();
        while at.fields().seq > self.pins.seq {
            let fields = at.fields();
            let skip = skip_seq(fields.seq);
            let (seq, hash) = if skip >= self.pins.seq {
                (skip, fields.skip)
            } else {
                (fields.seq - 1, fields.prev)
            };
            if seq == 0 {
                return Ok(());
            }
            at = self.fetch(seq, hash)?;
        }
        if at.hash() == self.pins.hash {
            Ok(())
        } else {
            Err(ChainError::Fork)
        }
    }

    /// The commits that `commit` reaches by skips alone, itself first.
    fn path_to_start(&self, commit: &SignedCommit) -> Result<Vec<(u64, CommitHash)>, ChainError> {
        let mut out = vec![(commit.fields().seq, commit.hash())];
        let mut at = commit.clone();
        loop {
            let seq = skip_seq(at.fields().seq);
            if seq == 0 {
                return Ok(out);
            }
            at = self.fetch(seq, at.fields().skip)?;
            out.push((seq, at.hash()));
        }
    }

    fn fetch(&self, seq: u64, hash: CommitHash) -> Result<SignedCommit, ChainError> {
        if seq == self.pins.seq && hash != self.pins.hash {
            return Err(ChainError::Fork);
        }
        let answer = self.call(self.remote.get_commits(vec![seq]))?;
        let bytes = answer.first().ok_or(ChainError::Foreign)?;
        let commit = self.verified(bytes)?;
        if commit.hash() != hash || commit.fields().seq != seq {
            return Err(ChainError::Foreign);
        }
        Ok(commit)
    }

    fn call<T>(
        &self,
        call: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let late = |_| RemoteError::Unreachable("no answer in time".into());
        self.runtime
            .block_on(async { timeout(CALL_DEADLINE, call).await.map_err(late)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use sealdrive_proto::commit::CommitFields;
    use sealdrive_proto::id::Epoch;

    #[test]
    fn prefixes_always_hold_the_next_skip_hash() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let mut pins = Pins::none();
        let mut hashes = vec![CommitHash::NONE];
        for seq in 1..200 {
            let skip = skip_seq(seq);
            assert_eq!(pins.skip_hash(skip), hashes[skip as usize], "skip of {seq}");
            let fields = CommitFields {
                drive: DriveId([1; 32]),
                seq,
                prev: pins.hash,
                skip: pins.skip_hash(skip),
                device: DeviceId([2; 16]),
                device_seq: seq,
                lease_epoch: 1,
                key_epoch: Epoch(0),
                body_hash: [0; 32],
            };
            let commit = fields.sign(&key);
            hashes.push(commit.hash());
            pins.advance(&commit);
            assert!(pins.prefixes.len() <= 64);
            assert_eq!(Pins::decode(&pins.encode()), Some(pins.clone()));
        }
    }
}
