//! Drives: the writer lease with its epochs, and the head of the commit chain.
//!
//! Invariant: epochs and sequence numbers only rise; a commit is taken only under the epoch in force, after the head it
//! names, signed by an active device. Called through [`Book`].

use std::collections::{BTreeMap, HashMap};

use bytes::{BufMut as _, Bytes, BytesMut};
use sealdrive_proto::commit::{COMMIT_RECORD_LEN, SignedCommit, body_hash, skip_seq};
use sealdrive_proto::fields::Fields;
use sealdrive_proto::id::{AccountId, CommitHash, DeviceId, DriveId};
use sealdrive_proto::limits::{LEASE_LIFE_S, MAX_OBJECT};
use sealdrive_proto::transcript::Call;

use super::{Book, BookError, Drive, Record, RecordKind, State, numbered};

/// Deletion and collection come later; until then every session is of this generation.
pub const GC_GENERATION: u64 = 1;

/// The right to write a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Rises with every holder; 0: never held.
    pub epoch: u64,
    /// Who holds or held it; zeros when given back.
    pub holder: DeviceId,
    /// Server clock, milliseconds; in memory only: after a restart the holder has a full life to renew.
    pub expires_ms: u64,
}

/// Nobody.
const NOBODY: DeviceId = DeviceId([0; 16]);

/// Answer to a request for the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseDecision {
    /// Renewed under the same epoch; nothing to write.
    Renewed(Lease),
    /// A new epoch, in force once the record is durable and applied.
    Grant(Record, Lease),
    /// Somebody else holds it.
    Held(Lease),
}

/// The head of a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The commit.
    pub commit: SignedCommit,
    /// When the server received it, milliseconds on its clock.
    pub received_ms: u64,
}

impl Drive {
    pub(super) fn new(account: AccountId) -> Self {
        let lease = Lease {
            epoch: 0,
            holder: NOBODY,
            expires_ms: 0,
        };
        Self {
            account,
            lease,
            head: None,
            skips: BTreeMap::new(),
            device_seqs: HashMap::new(),
            received_ms: 0,
        }
    }
}

/// `epoch u64 ‖ holder16 ‖ device16 ‖ call_seq u64`: the call that made it counts even after a restart.
fn lease_record(drive: &DriveId, epoch: u64, holder: &DeviceId, by: (&DeviceId, u64)) -> Record {
    let mut payload = BytesMut::with_capacity(48);
    payload.put_u64_le(epoch);
    payload.put_slice(holder.as_bytes());
    payload.put_slice(by.0.as_bytes());
    payload.put_u64_le(by.1);
    Record {
        kind: RecordKind::Lease,
        owner: drive.0,
        id: [0; 32],
        payload: payload.freeze(),
    }
}

impl Book {
    /// Decides on a signed AcquireLease.
    pub fn propose_lease(
        &self,
        account: &AccountId,
        device: &DeviceId,
        call: &Call<'_>,
        proof: (u64, &[u8]),
        now_ms: u64,
    ) -> Result<LeaseDecision, BookError> {
        let Call::AcquireLease {
            drive,
            take_over,
            held_epoch,
        } = call
        else {
            return Err(BookError::Malformed("not a lease call"));
        };
        let mut state = self.lock();
        state.drive_of(account, drive)?;
        state.check_call(self.server_pk, account, device, call, proof.0, proof.1)?;
        state.count_call(account, *device, proof.0);
        let found = state.drive_mut(account, drive)?;
        let lease = found.lease;
        let expires_ms = now_ms + LEASE_LIFE_S * 1000;
        if lease.epoch != 0 && lease.holder == *device && (*held_epoch == lease.epoch || !take_over)
        {
            found.lease.expires_ms = expires_ms;
            return Ok(LeaseDecision::Renewed(found.lease));
        }
        let free = lease.holder == NOBODY || lease.expires_ms <= now_ms;
        if !free && !take_over {
            return Ok(LeaseDecision::Held(lease));
        }
        let granted = Lease {
            epoch: lease.epoch + 1,
            holder: *device,
            expires_ms,
        };
        let record = lease_record(drive, granted.epoch, device, (device, proof.0));
        Ok(LeaseDecision::Grant(record, granted))
    }

