//! How a request is run: on its loop thread while memory and the local disk can answer it, in a pool with a deadline
//! when it must wait, and never without an answer.
//!
//! Invariant: a reply is answered exactly once; a defect (panic) costs one request, which gets EIO and an event; a
//! loop thread waits for nothing but the local disk. Called by the door and by what it delegates to.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fuser::{Errno, Notifier};
use sealdrive_core::record::Time;
use sealdrive_core::reference::Reference;

use super::backing::{Backing, BackingError};
use super::burst::Burst;
use super::errno;
use super::offload::{Job, Pool};
use super::read::Run;
use super::reply::Refuse;
use crate::clock;
use crate::drive::{Answer, Drive, DriveError};

/// How long the kernel may remember names, absences and attributes. All changes come through the kernel itself or are
/// pushed as notices, so this only bounds how long a lost notice could matter.
pub(super) const LIFETIME: Duration = Duration::from_secs(600);
/// How long a request may wait for content from the network. A program waiting in a read cannot even be killed.
pub(super) const FETCH_LIMIT: Duration = Duration::from_secs(30);
/// How long a request may wait for the local disk (fsync), or for room (writes). Longer than a fetch, because failing
/// here means that a program's data was refused.
pub(super) const DISK_LIMIT: Duration = Duration::from_secs(120);
/// How long an fsync of a mount with `fsync=server` waits for the server: as long as a read does.
pub(super) const SERVER_LIMIT: Duration = FETCH_LIMIT;
/// Tree nodes one request may load from the local disk on its loop thread; a longer walk goes on in a pool.
const LOCAL_LOADS: usize = 32;
/// Requests waiting for a pool. The kernel has at most 64 in the background; the rest are threads of programs.
const QUEUE: usize = 1024;
/// Writes waiting for room: each holds up to 1 MiB.
const WRITE_QUEUE: usize = 128;

/// What a request may have to wait for before it can change anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing: it changes nothing.
    Never,
    /// The short stop before a checkpoint, or room for records.
    ForRecords,
    /// Room for data as well.
    ForData,
}

/// What all requests of a mount share.
pub(super) struct Calls<B> {
    pub(super) backing: Arc<B>,
    /// Waiting for the server.
    network: Pool,
    /// Waiting for the local disk.
    disk: Pool,
    /// Waiting for a commit.
    server: Pool,
    /// Waiting for room for records.
    records: Pool,
    /// Waiting for room for data.
    data: Pool,
    /// Who reads in a run, by handle.
    pub(super) runs: Mutex<HashMap<u64, Run>>,
    /// Told of every request.
    pub(super) burst: Burst,
    /// The way to the kernel; there once the session is.
    pub(super) kernel: OnceLock<Notifier>,
}

/// Why a request cannot be answered on its loop thread.
pub(super) enum Stop {
    /// It is answered: with this.
    Refused(Errno),
    /// Something is not in memory and would take long.
    Missing,
}

impl<B: Backing> Calls<B> {
    pub(super) fn new(backing: Arc<B>) -> io::Result<Arc<Self>> {
        // 48 threads in all; those that wait for a commit share it.
        Ok(Arc::new(Self {
            backing,
            burst: Burst::start()?,
            network: Pool::new("fuse-network", 16, QUEUE),
            disk: Pool::new("fuse-disk", 8, QUEUE),
            server: Pool::new("fuse-server", 16, QUEUE),
            records: Pool::new("fuse-records", 4, QUEUE),
            data: Pool::new("fuse-data", 4, WRITE_QUEUE),
            runs: Mutex::default(),
            kernel: OnceLock::new(),
        }))
    }

    /// Runs a request whose `attempt` is one operation of the drive. It may be tried several times: an attempt that
    /// says `Missing` has changed nothing.
    pub(super) fn call<T, R: Refuse>(
        self: &Arc<Self>,
        name: &'static str,
        waits: Waits,
        reply: R,
        mut attempt: impl FnMut(&Drive) -> Answer<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        if self.must_wait(waits) {
            return self.later(name, waits, move |calls| {
                calls.finish(name, waits, reply, attempt, answer);
            });
        }
        self.guarded(name, || match self.try_now(name, &mut attempt) {
            Ok(value) => answer(reply, value),
            Err(Stop::Refused(errno)) => reply.refuse(errno),
            Err(Stop::Missing) => self.on_network(name, move |calls| {
                calls.finish(name, waits, reply, attempt, answer);
            }),
        });
    }

    /// The part of [`Self::call`] that may wait. Pool threads only.
    pub(super) fn finish<T, R: Refuse>(
        &self,
        name: &'static str,
        waits: Waits,
        reply: R,
        attempt: impl FnMut(&Drive) -> Answer<T>,
        answer: impl FnOnce(R, T),
    ) {
        match self
            .wait_for_room(name, waits)
            .and_then(|()| self.bring(name, attempt))
        {
            Ok(value) => answer(reply, value),
            Err(errno) => reply.refuse(errno),
        }
    }

