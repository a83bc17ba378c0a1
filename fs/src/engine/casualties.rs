//! Files of which something is lost: what `status` names, by inode, so that a rename in between changes nothing.
//!
//! Invariant: in memory only, because a name may stand neither on disk nor in a log; bounded; a file leaves the list as
//! soon as the range that failed has been read. Called by the mount's wiring, the upload and open.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use sealdrive_core::record::Ino;
use sealdrive_proto::id::{Kind, Sid};
use sealdrive_runtime::sync::{Mutex, MutexGuard};
use sealdrive_runtime::thread::{self, JoinHandle};

use super::events::EventKind;
use super::shared::Shared;
use crate::limits::EVENTS_KEPT;
use crate::{clock, priority};

/// One file that cannot be read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Casualty {
    /// The file.
    pub ino: Ino,
    /// The first byte known to be lost.
    pub offset: u64,
    /// When it was noticed, milliseconds since 1970, this machine's clock.
    pub at_ms: u64,
}

/// The files, each once.
#[derive(Default)]
pub(super) struct Casualties {
    files: Mutex<BTreeMap<Ino, Casualty>>,
    any: AtomicBool,
    /// Threads that look for more of them.
    searches: Mutex<Vec<JoinHandle<()>>>,
}

impl Casualties {
    /// Waits for those who still look: they give up when the mount ends.
    pub(super) fn join(&self) {
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = std::mem::take(&mut *searches);
        drop(searches);
        for search in begun {
            let _ = search.join();
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<Ino, Casualty>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of this file is lost.
    pub(super) fn note(&self, ino: Ino, offset: u64) {
        let mut files = self.files();
        if files.len() < EVENTS_KEPT {
            let at_ms = clock::wall_ms();
            let casualty = Casualty { ino, offset, at_ms };
            files.entry(ino).or_insert(casualty);
            self.any.store(true, Ordering::Release);
        }
    }

    /// This range of the file was read. Called on every read: costs nothing while nothing is lost.
    pub(super) fn readable(&self, ino: Ino, offset: u64, len: u64) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut files = self.files();
        let range = offset..offset.saturating_add(len);
        if files
            .get(&ino)
            .is_some_and(|lost| range.contains(&lost.offset))
        {
            files.remove(&ino);
            self.any.store(!files.is_empty(), Ordering::Release);
        }
    }

    /// By inode.
    pub(super) fn list(&self) -> Vec<Casualty> {
        self.files().values().copied().collect()
    }
}

/// Records of the outbox that are not good, and that no witness covers, are a power cut's; but not if the journal names
/// them, because it does so only after they were synced. The files are noted, and how many objects it was is told.
pub(super) fn named_by_journal(shared: &Shared) {
    let is_nowhere = |sid: &&Sid| matches!(shared.store.known(sid), Ok(None));
    let doubtful = shared.store.doubtful().iter();
    let doubtful: HashSet<Sid> = doubtful.filter(is_nowhere).copied().collect();
    if doubtful.is_empty() {
        return;
    }
    let keys = shared.blobs.keys();
    let mut lost = HashSet::new();
    shared.drive.each_unsaved_extent(|ino, offset, reference| {
        let mut sids = keys.sids(Kind::Data, reference).map(|(_, sid)| sid);
        if let Some(sid) = sids.find(|sid| doubtful.contains(sid)) {
            lost.insert(sid);
            shared.casualties.note(ino, offset);
        }
    });
    if !lost.is_empty() {
        let what = format!(
            "{} objects that were not yet on the server are damaged",
            lost.len()
        );
        shared.events.push(EventKind::OutboxDamage, what);
    }
}

/// Looks for the files that need one of these objects, in the background: it walks every extent of the drive.
pub(super) fn search(shared: &Arc<Shared>, lost: HashSet<Sid>) {
    if lost.is_empty() {
        return;
    }
    in_background(shared, move |shared| {
        walk(shared, &lost, |ino, offset| {
            shared.casualties.note(ino, offset)
        });
    });
}

/// Does something for as long as it takes, or until the mount ends.
pub(super) fn in_background(shared: &Arc<Shared>, work: impl FnOnce(&Shared) + Send + 'static) {
    let searcher = Arc::clone(shared);
    let begun = thread::spawn("casualties", move || {
        priority::step_back(priority::BACKGROUND);
        work(&searcher);
    });
    match begun {
        Ok(search) => {
            let searches = &shared.casualties.searches;
            let mut searches = searches.lock().unwrap_or_else(PoisonError::into_inner);
            searches.push(search);
        }
        Err(error) => {
            tracing::warn!(%error, "which files are concerned is not looked for");
        }
    }
}

/// Shows every extent whose chunk is one of these.
pub(super) fn walk(shared: &Shared, wanted: &HashSet<Sid>, mut each: impl FnMut(Ino, u64)) {
    let mut from = Some(Vec::new());
    while let Some(after) = from {
        let keys = shared.blobs.keys();
        let mut found = Vec::new();
        let step = shared.with_nodes(|drive| {
            found.clear();
            drive.each_extent(&after, |ino, offset, reference| {
                if keys
                    .sids(Kind::Data, reference)
                    .any(|(_, sid)| wanted.contains(&sid))
                {
                    found.push((ino, offset));
                }
            })
        });
        for (ino, offset) in &found {
            each(*ino, *offset);
        }
        from = match step {
            Ok(next) if !shared.progress.now().quit => next,
            _ => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_listed_until_what_failed_was_read() {
        let list = Casualties::default();
        list.note(7, 5000);
        list.note(7, 9000);
        list.readable(7, 0, 5000);
        list.readable(8, 0, 1 << 20);
        assert_eq!(list.list().len(), 1);
        list.readable(7, 4096, 4096);
        assert!(list.list().is_empty());
    }
}