    /// Gives the lease back. `None` if the caller does not hold that epoch (any more): nothing to do.
    pub fn propose_release(
        &self,
        account: &AccountId,
        device: &DeviceId,
        call: &Call<'_>,
        proof: (u64, &[u8]),
    ) -> Result<Option<Record>, BookError> {
        let Call::ReleaseLease { drive, lease_epoch } = call else {
            return Err(BookError::Malformed("not a release call"));
        };
        let state = self.lock();
        let lease = state.drive_of(account, drive)?.lease;
        state.check_call(self.server_pk, account, device, call, proof.0, proof.1)?;
        let held = lease.holder == *device && lease.epoch == *lease_epoch;
        Ok(held.then(|| lease_record(drive, lease.epoch, &NOBODY, (device, proof.0))))
    }

    /// Whether uploads under this epoch are welcome.
    pub fn check_lease(
        &self,
        account: &AccountId,
        device: &DeviceId,
        drive: &DriveId,
        epoch: u64,
    ) -> Result<(), BookError> {
        let lease = self.lock().drive_of(account, drive)?.lease;
        if lease.holder == *device && lease.epoch == epoch {
            Ok(())
        } else {
            Err(BookError::Fenced)
        }
    }

    /// The lease in force.
    pub fn lease(&self, account: &AccountId, drive: &DriveId) -> Result<Lease, BookError> {
        Ok(self.lock().drive_of(account, drive)?.lease)
    }

    /// The newest commit; its body is in the pack.
    pub fn head(&self, account: &AccountId, drive: &DriveId) -> Result<Option<Head>, BookError> {
        let state = self.lock();
        let found = state.drive_of(account, drive)?;
        Ok(found.head.clone().map(|commit| Head {
            commit,
            received_ms: found.received_ms,
        }))
    }

    /// A commit that follows the head. `Ok(None)`: this very commit is the head already. `Stale`: it does not follow;
    /// the caller then looks whether it stands further back (`hash_at`) before it says so.
    pub fn propose_commit(
        &self,
        account: &AccountId,
        device: &DeviceId,
        commit: &SignedCommit,
        body: &[u8],
    ) -> Result<Option<Record>, BookError> {
        let fields = commit.fields();
        if body.len() > MAX_OBJECT || body_hash(body) != fields.body_hash {
            return Err(BookError::Malformed(
                "the body is not the one that was signed",
            ));
        }
        let state = self.lock();
        let found = state.drive_of(account, &fields.drive)?;
        if found.head.as_ref().is_some_and(|head| head == commit) {
            return Ok(None);
        }
        let chain = &state
            .accounts
            .get(account)
            .ok_or(BookError::NotFound)?
            .chain;
        let key = chain
            .active_device(&fields.device)
            .ok_or(BookError::NotFound)?
            .keys
            .sign;
        if fields.device != *device || commit.verify(&key).is_err() {
            return Err(BookError::Proof);
        }
        if found.lease.epoch != fields.lease_epoch || found.lease.holder != *device {
            return Err(BookError::Fenced);
        }
        let (seq, hash) = found
            .head
            .as_ref()
            .map_or((0, CommitHash([0; 32])), |h| (h.fields().seq, h.hash()));
        if seq.checked_add(1) != Some(fields.seq) || hash != fields.prev {
            return Err(BookError::Stale("the drive has another head"));
        }
        let back = skip_seq(fields.seq);
        let skip = if back == 0 {
            Some(CommitHash([0; 32]))
        } else {
            found.skips.get(&back).copied()
        };
        // After a start only the head is known; then the skip hash cannot be checked here. Clients check it always.
        if skip.is_some_and(|skip| skip != fields.skip) {
            return Err(BookError::Malformed("wrong skip hash"));
        }
        if found
            .device_seqs
            .get(device)
            .is_some_and(|last| fields.device_seq <= *last)
        {
            return Err(BookError::Proof);
        }
        let mut payload = BytesMut::with_capacity(COMMIT_RECORD_LEN + body.len());
        payload.put_slice(commit.bytes());
        payload.put_slice(body);
        let id = numbered(fields.seq);
        Ok(Some(Record {
            kind: RecordKind::Commit,
            owner: fields.drive.0,
            id,
            payload: payload.freeze(),
        }))
    }
}

