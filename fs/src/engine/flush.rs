//! The journal thread: makes what the drive has done durable, for fsync and at least every two seconds.
//!
//! Invariant (ordering law): the log is taken first, then the outbox is synced, then the journal is appended and
//! synced; so an extent in the journal never names an object that a power cut can take. All fsyncs that wait when a
//! round begins share it. Called by `Engine::sync_local` and the checkpoint.

use std::sync::Arc;
use std::time::Instant;

use sealdrive_core::journal::Entry;
use sealdrive_runtime::channel::{Receiver, RecvTimeoutError, SyncSender, sync_channel};

use super::shared::Shared;
use crate::clock;
use crate::drive::{DriveError, LogData};
use crate::journal::{Journal, JournalError};
use crate::limits::FLUSH_INTERVAL;
use crate::store::StoreError;

/// Why an fsync did not happen. Unless it was for want of space, local state is read-only from then on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlushError {
    /// The outbox failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The drive is closed, or an operation in it broke off.
    #[error("the drive does not give out its log")]
    Drive(#[from] DriveError),
}

impl FlushError {
    fn is_no_space(&self) -> bool {
        match self {
            Self::Store(e) => e.is_no_space(),
            Self::Journal(e) => e.is_no_space(),
            Self::Drive(_) => false,
        }
    }
}

/// What was done is not durable on this machine's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDurable {
    /// The drive stopped writing to it.
    #[error("local state has failed: nothing is written any more")]
    Failed,
    /// It is full. Nothing is lost: all is in memory, and is written as soon as there is space.
    #[error("no space left for the local state; it is written as soon as there is some")]
    NoSpace,
}

enum Request {
    Sync(SyncSender<Result<(), NotDurable>>),
    Trim(u64, SyncSender<Result<(), NotDurable>>),
    Stop,
}

/// The way to the journal thread.
#[derive(Clone)]
pub(super) struct Flusher {
    requests: SyncSender<Request>,
}

/// The thread's end.
pub(super) struct FlushThread {
    requests: Receiver<Request>,
}

/// Waiting fsyncs and trims; more wait in line to enter.
const REQUESTS: usize = 256;

impl Flusher {
    /// Both ends.
    pub(super) fn pair() -> (Self, FlushThread) {
        let (requests, queue) = sync_channel(REQUESTS);
        (Self { requests }, FlushThread { requests: queue })
    }

    /// Returns when everything done before the call is durable on this machine.
    pub(super) fn sync(&self) -> Result<(), NotDurable> {
        self.ask(Request::Sync)
    }

    /// The checkpoint that holds operations up to `seq` is durable: forgets journal segments it makes superfluous.
    pub(super) fn trim(&self, seq: u64) -> Result<(), NotDurable> {
        self.ask(|answer| Request::Trim(seq, answer))
    }

    /// Ends the thread after the requests before it.
    pub(super) fn stop(&self) {
        // If the thread is gone already there is nobody to stop.
        let _ = self.requests.send(Request::Stop);
    }

    fn ask(
        &self,
        request: impl FnOnce(SyncSender<Result<(), NotDurable>>) -> Request,
    ) -> Result<(), NotDurable> {
        let (answer, reply) = sync_channel(1);
        self.requests
            .send(request(answer))
            .map_err(|_| NotDurable::Failed)?;
        reply.recv().map_err(|_| NotDurable::Failed)?
    }
}

