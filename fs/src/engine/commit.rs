//! The commit: the newest checkpoint becomes a restore point on the server, by compare-and-swap on the chain's head.
//!
//! Invariant (ordering law): every object the tree names is acknowledged, then the signed commit is durable here, then
//! it is sent, and the same bytes are sent again until they are answered; then the pins are durable, then the outbox
//! forgets. A tree that needs what the server refuses is not signed. A commit that the server refuses is told and tried
//! again later, and does not stand in the way of the next one. A head that is not ours stops commits and loses nothing.
//! One thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sealdrive_core::commit_body::{CommitBody, Head, MIN_FORMAT};
use sealdrive_core::history::HistoryError;
use sealdrive_core::seal::commit_location;
use sealdrive_proto::commit::{COMMIT_RECORD_LEN, CommitFields, SignedCommit, body_hash};
use sealdrive_proto::id::{DeviceId, DriveId, Kind};
use tokio::sync::watch;

use super::backoff::Backoff;
use super::chain::{Chain, ChainError, root_of};
use super::checkpoint::Candidate;
use super::events::EventKind;
use super::hole::TORN;
use super::lease::Lease;
use super::open::pins_bytes;
use super::progress::{Held, Milestones};
use super::refused;
use super::shared::Shared;
use super::whole::{Absent, Verdict};
use crate::clock;
use crate::journal::{Twin, TwinError};
use crate::limits::{CALL_DEADLINE, REFUSED_COMMITS, REFUSED_OFFER};
use crate::remote::{HeadAnswer, RemoteError};
use crate::store::StoreError;

/// A commit that was signed, and perhaps sent.
#[derive(Clone)]
pub(super) struct Pending {
    /// What was signed.
    pub(super) commit: SignedCommit,
    /// What its body says.
    pub(super) plain: CommitBody,
    /// The sealed body.
    pub(super) body: Bytes,
    /// The server has answered that it will not have it.
    pub(super) refused: bool,
}

impl Pending {
    /// `commit ‖ plain length u32 ‖ plain ‖ body`: the commit has a fixed length.
    pub(super) fn encode(&self) -> Vec<u8> {
        let plain = self.plain.encode();
        let mut out = self.commit.bytes().to_vec();
        out.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        out.extend_from_slice(&plain);
        out.extend_from_slice(&self.body);
        out
    }

    /// Reads what `encode` wrote.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (commit, rest) = bytes.split_at_checked(COMMIT_RECORD_LEN)?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (plain, body) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        Some(Self {
            commit: SignedCommit::parse(commit).ok()?,
            plain: CommitBody::decode(plain).ok()?,
            body: Bytes::copy_from_slice(body),
            refused: false,
        })
    }
}

/// What the thread owns.
pub(super) struct Committer {
    /// The engine's parts.
    pub(super) shared: Arc<Shared>,
    /// The drive.
    pub(super) drive: DriveId,
    /// This device.
    pub(super) device: DeviceId,
    /// Signs commits.
    pub(super) signing: Arc<SigningKey>,
    /// The chain as far as it was verified, and the way to verify more.
    pub(super) chain: Chain,
    /// Durable pins.
    pub(super) pins_record: Twin,
    /// Durable signed commit.
    pub(super) commit_record: Twin,
    /// Signed, sent perhaps, and not answered: by an earlier run, or under an earlier lease. The newest is last.
    pub(super) pending: Vec<Pending>,
    /// Who signed the pinned commit.
    pub(super) author: DeviceId,
    /// Lease state.
    pub(super) lease: watch::Receiver<Lease>,
}

/// A checkpoint whose objects the server has acknowledged, all of them: the only thing a commit is signed for. Made by
/// `wait_for_upload` alone.
struct Acknowledged(Candidate);

/// Why a commit did not come about now.
enum Setback {
    /// Try again after a pause.
    Later(RemoteError),
    /// The server refuses it: try again after a pause, or when there is something else to commit.
    Refused(String),
    /// The tree needs something that the server refuses: try again when there is another, or when it takes that.
    Needs(String),
    /// Another device has written a commit.
    Fenced(DeviceId),
    /// Never again in this run.
    Stop(EventKind, String),
    /// Local state failed.
    Local(String),
    /// Shutting down, or local state has failed meanwhile.
    Closing,
}