/// Splits the payload of a commit record into the signed commit's bytes and the body.
pub fn split_commit(payload: &Bytes) -> Result<(Bytes, Bytes), BookError> {
    if payload.len() < COMMIT_RECORD_LEN {
        return Err(BookError::Damaged("commit record is cut off"));
    }
    Ok((
        payload.slice(..COMMIT_RECORD_LEN),
        payload.slice(COMMIT_RECORD_LEN..),
    ))
}

impl State {
    fn drive_of(&self, account: &AccountId, drive: &DriveId) -> Result<&Drive, BookError> {
        self.drives
            .get(drive)
            .filter(|found| found.account == *account)
            .ok_or(BookError::NotFound)
    }

    fn drive_mut(&mut self, account: &AccountId, drive: &DriveId) -> Result<&mut Drive, BookError> {
        self.drives
            .get_mut(drive)
            .filter(|found| found.account == *account)
            .ok_or(BookError::NotFound)
    }

    pub(super) fn apply_lease(&mut self, record: &Record) -> Result<(), BookError> {
        let mut fields = Fields::new(&record.payload);
        let epoch = fields.u64()?;
        let holder = DeviceId(fields.array()?);
        let device = DeviceId(fields.array()?);
        let call_seq = fields.u64()?;
        fields.finish()?;
        let drive = self
            .drives
            .get_mut(&DriveId(record.owner))
            .ok_or(BookError::NotFound)?;
        let account = drive.account;
        if epoch < drive.lease.epoch {
            return Err(BookError::Damaged("lease epoch goes back"));
        }
        // Lives are counted by the caller through `set_expiry`; a record alone starts a full one.
        drive.lease = Lease {
            epoch,
            holder,
            expires_ms: u64::MAX,
        };
        self.count_call(&account, device, call_seq);
        Ok(())
    }

    pub(super) fn apply_commit(
        &mut self,
        record: &Record,
        received_ms: u64,
    ) -> Result<(), BookError> {
        let (bytes, _body) = split_commit(&record.payload)?;
        let commit = SignedCommit::parse(&bytes)?;
        let fields = commit.fields().clone();
        let drive = self
            .drives
            .get_mut(&DriveId(record.owner))
            .ok_or(BookError::NotFound)?;
        if drive
            .head
            .as_ref()
            .is_some_and(|head| head.fields().seq >= fields.seq)
        {
            return Err(BookError::Damaged("commit numbers go back"));
        }
        // Kept: the numbers some later commit can skip to, which are the prefixes of this number's ones.
        drive
            .skips
            .retain(|seq, _| fields.seq & (u64::MAX << seq.trailing_zeros()) == *seq);
        drive.skips.insert(fields.seq, commit.hash());
        drive.device_seqs.insert(fields.device, fields.device_seq);
        drive.received_ms = received_ms;
        drive.head = Some(commit);
        Ok(())
    }
}

impl Book {
    /// Sets when the lease of a drive runs out: after a grant, and at start for every drive.
    pub fn set_expiry(&self, drive: &DriveId, expires_ms: u64) {
        if let Some(found) = self.lock().drives.get_mut(drive) {
            found.lease.expires_ms = expires_ms;
        }
    }

    /// At start: every holder gets one full life to renew in.
    pub fn restart_leases(&self, now_ms: u64) {
        for drive in self.lock().drives.values_mut() {
            drive.lease.expires_ms = now_ms + LEASE_LIFE_S * 1000;
        }
    }
}
