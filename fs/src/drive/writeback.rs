//! Which dirty bytes go into which chunk stream, and where they are found afterwards.
//!
//! Invariant: a placed range replaces dirty bytes only where the version that was handed out still stands, so a write
//! in between wins. A stream holds one long run of one file, or short runs of files of one directory and one owner
//! (what is compressed together comes from one place). Called by the engine's writeback.

use std::collections::BTreeMap;

use bytes::Bytes;
use sealdrive_core::extent;
use sealdrive_core::record::{Extent, Ino};
use sealdrive_proto::limits::{MAX_CHUNK, MIN_CHUNK};

use super::Drive;
pub use super::dedup::Digest;
use super::dirty::{JobId, Run};
use super::errno::{Answer, DriveError, Errno};
use super::file::Content;
use super::state::State;

/// Files up to this size stand in the tree itself, bytes: a chunk's reference costs a tenth of it, and a seal more.
pub const INLINE_FILE: u64 = 512;
/// Longest stream, bytes: a worker's turn. A longer run goes on in the next job where this one was cut.
const LONGEST_JOB: u64 = 16 << 20;

/// Which dirty bytes to hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// What will probably stay: closed files (packed once there is a chunk's worth of one directory), and complete
    /// chunks of open ones. Under pressure more.
    Settled,
    /// Everything but orphans: before a freeze.
    All,
}

/// A run of bytes of a file, as a stream takes it.
#[derive(Debug, Clone)]
pub struct JobPiece {
    /// The file.
    pub ino: Ino,
    /// Where in it.
    pub off: u64,
    /// The bytes.
    pub data: Bytes,
    /// Which write; goes back in [`Placed`].
    pub version: u64,
    /// This is the whole content of a closed file: worth asking [`Drive::dedup`] for.
    pub whole: bool,
}

/// One chunk stream: its pieces follow one another.
#[derive(Debug)]
pub struct Job {
    /// Goes back in [`JobDone`].
    pub id: JobId,
    /// In stream order.
    pub pieces: Vec<JobPiece>,
    /// More may follow: what comes after the last content cut is not placed but stays dirty.
    pub open_ended: bool,
}

impl Job {
    /// Bytes of the stream.
    pub fn len(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| piece.data.len() as u64)
            .sum()
    }

    /// Never handed out empty.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// Bytes `off .. off + len` of a file, of this version, are now this extent.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The file.
    pub ino: Ino,
    /// Where in it.
    pub off: u64,
    /// The version of the piece.
    pub version: u64,
    /// A chunk's part; its `len` is the range's.
    pub extent: Extent,
}

/// A job has ended. What it did not place stays dirty; a job that failed places nothing.
#[derive(Debug, Clone, Default)]
pub struct JobDone {
    /// Which job.
    pub id: JobId,
    /// What was placed.
    pub placed: Vec<Placed>,
    /// Digests of whole pieces, by file and version.
    pub digests: Vec<(Ino, u64, Digest)>,
}

/// A stream being put together.
pub(super) struct Draft {
    pub(super) runs: Vec<(Ino, Run)>,
    pub(super) open_ended: bool,
}

/// Short runs of one directory and one owner, in order of creation.
type Packs = BTreeMap<(Ino, u32), Vec<(Ino, Run)>>;

impl Drive {
    /// Hands out dirty bytes, about `max_bytes` at most, as chunk streams.
    pub fn writeback_jobs(&self, which: Settle, max_bytes: u64) -> Answer<Vec<Job>> {
        let mut guard = self.lock()?;
        let s = &mut *guard;
        s.counters()?;
        s.settle_inline(which == Settle::All)?;
        let pressed = s.waiting_bytes() > s.dirty_limit / 2;
        let mut drafts = s.draft(which, pressed, max_bytes)?;
        if drafts.is_empty() && pressed {
            drafts = s.draft(Settle::All, pressed, max_bytes)?;
        }
        let jobs = drafts.into_iter().map(|draft| s.hand_out(draft)).collect();
        s.map.nodes.settle();
        drop(guard);
        self.room.notify_all(); // inline files may have made room
        Ok(jobs)
    }

    /// Takes a job's result. After `Missing`, load the node and call again with the same: nothing is placed twice.
    pub fn install(&self, done: &JobDone) -> Answer<()> {
        let mut guard = self.lock()?;
        let s = &mut *guard;
        s.counters()?;
        for placed in &done.placed {
            s.place(placed)?;
        }
        for (ino, version, digest) in &done.digests {
            s.know_digest(*ino, *version, digest);
        }
        s.end_job(done.id);
        s.done();
        let held = s.unhold();
        drop(guard);
        self.room.notify_all();
        if held {
            self.work.notify_all();
        }
        Ok(())
    }

