//! Content of files: open and release, read plans, writes, holes.
//!
//! Invariant: a file's bytes are its dirty ranges over its extents over zeros, and neither reaches beyond its size.
//! Called by the kernel's border.

use bytes::Bytes;
use sealdrive_core::extent;
use sealdrive_core::record::{Extent, FileKind, Ino, MAX_FILE, Time};
use sealdrive_core::view::View;

use super::dirty::{DirtyMap, Run};
use super::errno::{Answer, Errno};
use super::gate::Need;
use super::handles::{Handle, Opened};
use super::state::State;
use super::{Drive, Fallocate, Plan, PlanPiece, Seek};

/// A run of a file's bytes and where they are.
pub(super) enum Content {
    /// In memory.
    Dirty(Bytes),
    /// In the tree, or a hole.
    Placed(Extent),
}

impl Drive {
    /// Opens a file. The caller has truncated it if that was asked for.
    pub fn open(&self, ino: Ino, write: bool) -> Answer<Handle> {
        let s = &mut *self.lock()?;
        if s.load(ino)?.inode.kind == FileKind::Directory && write {
            return Err(Errno::EISDIR.into());
        }
        if s.read_only && write {
            // Here and not at the first page written back, where only fsync and close would hear of it.
            return Err(Errno::EROFS.into());
        }
        let holders = s.inodes.hold(ino);
        holders.opens += 1;
        holders.writers += u32::from(write);
        Ok(s.handles.add(Opened::File { ino, write }))
    }

    /// Closes a file.
    pub fn release(&self, handle: Handle) {
        let mut guard = self.peek();
        let s = &mut *guard;
        if let Some(Opened::File { ino, write }) = s.handles.remove(handle) {
            s.let_go(ino, |holders| {
                holders.opens = holders.opens.saturating_sub(1);
                holders.writers = holders.writers.saturating_sub(u32::from(write));
            });
        }
        drop(guard);
        self.room.notify_all();
    }

    /// How to answer a read of `len` bytes at `off`.
    pub fn read_plan(&self, ino: Ino, off: u64, len: u64) -> Answer<Plan> {
        let s = &mut *self.lock()?;
        let size = s.load_file(ino)?.inode.size;
        let end = off.saturating_add(len).min(size);
        let mut plan = Plan::default();
        if off < end {
            for (_, content) in s.content(ino, off, end)? {
                plan.pieces.push(match content {
                    Content::Dirty(bytes) | Content::Placed(Extent::Inline(bytes)) => {
                        PlanPiece::Memory(bytes)
                    }
                    Content::Placed(Extent::Hole { len }) => PlanPiece::Zero(len),
                    Content::Placed(Extent::Chunk {
                        reference,
                        skip,
                        len,
                    }) => PlanPiece::Chunk {
                        reference,
                        skip,
                        len,
                    },
                });
            }
        }
        s.map.nodes.settle();
        Ok(plan)
    }

    /// Writes `data` at `off`. `kill` (WRITE_KILL_SUIDGID) clears set-id bits and capabilities. `now`: none for pages
    /// that the kernel has kept (FUSE_WRITE_CACHE): it keeps their times, too, and sends them on their own, which may
    /// be before.
    pub fn write(
        &self,
        ino: Ino,
        off: u64,
        data: &[u8],
        kill: bool,
        now: impl Into<Option<Time>>,
    ) -> Answer<u32> {
        let put = |map: &mut DirtyMap, version| map.write(off, data, version);
        self.write_with(ino, off, data.len(), kill, now.into(), put)
    }

    /// The same with bytes that nobody will change: they are kept where they are.
    pub fn write_shared(
        &self,
        ino: Ino,
        off: u64,
        data: Bytes,
        kill: bool,
        now: impl Into<Option<Time>>,
    ) -> Answer<u32> {
        let len = data.len();
        let put = |map: &mut DirtyMap, version| map.insert(off, data, version, false);
        self.write_with(ino, off, len, kill, now.into(), put)
    }

    fn write_with(
        &self,
        ino: Ino,
        off: u64,
        len: usize,
        kill: bool,
        now: Option<Time>,
        put: impl FnOnce(&mut DirtyMap, u64),
    ) -> Answer<u32> {
        let end = off.checked_add(len as u64).filter(|&end| end <= MAX_FILE);
        let end = end.ok_or(Errno::EFBIG)?;
        let len = u32::try_from(len).map_err(|_| Errno::EINVAL)?;
        let s = &mut *self.enter(Need::Data)?;
        s.load_file(ino)?;
        if kill {
            s.know_capability(ino)?;
            s.kill_privileges(ino);
        }
        let version = s.next_version();
        let map = s.dirty.entry(ino).or_default();
        let before = map.bytes();
        put(map, version);
        s.dirty_bytes += map.bytes() - before;
        s.granted = s.granted.saturating_sub(u64::from(len));
        s.wrote(ino, end, version, now);
        s.done();
        self.announce(s);
        Ok(len)
    }

