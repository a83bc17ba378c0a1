//! The seam: `Medium` and `MediumFile` over the disk.
//!
//! Invariant: every request takes the disk's lock once and does what the disk's state says. Called through the traits.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;

use sealdrive_pack::{Medium, MediumFile};

use super::cut::{Change, inside};
use super::{BLOCK, Disk, Inode, Op, State, Trouble, set_len};

impl State {
    fn handle(&mut self, disk: &Disk, inode: usize) -> Arc<dyn MediumFile> {
        self.inodes[inode].handles += 1;
        self.next_handle += 1;
        Arc::new(Handle {
            disk: disk.clone(),
            inode,
            id: self.next_handle,
        })
    }
}

pub(super) struct Dir {
    disk: Disk,
    path: String,
}

impl Dir {
    pub(super) fn root(disk: &Disk) -> Self {
        Self {
            disk: disk.clone(),
            path: String::new(),
        }
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }
}

impl Medium for Dir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let (path, mut state) = (self.at(name), self.disk.lock());
        state.begin(Op::Create, &path, &[], &[])?;
        if state.names.files.contains_key(&path) || state.names.dirs.contains_key(&path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if state.used + BLOCK > state.config.capacity {
            state.count("create: ENOSPC");
            return Err(Trouble::Full.error());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode {
            named: true,
            ..Inode::default()
        });
        state.step(Change::Link(path, inode));
        Ok(state.handle(&self.disk, inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let (path, mut state) = (self.at(name), self.disk.lock());
        state.begin(Op::Open, &path, &[], &[])?;
        let inode = state.find(&path)?;
        Ok(state.handle(&self.disk, inode))
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        let (path, mut state) = (self.at(name), self.disk.lock());
        if state.halted {
            return Err(io::Error::other("the machine has no power"));
        }
        if !state.names.dirs.contains_key(&path) {
            let id = state.next_dir;
            state.next_dir += 1;
            state.step(Change::Directory(path.clone(), id));
        }
        Ok(Arc::new(Self {
            disk: self.disk.clone(),
            path,
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let (state, here) = (self.disk.lock(), self.at(""));
        if state.halted {
            return Err(io::Error::other("the machine has no power"));
        }
        let all = state.names.files.keys().chain(state.names.dirs.keys());
        let inside = all.filter_map(|path| path.strip_prefix(&here));
        Ok(inside
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to, mut state) = (self.at(from), self.at(to), self.disk.lock());
        state.begin(Op::Rename, &format!("{from} {to}"), &[], &[])?;
        if state.names.dirs.contains_key(&from) {
            if state.names.dirs.contains_key(&to) || state.names.files.contains_key(&to) {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
        } else {
            state.find(&from)?;
        }
        let old = state.names.files.get(&to).copied().filter(|_| from != to);
        state.step(Change::Rename(from, to));
        if let Some(old) = old {
            state.unname(old);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (path, mut state) = (self.at(name), self.disk.lock());
        state.begin(Op::Remove, &path, &[], &[])?;
        let inode = state.find(&path)?;
        state.step(Change::Unlink(path));
        state.unname(inode);
        Ok(())
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        let (path, mut state) = (self.at(name), self.disk.lock());
        state.begin(Op::Remove, &path, &[], &[])?;
        if !state.names.dirs.contains_key(&path) {
            return Err(ErrorKind::NotFound.into());
        }
        let files = state.names.files.iter();
        let files: Vec<(String, usize)> = files
            .filter(|(file, _)| inside(file, &path))
            .map(|(file, inode)| (file.clone(), *inode))
            .collect();
        for (file, inode) in files {
            state.step(Change::Unlink(file));
            state.unname(inode);
        }
        let dirs = state.names.dirs.keys().rev();
        let dirs: Vec<String> = dirs
            .filter(|dir| **dir == path || inside(dir, &path))
            .cloned()
            .collect();
        for dir in dirs {
            state.step(Change::Gone(dir));
        }
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.begin(Op::SyncDir, &self.path, &[], &[])?;
        state.sync_dir(&self.path);
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        Ok(state.config.capacity.saturating_sub(state.used))
    }
}

struct Handle {
    disk: Disk,
    inode: usize,
    id: u64,
}

impl Handle {
    fn ends_at(&self, end: u64) -> bool {
        let state = self.disk.lock();
        let file = &state.inodes[self.inode];
        file.live.len() as u64 == end || file.ragged == Some(end)
    }
}

impl MediumFile for Handle {
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        assert!(
            self.ends_at(end),
            "appends are at the end, or where one failed"
        );
        let done = self.write_at(&bytes, end);
        let next = end + done.as_ref().map_or(0, |()| bytes.len() as u64);
        let mut state = self.disk.lock();
        let file = &mut state.inodes[self.inode];
        // What a failed append left behind its end, the next one writes over, or does not reach.
        file.ragged = (file.live.len() as u64 > next).then_some(next);
        done
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.begin(Op::Write, "", &[self.inode as u64, offset], bytes)?;
        state.write(self.inode, offset, bytes)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let numbers = [self.inode as u64, offset, buffer.len() as u64];
        state.begin(Op::Read, "", &numbers, &[])?;
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let live = state.inodes[self.inode].live.get(from..);
        let found = live.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let begun = state.begin(Op::Sync, "", &[self.inode as u64], &[]);
        if state.halted {
            return begun;
        }
        match begun {
            Ok(()) => state.sync(self.inode),
            Err(_) => state.lose(self.inode),
        }
        begun
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.begin(Op::Truncate, "", &[self.inode as u64, len], &[])?;
        state.set_len(self.inode, len);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.begin(Op::Write, "", &[self.inode as u64, len], &[])?;
        state.allocate(self.inode, len)
    }

    fn write_behind(&self, _from: u64, _len: u64) {}

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inodes[self.inode].live.len() as u64)
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.disk.lock();
        let owner = &mut state.inodes[self.inode].owner;
        Ok(*owner.get_or_insert(self.id) == self.id)
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let file = &mut state.inodes[self.inode];
        let mut seen = Arc::clone(&file.platter);
        for dirty in &file.dirty {
            dirty.apply(Arc::make_mut(&mut seen));
        }
        set_len(&mut seen, file.live.len());
        file.live = seen;
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        let file = &mut state.inodes[self.inode];
        file.handles -= 1;
        if file.owner == Some(self.id) {
            file.owner = None;
        }
        state.reclaim(self.inode);
    }
}