    /// Whether another file holds the same content; then its extents are this file's too, and the piece needs no chunk.
    pub fn dedup(&self, piece: &JobPiece, digest: &Digest) -> Answer<bool> {
        let found = self.lock()?.share_extents(piece, digest)?;
        if found {
            self.room.notify_all();
        }
        Ok(found)
    }

    /// Takes note of small files in the tree, by the digests in their records: an earlier mount placed them.
    pub fn know_digests(&self, known: impl IntoIterator<Item = (Digest, Ino)>) {
        let mut guard = self.peek();
        for (digest, ino) in known {
            guard.digests.insert(&digest, ino);
        }
    }

    /// Jobs handed out and not yet ended.
    pub fn jobs_out(&self) -> usize {
        self.peek().jobs.count()
    }

    /// Dirty bytes of files that have a name: 0 before a freeze.
    pub fn unplaced_bytes(&self) -> u64 {
        self.peek().unplaced()
    }
}

impl State {
    pub(super) fn unplaced(&self) -> u64 {
        let orphaned: u64 = self.orphans.keys().map(|ino| self.dirty_of(*ino)).sum();
        self.dirty_bytes - orphaned
    }

    /// Chooses runs. Files whose inode is gone (data recovered from the journal) are forgotten.
    fn draft(&mut self, which: Settle, pressed: bool, max_bytes: u64) -> Answer<Vec<Draft>> {
        let mut files: Vec<Ino> = self.dirty.keys().copied().collect();
        files.sort_unstable();
        let (mut drafts, mut packs) = (Vec::new(), Packs::new());
        let mut chosen = 0;
        for ino in files {
            if chosen >= max_bytes {
                break;
            }
            let orphan = self.orphans.contains_key(&ino);
            if orphan && !pressed {
                continue;
            }
            let Some(uid) = self.owner_of_dirty(ino)? else {
                continue;
            };
            let open = self.inodes.holders(ino).writers > 0;
            let held_back = open && which == Settle::Settled;
            let parent = if orphan { 0 } else { self.parent_of(ino)? };
            let size = self.inodes.get(ino).map_or(0, |slot| slot.inode.size);
            for run in self.free_runs(ino) {
                if held_back && run.len < MAX_CHUNK as u64 {
                    continue;
                }
                // The end of a file that was cut while it was still being written is a chunk of its own, as it would
                // be had the file been cut in one go: so the same file gives the same chunks.
                let tail = !open && run.off > 0 && run.end() == size && size > MIN_CHUNK as u64;
                if run.len < MIN_CHUNK as u64 && !tail {
                    packs.entry((parent, uid)).or_default().push((ino, run));
                    continue;
                }
                let len = run.len.min(LONGEST_JOB);
                drafts.push(Draft {
                    runs: vec![(ino, Run { off: run.off, len })],
                    open_ended: held_back || len < run.len,
                });
                chosen += len;
            }
        }
        for runs in packs.into_values() {
            pack(runs, which, &mut drafts, &mut chosen, max_bytes);
        }
        Ok(drafts)
    }

