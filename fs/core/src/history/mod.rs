//! A drive's history as a device verifies it: from what it has seen before (its pins) to a head the server shows.
//!
//! Invariant: a head is accepted only along hashes from itself down to the pinned commit, every commit on the way
//! signed by a device that could sign it then. So an older state, a fork, a foreign or an unsigned commit is
//! refused, however the server answers; what it may do is show nothing. No IO: the walk says which commit it wants
//! and is fed it.
//! Called by the engine (mount, before and after each commit).

mod pins;

pub use pins::{BadPins, Pins};

use sealdrive_proto::commit::{CommitError, SignedCommit, body_hash, skip_seq};
use sealdrive_proto::id::{CommitHash, DriveId};
use sealdrive_proto::link::AccountChain;

/// Why a head is not accepted. All of these stop writing; none of them is the server merely being away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Older than what this device has seen.
    #[error("the server shows an older state than this device has seen")]
    Rollback,
    /// Does not continue what this device, or the account's chain, has seen.
    #[error("the server's history does not continue what this device has seen")]
    Fork,
    /// Signed by a device the account does not know, or had revoked by then.
    #[error("a commit is signed by a device that may not write")]
    Signer,
    /// Of another drive, not the one asked for, or with another commit's body.
    #[error("a commit or its body is not the one asked for")]
    Foreign,
    /// The list of members or of devices' commits went back.
    #[error("a commit has forgotten members or commits that an earlier one knew")]
    Forgetful,
    /// Malformed, or its signature does not hold.
    #[error("commit: {0}")]
    Commit(#[from] CommitError),
}

/// A head that continues what is pinned. Made only by [`Walk::finish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    commit: SignedCommit,
    spine: Vec<(u64, CommitHash)>,
}

impl Verified {
    /// The head.
    pub fn commit(&self) -> &SignedCommit {
        &self.commit
    }
}

/// Who may have signed which commit of a drive, from the account's verified chain.
#[derive(Clone, Copy)]
struct Signers<'a> {
    chain: &'a AccountChain,
    drive: DriveId,
}

impl Signers<'_> {
    /// A revoked device's commits count up to the head that its revocation names. That head is an anchor for
    /// everyone: another commit of the same number is a fork.
    fn check(&self, commit: &SignedCommit) -> Result<(), HistoryError> {
        let fields = commit.fields();
        if fields.drive != self.drive {
            return Err(HistoryError::Foreign);
        }
        let device = self
            .chain
            .devices()
            .get(&fields.device)
            .ok_or(HistoryError::Signer)?;
        commit.verify(&device.keys.sign)?;
        let revocations = self
            .chain
            .devices()
            .values()
            .filter_map(|device| device.revoked.as_ref());
        let mut anchors = revocations
            .flat_map(|(_, heads)| heads)
            .filter(|head| head.drive == self.drive);
        if anchors.any(|head| head.seq == fields.seq && head.hash != commit.hash()) {
            return Err(HistoryError::Fork);
        }
        match &device.revoked {
            None => Ok(()),
            Some((_, heads))
                if heads
                    .iter()
                    .any(|h| h.drive == self.drive && fields.seq <= h.seq) =>
            {
                Ok(())
            }
            Some(_) => Err(HistoryError::Signer),
        }
    }
}

/// Going down from a head to the pinned commit: by skip hashes where they do not pass it, else by previous hashes.
/// Takes O(log² n) commits for n new ones, and collects the head's spine (see [`Pins`]) on the way.
pub struct Walk<'a> {
    signers: Signers<'a>,
    pins: &'a Pins,
    head: SignedCommit,
    spine: Vec<(u64, CommitHash)>,
    /// Still going from the head by skips alone.
    on_spine: bool,
    next: Option<(u64, CommitHash)>,
}

impl<'a> Walk<'a> {
    /// Starts from the head commit and sealed body that the server shows.
    pub fn begin(
        chain: &'a AccountChain,
        drive: DriveId,
        pins: &'a Pins,
        head: &[u8],
        body: &[u8],
    ) -> Result<Self, HistoryError> {
        let head = SignedCommit::parse(head)?;
        let signers = Signers { chain, drive };
        signers.check(&head)?;
        if head.fields().body_hash != body_hash(body) {
            return Err(HistoryError::Foreign);
        }
        if head.fields().seq < pins.seq() {
            return Err(HistoryError::Rollback);
        }
        let mut walk = Self {
            signers,
            pins,
            head: head.clone(),
            spine: Vec::new(),
            on_spine: true,
            next: None,
        };
        walk.step(&head)?;
        Ok(walk)
    }

    /// The number of the commit to feed next; `None` when the walk is done.
    pub fn wants(&self) -> Option<u64> {
        self.next.map(|(seq, _)| seq)
    }

    /// Takes the commit that was wanted.
    pub fn feed(&mut self, commit: &[u8]) -> Result<(), HistoryError> {
        let commit = SignedCommit::parse(commit)?;
        if self.next != Some((commit.fields().seq, commit.hash())) {
            return Err(HistoryError::Foreign);
        }
        self.signers.check(&commit)?;
        self.step(&commit)
    }

    /// The verified head, or `None` if the walk still wants a commit.
    pub fn finish(self) -> Option<Verified> {
        self.next.is_none().then_some(Verified {
            commit: self.head,
            spine: self.spine,
        })
    }

    /// Having arrived at `commit`, decides where to go.
    fn step(&mut self, commit: &SignedCommit) -> Result<(), HistoryError> {
        let fields = commit.fields();
        let pinned = self.pins.seq();
        if fields.seq == pinned {
            // Only the head itself: the walk never steps onto the pinned commit, it compares its hash from above.
            self.spine = self.pins.spine().to_vec();
            return if commit.hash() == self.pins.hash() {
                Ok(())
            } else {
                Err(HistoryError::Fork)
            };
        }
        let skip = skip_seq(fields.seq);
        if self.on_spine {
            self.spine.push((fields.seq, commit.hash()));
            if skip <= pinned {
                // What the spine goes on with is part of the pinned commit's spine, so it is known: no number between
                // `skip` and `fields.seq` has the low bits of `skip` clear.
                if self.pins.spine_hash(skip) != Some(fields.skip) {
                    return Err(HistoryError::Fork);
                }
                self.spine
                    .extend(self.pins.spine().iter().filter(|(seq, _)| *seq <= skip));
                self.on_spine = false;
            }
        }
        self.next = if skip > pinned {
            Some((skip, fields.skip))
        } else if skip == pinned {
            self.arrive(fields.skip)?
        } else if fields.seq - 1 == pinned {
            self.arrive(fields.prev)?
        } else {
            Some((fields.seq - 1, fields.prev))
        };
        Ok(())
    }

    fn arrive(&self, hash: CommitHash) -> Result<Option<(u64, CommitHash)>, HistoryError> {
        if hash == self.pins.hash() {
            Ok(None)
        } else {
            Err(HistoryError::Fork)
        }
    }
}

#[cfg(test)]
mod tests;
