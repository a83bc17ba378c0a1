//! The journal thread: makes what the drive has done durable, for fsync and at least every two seconds.
//!
//! Invariant (ordering law): the log is taken first, then the outbox is synced, then the journal is appended and
//! synced; so an extent in the journal never names an object that a power cut can take. All fsyncs that wait when a
//! round begins share it. Called by `Engine::sync_local` and the checkpoint.

use std::sync::Arc;
use std::time::Instant;

use sealdrive_runtime::channel::{Receiver, RecvTimeoutError, SyncSender, sync_channel};

use super::shared::Shared;
use crate::clock;
use crate::drive::{DriveError, LogData};
use crate::journal::{Journal, JournalError};
use crate::limits::FLUSH_INTERVAL;
use crate::store::StoreError;

/// Why an fsync did not happen. Local state is read-only from then on.
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

/// The drive stopped writing to this machine's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("local state has failed: nothing is written any more")]
pub struct NotDurable;

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
            .map_err(|_| NotDurable)?;
        reply.recv().map_err(|_| NotDurable)?
    }
}

impl FlushThread {
    /// Serves until `Flusher::stop` or until all flushers are gone.
    pub(super) fn run(self, shared: &Arc<Shared>, mut journal: Journal) {
        let mut next = clock::now() + FLUSH_INTERVAL;
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
            let done = if shared.progress.now().failed.is_some() {
                Err(NotDurable)
            } else {
                flush(shared, &mut journal, round.data())
                    .and_then(|()| round.trim(&mut journal))
                    .map_err(|e| {
                        // A missing tree node may be there next time; a failed write or fsync never heals.
                        if !matches!(e, FlushError::Drive(_)) {
                            shared.fail_local(&e.to_string());
                        }
                        NotDurable
                    })
            };
            round.answer(done);
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
    trim: Option<u64>,
    stop: bool,
}

impl Round {
    fn add(&mut self, request: Request) {
        match request {
            Request::Sync(answer) => self.waiting.push(answer),
            Request::Trim(seq, answer) => {
                self.trim = self.trim.max(Some(seq));
                self.waiting.push(answer);
            }
            Request::Stop => self.stop = true,
        }
    }

    /// What must be in the log: all of it once somebody waits.
    fn data(&self) -> LogData {
        if self.waiting.is_empty() {
            LogData::Background
        } else {
            LogData::All
        }
    }

    fn trim(&self, journal: &mut Journal) -> Result<(), FlushError> {
        if let Some(seq) = self.trim {
            journal.trim(seq)?;
        }
        Ok(())
    }

    fn answer(&self, done: Result<(), NotDurable>) {
        for waiter in &self.waiting {
            let _ = waiter.send(done);
        }
    }
}

fn flush(shared: &Shared, journal: &mut Journal, data: LogData) -> Result<(), FlushError> {
    let seq = shared.drive.seq();
    let entries = shared.with_nodes(|drive| drive.take_log(data))?;
    shared.crash.reached("log-taken");
    shared.store.sync()?;
    shared.crash.reached("outbox-durable");
    if !entries.is_empty() {
        journal.append(&entries)?;
        shared.crash.reached("journal-written");
        journal.sync()?;
        shared.crash.reached("journal-durable");
    }
    shared.drive.log_durable();
    shared.progress.update(|m| {
        m.journaled = m.journaled.max(seq);
        m.journal_bytes = journal.bytes();
    });
    Ok(())
}