impl From<RemoteError> for Setback {
    fn from(e: RemoteError) -> Self {
        match e {
            RemoteError::Tampered(why) => Self::Stop(EventKind::Fork, why),
            other if other.is_temporary() || other == RemoteError::Fenced => Self::Later(other),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<StoreError> for Setback {
    fn from(e: StoreError) -> Self {
        match e.is_no_space() {
            // Only at the end of the mount: until then it is waited for.
            true => Self::Closing,
            false => Self::Local(e.to_string()),
        }
    }
}

impl From<TwinError> for Setback {
    fn from(e: TwinError) -> Self {
        match e.is_no_space() {
            true => Self::Closing,
            false => Self::Local(e.to_string()),
        }
    }
}

impl From<ChainError> for Setback {
    fn from(e: ChainError) -> Self {
        match e {
            ChainError::Remote(e) => e.into(),
            ChainError::History(HistoryError::Rollback) => {
                Self::Stop(EventKind::Rollback, e.to_string())
            }
            ChainError::History(_) => Self::Stop(EventKind::Fork, e.to_string()),
        }
    }
}

impl Committer {
    /// Commits candidates until the engine closes.
    pub(super) fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut joined = false;
        loop {
            let ready = |m: &Milestones| m.candidate.is_some() || m.quit;
            self.shared
                .progress
                .wait(clock::now() + Duration::from_secs(60), ready);
            // Before anything is asked: what it is judged by may change while it is judged.
            let now = self.shared.progress.now();
            if now.quit || now.stopped.is_some() || now.failed.is_some() {
                return;
            }
            let done = self.join(&mut joined).and_then(|()| match now.candidate {
                Some(candidate) => self.commit(candidate),
                None => Ok(()),
            });
            match done {
                Ok(()) => backoff.reset(),
                Err(Setback::Later(e)) => {
                    if matches!(e, RemoteError::Fenced | RemoteError::Stale) {
                        self.shared.renew_lease();
                    }
                    self.shared.note_remote_error(&e);
                    self.shared
                        .progress
                        .wait(clock::now() + backoff.next(), |m| m.quit);
                }
                Err(Setback::Refused(why)) => {
                    let why = format!("the server refuses the restore point: {why}");
                    self.hold(&now, why, now.asked, true);
                    let pause = clock::now() + backoff.next();
                    self.wait_for_change(&now, pause, |m| m.asked > now.asked);
                }
                Err(Setback::Needs(why)) => {
                    self.hold(&now, why, now.offered, false);
                    let pause = clock::now() + REFUSED_OFFER;
                    self.wait_for_change(&now, pause, |m| m.offered > now.offered);
                }
                Err(Setback::Fenced(by)) => {
                    self.shared.fence(by);
                    self.shared.renew_lease();
                }
                Err(Setback::Stop(kind, why)) => self.shared.stop_commits(kind, &why),
                Err(Setback::Local(why)) => self.shared.fail_local(&why),
                Err(Setback::Closing) => return,
            }
        }
    }

    /// No commit for now; said once.
    fn hold(&self, then: &Milestones, why: String, asked: u64, is_event: bool) {
        let before = self.shared.progress.now().commit_held;
        // The event first: whoever is refused finds the reason.
        if is_event && before.is_none_or(|held| held.why != why) {
            self.shared.events.push(EventKind::Refused, why.clone());
        }
        let seq = then.candidate.map_or(0, |candidate| candidate.seq);
        let held = Held { why, asked, seq };
        self.shared.progress.update(|m| m.commit_held = Some(held));
    }

    /// Until there is another candidate than `then`, or something else is refused, or `asked`, or the time is up.
    fn wait_for_change(
        &self,
        then: &Milestones,
        until: Instant,
        asked: impl Fn(&Milestones) -> bool,
    ) {
        let seq = |m: &Milestones| m.candidate.map(|candidate| candidate.seq);
        self.shared.progress.wait(until, |m| {
            let other = seq(m) != seq(then) || m.refusals != then.refusals;
            m.quit || other || asked(m)
        });
    }

    /// Once per mount, before the first commit: the server's head must be what we know, or ours.
    fn join(&mut self, joined: &mut bool) -> Result<(), Setback> {
        if *joined {
            return Ok(());
        }
        self.held()?;
        let head = self.chain.head()?;
        self.accept_head(head)?;
        *joined = true;
        Ok(())
    }

    /// The head is the pinned one, or a commit of ours that was on its way; anything else stops commits.
    fn accept_head(&mut self, head: Option<HeadAnswer>) -> Result<(), Setback> {
        let Some(head) = head else {
            return if self.chain.pins().seq() == 0 {
                Ok(())
            } else {
                Err(ChainError::from(HistoryError::Rollback).into())
            };
        };
        let verified = self.chain.check_head(&head)?;
        let commit = verified.commit();
        if commit.hash() == self.chain.pins().hash() {
            return Ok(());
        }
        let ours = self
            .pending
            .iter()
            .find(|pending| pending.commit.bytes() == commit.bytes());
        match ours.cloned() {
            Some(ours) => self.pin(&ours),
            None => Err(Setback::Fenced(commit.fields().device)),
        }
    }

    fn commit(&mut self, candidate: Candidate) -> Result<(), Setback> {
        if root_of(self.chain.pins()) == Some(candidate.root) {
            // Nothing that a restore point would show has changed, or it was accepted after all.
            return self.settle(candidate);
        }
        let acknowledged = self.wait_for_upload(candidate)?;
        self.shared.crash.reached("acknowledged");
        let (epoch, gc_generation) = self.held()?;
        if let Some(unanswered) = self.unanswered(epoch, candidate) {
            self.submit(&unanswered, epoch, gc_generation)?;
        }
        if root_of(self.chain.pins()) != Some(candidate.root) {
            let pending = self.sign(&acknowledged, epoch)?;
            self.shared.crash.reached("commit-durable");
            self.submit(&pending, epoch, gc_generation)?;
        }
        self.shared.crash.reached("pinned");
        self.settle(candidate)
    }

    /// The commit signed under this lease that was never answered: the same bytes go first. One that was refused goes
    /// again only while there is nothing else.
    fn unanswered(&self, lease_epoch: u64, candidate: Candidate) -> Option<Pending> {
        let next = self.chain.pins().seq() + 1;
        let last = self.pending.last()?;
        let fields = last.commit.fields();
        let goes = !last.refused || last.plain.root == candidate.root.0;
        (goes && fields.seq == next && fields.lease_epoch == lease_epoch).then(|| last.clone())
    }

    fn submit(&mut self, pending: &Pending, epoch: u64, gc_generation: u64) -> Result<(), Setback> {
        let answer = self
            .chain
            .submit(&pending.commit, &pending.body, gc_generation);
        if answer.as_ref().is_err_and(refused::is_verdict) {
            let is_it = |kept: &&mut Pending| kept.commit.bytes() == pending.commit.bytes();
            if let Some(kept) = self.pending.iter_mut().find(is_it) {
                kept.refused = true;
            }
        }
        let answer = answer?;
        if answer.accepted {
            self.shared.crash.reached("commit-accepted");
            return self.pin(pending);
        }
        if answer.lease_epoch != epoch {
            return Err(RemoteError::Fenced.into());
        }
        // The lease is ours, so the head must be: one whose answer was lost.
        let head = self.chain.head()?;
        self.accept_head(head)?;
        Err(RemoteError::Stale.into())
    }

    /// The candidate is in the chain: the outbox may forget what it covers.
    fn settle(&self, candidate: Candidate) -> Result<(), Setback> {
        let store = &self.shared.store;
        self.shared
            .patiently(StoreError::is_no_space, || store.retire(candidate.covered))?;
        self.shared.crash.reached("pack-retired");
        self.shared
            .patiently(StoreError::is_no_space, || store.save_index())?;
        self.shared.crash.reached("retired");
        let commit_seq = self.chain.pins().seq();
        self.shared.drive.set_committed(Some(candidate.root));
        self.shared.progress.update(|m| {
            m.committed = m.committed.max(candidate.seq);
            m.waiting = m.waiting.map(|_| candidate.frozen_at);
            m.commit_seq = commit_seq;
            m.remote_error = None;
            m.commit_held = None;
            if m.candidate.is_some_and(|c| c.seq <= candidate.seq) {
                m.candidate = None;
            }
        });
        Ok(())
    }

    /// Signs a commit and makes it durable.
    fn sign(&mut self, acknowledged: &Acknowledged, lease_epoch: u64) -> Result<Pending, Setback> {
        let (seq, prev, skip) = self.chain.pins().successor();
        let plain = self.body(acknowledged.0);
        let location = commit_location(&self.drive, seq, &prev);
        let encoded = plain.encode();
        let body = self
            .shared
            .blobs
            .with_sealer(|s| s.seal_located(Kind::Commit, &location, &encoded));
        let last = self
            .pending
            .iter()
            .map(|p| p.commit.fields().device_seq)
            .max()
            .unwrap_or(0);
        let fields = CommitFields {
            drive: self.drive,
            seq,
            prev,
            skip,
            device: self.device,
            device_seq: self.chain.pins().device_seq.max(last) + 1,
            lease_epoch,
            key_epoch: self.shared.blobs.keys().epoch(),
            body_hash: body_hash(&body),
        };
        let pending = Pending {
            commit: fields.sign(&self.signing),
            plain,
            body,
            refused: false,
        };
        let (bytes, record) = (pending.encode(), &mut self.commit_record);
        self.shared
            .patiently(TwinError::is_no_space, || record.write(&bytes))?;
        if self.pending.len() >= REFUSED_COMMITS {
            self.pending.remove(0);
        }
        self.pending.push(pending.clone());
        Ok(pending)
    }

    fn body(&self, candidate: Candidate) -> CommitBody {
        let pins = self.chain.pins();
        let mut heads = pins
            .body()
            .map(|body| body.heads.clone())
            .unwrap_or_default();
        if pins.seq() > 0 {
            // The pinned body names what its author had seen before; the commit itself is the newest of its author.
            heads.retain(|head| head.device != self.author);
            heads.push(Head {
                device: self.author,
                seq: pins.seq(),
                hash: pins.hash(),
            });
            heads.sort_by_key(|head| head.device);
        }
        let usage = self.shared.drive.usage().unwrap_or_default();
        let (time_s, time_ns) = clock::wall_ns();
        CommitBody {
            min_format: MIN_FORMAT,
            root: candidate.root.0,
            op_seq: candidate.seq,
            // The counter itself stands in the drive's records.
            next_ino: 0,
            membership: self.chain.membership(),
            time_s,
            time_ns,
            files: usage.files,
            bytes: usage.bytes,
            heads,
        }
    }

    /// The commit is in the chain: remembers it, durably.
    fn pin(&mut self, accepted: &Pending) -> Result<(), Setback> {
        let pins = self
            .chain
            .advance(&accepted.commit, accepted.plain.clone())?;
        let (bytes, record) = (pins_bytes(&self.device, pins), &mut self.pins_record);
        self.shared
            .patiently(TwinError::is_no_space, || record.write(&bytes))?;
        self.shared.crash.reached("pins-durable");
        self.author = self.device;
        self.pending.clear();
        self.shared.heard();
        self.shared
            .progress
            .update(|m| m.commit_ms = Some(clock::wall_ms()));
        Ok(())
    }

    /// Waits until the server has everything `candidate` names. A mount that ends or local state that fails ends the
    /// wait too, and is no acknowledgement.
    fn wait_for_upload(&self, candidate: Candidate) -> Result<Acknowledged, Setback> {
        let outbox = self.shared.store.outbox();
        // A pack that a crash left empty ends where no acknowledgement ever comes to; but where nothing waits, all is
        // there.
        let arrived = |m: &Milestones| {
            outbox.pending().1 == 0 || outbox.acknowledged() >= candidate.reach.max(m.must_reach)
        };
        let over = |m: &Milestones| m.quit || m.failed.is_some();
        loop {
            self.shared
                .progress
                .wait(clock::now() + CALL_DEADLINE, |m| over(m) || arrived(m));
            let now = self.shared.progress.now();
            if over(&now) {
                return Err(Setback::Closing);
            }
            if arrived(&now)
                && let Some(absent) = self.calm(&arrived)
            {
                return self.look(candidate, &absent);
            }
        }
    }

    /// What no commit may need, at a moment at which nobody is about to find out and everything has `arrived`.
    fn calm(&self, arrived: &impl Fn(&Milestones) -> bool) -> Option<Absent> {
        let _doubt = self.shared.refused.doubt();
        arrived(&self.shared.progress.now()).then(|| Absent::of(&self.shared))
    }

    /// Everything has arrived but what is `absent`: whether the tree can do without that.
    fn look(&self, candidate: Candidate, absent: &Absent) -> Result<Acknowledged, Setback> {
        let last = root_of(self.chain.pins());
        match absent.judge(&self.shared, last, candidate.root) {
            Verdict::Whole => Ok(Acknowledged(candidate)),
            Verdict::Torn => Err(Setback::Stop(EventKind::OutboxDamage, TORN.to_owned())),
            Verdict::Refused(sid) => Err(Setback::Needs(format!(
                "the server refuses object {}, and what was written last needs it",
                sid.to_hex()
            ))),
            Verdict::Unknown(why) => Err(RemoteError::Unreachable(why).into()),
        }
    }

    fn held(&mut self) -> Result<(u64, u64), Setback> {
        let held = self.lease.borrow_and_update().held();
        held.ok_or_else(|| RemoteError::Unreachable("the writer lease is not held".into()).into())
    }
}