    /// fallocate(2).
    pub fn fallocate(&self, ino: Ino, off: u64, len: u64, how: Fallocate, now: Time) -> Answer<()> {
        let end = off.checked_add(len).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL.into());
        }
        if end > MAX_FILE {
            return Err(Errno::EFBIG.into());
        }
        let s = &mut *self.enter(Need::Space)?;
        let size = s.load_file(ino)?.inode.size;
        let grow = matches!(how, Fallocate::Extend | Fallocate::ZeroRange);
        let holes = matches!(
            how,
            Fallocate::PunchHole | Fallocate::ZeroRange | Fallocate::ZeroRangeKeepSize
        );
        if holes && off < size {
            s.punch(ino, off, end.min(size))?;
        }
        if holes || (grow && end > size) {
            let version = s.next_version();
            s.wrote(ino, if grow { end } else { 0 }, version, Some(now));
        }
        s.done();
        Ok(())
    }

    /// lseek(2) for SEEK_DATA and SEEK_HOLE.
    pub fn lseek(&self, ino: Ino, off: u64, seek: Seek) -> Answer<u64> {
        let s = &mut *self.lock()?;
        let size = s.load_file(ino)?.inode.size;
        if off >= size {
            return Err(Errno::ENXIO.into());
        }
        let view = s.view_of(ino);
        let dirty = s
            .dirty
            .get(&ino)
            .map_or_else(Vec::new, |map| map.runs(|_| true));
        let found = match seek {
            Seek::Data => next_data(&view, &dirty, ino, off)?.ok_or(Errno::ENXIO)?,
            Seek::Hole => next_hole(&view, &dirty, ino, off, size)?,
        };
        s.map.nodes.settle();
        Ok(found)
    }
}

impl State {
    /// What `off..end` is made of, in order, without gaps. `off < end`.
    pub(super) fn content(&self, ino: Ino, off: u64, end: u64) -> Answer<Vec<(u64, Content)>> {
        let view = self.view_of(ino);
        let mut found = Vec::new();
        let mut at = off;
        let placed = |from: u64, to: u64, found: &mut Vec<(u64, Content)>| -> Answer<()> {
            if from < to {
                for segment in extent::segments(&view, ino, from, to - from)? {
                    found.push((segment.off, Content::Placed(segment.what)));
                }
            }
            Ok(())
        };
        if let Some(map) = self.dirty.get(&ino) {
            for (start, bytes) in map.slices(off, end) {
                placed(at, start, &mut found)?;
                at = start + bytes.len() as u64;
                found.push((start, Content::Dirty(bytes)));
            }
        }
        placed(at, end, &mut found)?;
        Ok(found)
    }

    /// What a change of content does to the inode: size, times, and the digest no longer holds.
    pub(super) fn wrote(&mut self, ino: Ino, end: u64, version: u64, now: Option<Time>) {
        let Some(slot) = self.inodes.change(ino) else {
            return;
        };
        slot.written = version;
        let inode = &mut slot.inode;
        inode.size = inode.size.max(end);
        if let Some(now) = now {
            inode.mtime = now;
            inode.ctime = now;
        }
        inode.digest = None;
    }

    /// Turns `off..end` into a hole.
    pub(super) fn punch(&mut self, ino: Ino, off: u64, end: u64) -> Answer<()> {
        let (freed, edits) = self.plan(ino, |txn| Ok(extent::punch(txn, ino, off, end - off)?))?;
        let allocated = self.load(ino)?.inode.allocated;
        self.apply_of(ino, edits);
        self.set_allocated(ino, allocated.saturating_sub(freed));
        self.drop_dirty(ino, off, end);
        Ok(())
    }
}

/// The first byte from `off` on that is data.
fn next_data(view: &View<'_>, dirty: &[Run], ino: Ino, off: u64) -> Answer<Option<u64>> {
    let first = dirty.partition_point(|run| run.end() <= off);
    let in_memory = dirty.get(first).map(|run| run.off.max(off));
    if in_memory == Some(off) {
        return Ok(in_memory);
    }
    let in_tree = extent::next_data(view, ino, off)?;
    Ok(in_tree.into_iter().chain(in_memory).min())
}

/// The first byte from `off` on that is in no data; the end of the file at the latest.
fn next_hole(view: &View<'_>, dirty: &[Run], ino: Ino, off: u64, size: u64) -> Answer<u64> {
    let mut at = off;
    loop {
        let before = at;
        at = extent::next_hole(view, ino, at)?;
        let first = dirty.partition_point(|run| run.end() <= at);
        if let Some(run) = dirty.get(first).filter(|run| run.off <= at) {
            at = run.end();
        }
        if at == before || at >= size {
            return Ok(at.min(size));
        }
    }
}