impl FlushThread {
    /// Serves until `Flusher::stop` or until all flushers are gone.
    pub(super) fn run(self, shared: &Arc<Shared>, mut journal: Journal) {
        let mut next = clock::now() + FLUSH_INTERVAL;
        let mut taken = None;
        loop {
            let mut round = Round::default();
            match self
                .requests
                .recv_timeout(next.saturating_duration_since(clock::now()))
            {
                Ok(request) => round.add(request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(request) = self.requests.try_recv() {
                round.add(request);
            }
            let failed = |e: FlushError| {
                if e.is_no_space() {
                    return NotDurable::NoSpace;
                }
                // A missing tree node may be there next time; a failed write or fsync never heals.
                if !matches!(e, FlushError::Drive(_)) {
                    shared.fail_local(&e.to_string());
                }
                NotDurable::Failed
            };
            // Trimmed first: that makes room.
            let trimmed = match shared.progress.now().failed {
                Some(_) => Err(NotDurable::Failed),
                None => round.trim(&mut journal, &mut taken).map_err(failed),
            };
            let done = match shared.progress.now().failed {
                Some(_) => Err(NotDurable::Failed),
                None => flush(shared, &mut journal, &mut taken, round.data()).map_err(failed),
            };
            round.answer(trimmed, done);
            if round.stop {
                return;
            }
            next = next_round(next);
        }
    }
}

fn next_round(due: Instant) -> Instant {
    let now = clock::now();
    if now >= due {
        now + FLUSH_INTERVAL
    } else {
        due
    }
}

#[derive(Default)]
struct Round {
    waiting: Vec<SyncSender<Result<(), NotDurable>>>,
    trimming: Vec<SyncSender<Result<(), NotDurable>>>,
    trim: Option<u64>,
    stop: bool,
}

impl Round {
    fn add(&mut self, request: Request) {
        match request {
            Request::Sync(answer) => self.waiting.push(answer),
            Request::Trim(seq, answer) => {
                self.trim = self.trim.max(Some(seq));
                self.trimming.push(answer);
            }
            Request::Stop => self.stop = true,
        }
    }

    /// What must be in the log: all of it once somebody waits.
    fn data(&self) -> LogData {
        if self.waiting.is_empty() && self.trimming.is_empty() {
            LogData::Background
        } else {
            LogData::All
        }
    }

    fn trim(&self, journal: &mut Journal, taken: &mut Option<Taken>) -> Result<(), FlushError> {
        if let Some(seq) = self.trim {
            // What the checkpoint holds needs no journal, whether it came so far or not.
            taken.take_if(|taken| taken.newest() <= seq);
            journal.trim(seq)?;
        }
        Ok(())
    }

    fn answer(&self, trimmed: Result<(), NotDurable>, done: Result<(), NotDurable>) {
        for waiter in &self.trimming {
            let _ = waiter.send(trimmed);
        }
        for waiter in &self.waiting {
            let _ = waiter.send(done);
        }
    }
}

/// What the drive has given out and the journal does not have: the drive does not give it out again.
struct Taken {
    entries: Vec<Entry>,
    /// Operations that are durable with it.
    seq: u64,
}

impl Taken {
    fn newest(&self) -> u64 {
        self.entries.iter().map(Entry::seq).max().unwrap_or(0)
    }
}

/// One round. What an earlier one had no space for goes first: the journal is in order.
fn flush(
    shared: &Shared,
    journal: &mut Journal,
    taken: &mut Option<Taken>,
    data: LogData,
) -> Result<(), FlushError> {
    if let Some(earlier) = taken.as_ref() {
        write(shared, journal, earlier)?;
        *taken = None;
    }
    let seq = shared.drive.seq();
    let entries = shared.with_nodes(|drive| drive.take_log(data))?;
    shared.crash.reached("log-taken");
    let now = taken.insert(Taken { entries, seq });
    write(shared, journal, now)?;
    *taken = None;
    Ok(())
}

fn write(shared: &Shared, journal: &mut Journal, taken: &Taken) -> Result<(), FlushError> {
    shared.store.sync()?;
    shared.crash.reached("outbox-durable");
    if !taken.entries.is_empty() {
        journal.append(&taken.entries)?;
        shared.crash.reached("journal-written");
        journal.sync()?;
        shared.crash.reached("journal-durable");
    }
    shared.drive.log_durable();
    shared.progress.update(|m| {
        m.journaled = m.journaled.max(taken.seq);
        m.journal_bytes = journal.bytes();
    });
    Ok(())
}
