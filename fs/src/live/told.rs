//! What a mounted drive tells of itself to `status`: how it stands, in words and in numbers.
//!
//! Invariant: changes nothing; names of files go to who asks and nowhere else. Called by the control socket.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sealdrive_core::record::Ino;

use super::Live;
use crate::cli::exit::Exit;
use crate::clock;
use crate::control::{DamagedFile, Progress, RefusedObject, Status};
use crate::engine::{Connection, count_conflicts};
use crate::limits::BELOW_LONGEST;

/// Whether the server answers, even if it is another device that may write.
fn is_online(status: &crate::engine::Status) -> bool {
    matches!(
        status.connection,
        Connection::Online | Connection::Elsewhere | Connection::Refused
    )
}

/// What the events amount to, worst last seen: tampering, then loss. Nothing, if all is well or healed.
fn verdict(status: &crate::engine::Status) -> Option<Exit> {
    use crate::engine::EventKind as Kind;
    let any = |kinds: &[Kind]| {
        status
            .events
            .iter()
            .any(|event| kinds.contains(&event.kind))
    };
    if any(&[
        Kind::Rollback,
        Kind::Fork,
        Kind::ObjectTampered,
        Kind::PinsMissing,
    ]) {
        Some(Exit::Tampered)
    } else if !status.casualties.is_empty() || any(&[Kind::JournalDamage, Kind::OutboxDamage]) {
        Some(Exit::Lost)
    } else {
        None
    }
}

pub(super) fn progress(status: &crate::engine::Status) -> Progress {
    Progress {
        pending_bytes: status.pending_bytes + status.dirty_bytes,
        pending_objects: status.pending_objects,
        sent_bytes: status.sent_bytes,
        online: is_online(status),
    }
}

impl Live {
    /// Files of which something is lost, by the names they have now.
    fn damaged_files(&self, now: &crate::engine::Status) -> Vec<DamagedFile> {
        let deadline = clock::now() + BELOW_LONGEST;
        let file = |lost: &crate::engine::Casualty| {
            let unnamed = || PathBuf::from(format!("inode {}", lost.ino));
            DamagedFile {
                path: self.name_of(lost.ino, deadline).unwrap_or_else(unnamed),
                ino: lost.ino,
                offset: lost.offset,
                at_ms: lost.at_ms,
            }
        };
        now.casualties.iter().map(file).collect()
    }

    /// Where a file is now, as far as that can be told.
    fn name_of(&self, ino: Ino, deadline: Instant) -> Option<PathBuf> {
        let path = self.engine.path_of(ino, deadline).ok().flatten()?;
        Some(self.facts.mountpoint.join(OsStr::from_bytes(&path)))
    }

    /// What the server refuses, with the files that need it; those that were removed since do not.
    fn refused_objects(&self, now: &crate::engine::Status) -> Vec<RefusedObject> {
        let deadline = clock::now() + BELOW_LONGEST;
        let told = |refusal: &crate::engine::Refusal| {
            let files = refusal.files.iter();
            RefusedObject {
                object: refusal.sid.clone(),
                why: refusal.why.clone(),
                at_ms: refusal.at_ms,
                files: files
                    .filter_map(|ino| self.name_of(*ino, deadline))
                    .map(|path| path.to_string_lossy().into_owned())
                    .collect(),
            }
        };
        now.refused.iter().map(told).collect()
    }

    pub(super) fn describe(&self) -> Status {
        let now = self.engine.status();
        // Read-only by choice is no news while nothing waits.
        let quiet = self.facts.read_only && now.is_committed();
        let stopped = now.stopped.clone().filter(|_| !quiet);
        let why = [
            now.failed.clone(),
            stopped,
            now.held.clone(),
            now.remote_error.clone(),
        ];
        let events = now.events.iter().map(|event| event.detail.clone());
        let damaged = self.damaged_files(&now);
        let unreadable = damaged.iter().map(|file| {
            format!(
                "{} is damaged or lost: reading it fails",
                file.path.display()
            )
        });
        let refused = self.refused_objects(&now);
        let unsent = refused.iter().flat_map(|refusal| {
            let files = refusal.files.iter();
            files.map(|file| format!("{file} cannot be sent whole: {}", refusal.why))
        });
        let notes_of_files = unreadable.chain(unsent);
        let mut notes: Vec<String> = Vec::new();
        for note in why
            .into_iter()
            .flatten()
            .chain(notes_of_files)
            .chain(events)
        {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        let conflicts = count_conflicts(&self.facts.dir);
        Status {
            drive: self.facts.name.clone(),
            drive_id: self.facts.drive_id.clone(),
            mountpoint: self.facts.mountpoint.clone(),
            mounted: !self.draining.load(Ordering::Acquire),
            pid: std::process::id(),
            server: self.facts.server.clone(),
            online: is_online(&now),
            writable: !now.read_only && now.failed.is_none(),
            fenced: now.fenced.clone(),
            conflicts,
            state: now.weakest().word().to_owned(),
            pending: progress(&now),
            dirty_bytes: now.dirty_bytes,
            journal_bytes: now.journal_bytes,
            outbox_bytes: now.outbox_bytes,
            cache_bytes: now.cache_bytes,
            commit_seq: now.commit_seq,
            commit_ms: now.commit_ms,
            lease_epoch: now.lease_epoch,
            open_for_write: now.open_for_write,
            waiting_ms: now.waiting_ms,
            heard_ms: now.heard_ms,
            fsync: self.facts.fsync.word().to_owned(),
            verdict: verdict(&now).map_or(0, Exit::code),
            damaged,
            refused,
            over_quota: now.over_quota,
            notes,
            ..Status::default()
        }
    }
}