    /// The owner of a file with dirty bytes; forgets the bytes if the inode is gone (they came from the journal).
    fn owner_of_dirty(&mut self, ino: Ino) -> Answer<Option<u32>> {
        match self.load(ino) {
            Ok(slot) => Ok(Some(slot.inode.uid)),
            Err(DriveError::Errno(Errno::ENOENT)) => {
                self.drop_dirty(ino, 0, u64::MAX);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets recovered bytes of inodes that are gone.
    pub(super) fn forget_the_dead(&mut self) -> Answer<()> {
        let mut files: Vec<Ino> = self.dirty.keys().copied().collect();
        // Which missing node is met first decides what is fetched.
        files.sort_unstable();
        files
            .into_iter()
            .try_for_each(|ino| self.owner_of_dirty(ino).map(drop))
    }

    fn place(&mut self, placed: &Placed) -> Answer<()> {
        let Placed {
            ino,
            off,
            version,
            extent,
        } = placed;
        let (ino, end) = (*ino, off + extent.len());
        let standing = match self.dirty.get(&ino) {
            Some(map) => map.standing(*off, end, *version),
            None => return Ok(()),
        };
        for run in standing {
            let part = extent.slice(run.off - off, run.end() - off);
            self.set_extents(ino, run, &[(run.off, part)])?;
        }
        Ok(())
    }

    /// Puts `parts` in the place of whatever `run` is now, dirty bytes included.
    fn set_extents(&mut self, ino: Ino, run: Run, parts: &[(u64, Extent)]) -> Answer<()> {
        let allocated = self.load(ino)?.inode.allocated;
        let (allocated, edits) = self.plan(ino, |txn| {
            let mut allocated = allocated;
            if parts.len() != 1 {
                allocated = allocated.saturating_sub(extent::punch(txn, ino, run.off, run.len)?);
            }
            for (off, part) in parts {
                allocated = extent::put(txn, ino, *off, part)?.applied_to(allocated);
            }
            Ok(allocated)
        })?;
        self.apply_of(ino, edits);
        self.set_allocated(ino, allocated);
        self.drop_dirty(ino, run.off, run.end());
        Ok(())
    }

    /// Files of at most [`INLINE_FILE`] bytes go straight into the tree; with `open_too` all of them, or an error.
    pub(super) fn settle_inline(&mut self, open_too: bool) -> Answer<()> {
        let small: Vec<Ino> = self
            .dirty
            .iter()
            .filter(|(ino, map)| {
                map.bytes() <= INLINE_FILE
                    && (open_too || self.inodes.holders(**ino).writers == 0)
                    && !self.orphans.contains_key(ino)
                    && map.iter().all(|(_, range)| range.job.is_none())
            })
            .map(|(ino, _)| *ino)
            .collect();
        for ino in small {
            match self.make_inline(ino) {
                Err(DriveError::Errno(Errno::ENOENT)) => self.drop_dirty(ino, 0, u64::MAX),
                Err(error) if open_too => return Err(error),
                Err(_) | Ok(()) => {} // what misses a node is written back the long way
            }
        }
        Ok(())
    }

    fn make_inline(&mut self, ino: Ino) -> Answer<()> {
        self.counters()?;
        let size = self.load_file(ino)?.inode.size;
        if size == 0 || size > INLINE_FILE {
            return Ok(());
        }
        let mut bytes = vec![0; size as usize];
        for (off, content) in self.content(ino, 0, size)? {
            match content {
                Content::Dirty(part) | Content::Placed(Extent::Inline(part)) => {
                    bytes[off as usize..off as usize + part.len()].copy_from_slice(&part);
                }
                Content::Placed(Extent::Hole { .. }) => {}
                Content::Placed(Extent::Chunk { .. }) => return Ok(()),
            }
        }
        let whole = Run { off: 0, len: size };
        self.set_extents(ino, whole, &[(0, Extent::Inline(bytes.into()))])
    }

    /// Records the digest of a file that was placed whole and not written since.
    fn know_digest(&mut self, ino: Ino, version: u64, digest: &Digest) {
        let clean = !self.dirty.contains_key(&ino) && !self.orphans.contains_key(&ino);
        if clean && self.load(ino).is_ok_and(|slot| slot.written == version) {
            self.change(ino).digest = Some(*digest);
            self.digests.insert(digest, ino);
        }
    }

    fn share_extents(&mut self, piece: &JobPiece, digest: &Digest) -> Answer<bool> {
        let (ino, size) = (piece.ino, piece.data.len() as u64);
        let run = Run { off: 0, len: size };
        let Some(other) = self.digests.get(digest).filter(|other| *other != ino) else {
            return Ok(false);
        };
        let unchanged = self
            .dirty
            .get(&ino)
            .is_some_and(|map| map.standing(0, size, piece.version) == [run]);
        if !piece.whole || !unchanged || self.load(ino)?.inode.size != size {
            return Ok(false);
        }
        let same = |slot: &super::inodes::Slot| {
            slot.inode.digest.as_ref() == Some(digest) && slot.inode.size == size && !slot.orphan
        };
        if self.dirty.contains_key(&other) || !same(self.load(other)?) {
            return Ok(false);
        }
        let mut parts = Vec::new();
        for (off, content) in self.content(other, 0, size)? {
            match content {
                Content::Placed(extent @ (Extent::Chunk { .. } | Extent::Inline(_))) => {
                    parts.push((off, extent))
                }
                _ => return Ok(false),
            }
        }
        self.counters()?;
        self.set_extents(ino, run, &parts)?;
        self.change(ino).digest = Some(*digest);
        self.done();
        Ok(true)
    }
}

/// Cuts the short runs of one directory and owner into streams.
fn pack(
    runs: Vec<(Ino, Run)>,
    which: Settle,
    drafts: &mut Vec<Draft>,
    chosen: &mut u64,
    max_bytes: u64,
) {
    let mut left: u64 = runs.iter().map(|(_, run)| run.len).sum();
    let mut runs = runs.into_iter().peekable();
    while runs.peek().is_some() && *chosen < max_bytes {
        // Less than a chunk waits for company, unless everything must go.
        if which == Settle::Settled && left < MAX_CHUNK as u64 {
            return;
        }
        let (mut taken, mut len) = (Vec::new(), 0);
        while len < LONGEST_JOB
            && let Some((ino, run)) = runs.next()
        {
            len += run.len;
            taken.push((ino, run));
        }
        left -= len;
        *chosen += len;
        drafts.push(Draft {
            runs: taken,
            open_ended: which == Settle::Settled,
        });
    }
}