    /// Tries an operation with what this machine has.
    pub(super) fn try_now<T>(
        &self,
        name: &'static str,
        attempt: &mut impl FnMut(&Drive) -> Answer<T>,
    ) -> Result<T, Stop> {
        for _ in 0..LOCAL_LOADS {
            let reference = match attempt(self.backing.drive()) {
                Ok(value) => return Ok(value),
                Err(DriveError::Errno(errno)) => return Err(Stop::Refused(errno::of_drive(errno))),
                Err(DriveError::Missing(reference)) => reference,
            };
            match self.backing.node_local(&reference) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(Stop::Refused(self.failed(name, &error))),
            }
        }
        Err(Stop::Missing)
    }

    /// Runs an operation, bringing what is missing, within [`FETCH_LIMIT`]. Pool threads only.
    pub(super) fn bring<T>(
        &self,
        name: &'static str,
        mut attempt: impl FnMut(&Drive) -> Answer<T>,
    ) -> Result<T, Errno> {
        let deadline = clock::now() + FETCH_LIMIT;
        loop {
            let reference = match attempt(self.backing.drive()) {
                Ok(value) => return Ok(value),
                Err(DriveError::Errno(errno)) => return Err(errno::of_drive(errno)),
                Err(DriveError::Missing(reference)) => reference,
            };
            self.bring_node(&reference, deadline)
                .map_err(|error| self.failed(name, &error))?;
        }
    }

    fn bring_node(&self, reference: &Reference, deadline: Instant) -> Result<(), BackingError> {
        if clock::now() >= deadline {
            return Err(BackingError::TimedOut);
        }
        self.backing.node(reference, deadline)
    }

    /// The error number for a program, and an event for the user where the program is not the one to blame.
    pub(super) fn failed(&self, name: &'static str, error: &BackingError) -> Errno {
        if errno::is_event(error) {
            self.backing.event(name, &error.to_string());
        }
        errno::of_backing(error)
    }

    /// Whether a change would have to wait now.
    pub(super) fn must_wait(&self, waits: Waits) -> bool {
        match waits {
            Waits::Never => false,
            Waits::ForRecords => self.backing.drive().would_wait(false),
            Waits::ForData => self.backing.drive().would_wait(true),
        }
    }

    // After this the operation itself may still wait for a moment, when others took the room first.
    fn wait_for_room(&self, name: &'static str, waits: Waits) -> Result<(), Errno> {
        let data = match waits {
            Waits::Never => return Ok(()),
            Waits::ForRecords => false,
            Waits::ForData => true,
        };
        if self.backing.drive().wait_for_room(data, DISK_LIMIT) {
            return Ok(());
        }
        self.backing.event(name, "no room came free in time");
        Err(Errno::EIO)
    }

    /// Moves a change to where changes wait for room.
    pub(super) fn later(
        self: &Arc<Self>,
        name: &'static str,
        waits: Waits,
        work: impl FnOnce(&Self) + Send + 'static,
    ) {
        let pool = if waits == Waits::ForData {
            &self.data
        } else {
            &self.records
        };
        self.submit(name, pool, work);
    }

    /// Moves a request to where requests wait for the server.
    pub(super) fn on_network(
        self: &Arc<Self>,
        name: &'static str,
        work: impl FnOnce(&Self) + Send + 'static,
    ) {
        self.submit(name, &self.network, work);
    }

    /// Moves a request to where requests wait for the local disk.
    pub(super) fn on_disk(
        self: &Arc<Self>,
        name: &'static str,
        work: impl FnOnce(&Self) + Send + 'static,
    ) {
        self.submit(name, &self.disk, work);
    }

    /// Moves a request to where requests wait for a commit.
    pub(super) fn on_server(
        self: &Arc<Self>,
        name: &'static str,
        work: impl FnOnce(&Self) + Send + 'static,
    ) {
        self.submit(name, &self.server, work);
    }

    fn submit(
        self: &Arc<Self>,
        name: &'static str,
        pool: &Pool,
        work: impl FnOnce(&Self) + Send + 'static,
    ) {
        let calls = Arc::clone(self);
        let job: Job = Box::new(move || calls.guarded(name, || work(&calls)));
        if let Err(job) = pool.submit(job) {
            self.backing.event(name, "too many requests are waiting");
            // Its reply goes with it and answers EIO.
            drop(job);
        }
    }

    /// Runs `work`; a panic becomes an event, and the reply inside, dropped unanswered, becomes EIO.
    pub(super) fn guarded(&self, name: &'static str, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.backing.event(
                name,
                "a defect in the program; the request was answered with EIO",
            );
        }
    }

    pub(super) fn runs(&self) -> MutexGuard<'_, HashMap<u64, Run>> {
        // Inserts and removals of plain numbers: never half done.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time to stamp on what a request changes.
pub(super) fn now() -> Time {
    let (secs, nanos) = clock::wall_ns();
    Time { secs, nanos }
}
