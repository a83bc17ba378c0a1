//! Listing directories.
//!
//! Invariant: a cookie is a position in the list of names that was taken when the handle was last rewound, never a
//! position in the map: names that stay are listed exactly once, whatever else comes and goes. Called by the kernel's
//! border.

use std::ops::ControlFlow;

use sealdrive_core::record::{Dentry, FileKind, Ino, Key, KeyRange};

use super::errno::{Answer, Errno};
use super::handles::{Handle, Opened};
use super::state::State;
use super::{Attr, DirEntry, Drive};

/// A directory's names, packed: a million of them cost about 40 MB.
#[derive(Default)]
pub(super) struct Listing {
    names: Vec<u8>,
    entries: Vec<Listed>,
    /// Everything has been read; otherwise reading goes on after the last name.
    complete: bool,
}

struct Listed {
    ino: Ino,
    /// End of its name in `names`.
    end: u32,
    kind: FileKind,
}

impl Listing {
    fn name(&self, index: usize) -> &[u8] {
        let start = match index {
            0 => 0,
            _ => self.entries[index - 1].end as usize,
        };
        &self.names[start..self.entries[index].end as usize]
    }

    fn push(&mut self, name: &[u8], ino: Ino, kind: FileKind) {
        self.names.extend_from_slice(name);
        let end = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.entries.push(Listed { ino, end, kind });
    }

    /// What is left to read of directory `ino`. "." and ".." stand first and are no records.
    fn rest(&self, ino: Ino) -> KeyRange {
        match self.entries.len() {
            0..=2 => Key::dentries(ino),
            more => Key::dentries_after(ino, self.name(more - 1)),
        }
    }
}

impl Drive {
    /// Opens a directory for listing.
    pub fn opendir(&self, ino: Ino) -> Answer<Handle> {
        let s = &mut *self.lock()?;
        if s.load(ino)?.inode.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        s.inodes.hold(ino).opens += 1;
        let listing = Listing::default();
        Ok(s.handles.add(Opened::Directory { ino, listing }))
    }

    /// Shows the entries after `cookie` (0: rewind) until `each` does not take one.
    pub fn readdir(
        &self,
        handle: Handle,
        cookie: u64,
        mut each: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Answer<()> {
        let s = &mut *self.lock()?;
        s.with_listing(handle, cookie, |_, entry| Ok(each(entry)))
    }

    /// As [`Self::readdir`], with attributes. The kernel holds each inode that `each` took, but for "." and "..".
    pub fn readdirplus(
        &self,
        handle: Handle,
        cookie: u64,
        mut each: impl FnMut(DirEntry<'_>, &Attr) -> bool,
    ) -> Answer<()> {
        let s = &mut *self.lock()?;
        let mut shown = false;
        s.with_listing(handle, cookie, |s, entry| {
            let attr = match s.attr(entry.ino) {
                Ok(attr) => attr,
                Err(error) if error == Errno::ENOENT.into() => return Ok(true), // removed since
                // What was shown so far is an answer; the caller comes back for the rest.
                Err(_) if shown => return Ok(false),
                Err(error) => return Err(error),
            };
            let taken = each(entry, &attr);
            if taken && entry.name != b"." && entry.name != b".." {
                s.inodes.hold(entry.ino).lookups += 1;
            }
            shown |= taken;
            Ok(taken)
        })
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: Handle) {
        let s = &mut *self.peek();
        if let Some(Opened::Directory { ino, .. }) = s.handles.remove(handle) {
            s.let_go(ino, |holders| {
                holders.opens = holders.opens.saturating_sub(1);
            });
        }
    }
}

impl State {
    fn with_listing(
        &mut self,
        handle: Handle,
        cookie: u64,
        mut each: impl FnMut(&mut Self, DirEntry<'_>) -> Answer<bool>,
    ) -> Answer<()> {
        let (ino, mut listing) = match self.handles.get_mut(handle) {
            Some(Opened::Directory { ino, listing }) => (*ino, std::mem::take(listing)),
            _ => return Err(Errno::EBADF.into()),
        };
        let rewound = cookie == 0 && listing.complete;
        if rewound {
            listing = Listing::default();
        }
        let mut result = self.read_names(ino, &mut listing);
        let first = usize::try_from(cookie).unwrap_or(usize::MAX);
        if result.is_ok() {
            for index in first..listing.entries.len() {
                let listed = &listing.entries[index];
                let entry = DirEntry {
                    next: index as u64 + 1,
                    ino: listed.ino,
                    kind: listed.kind,
                    name: listing.name(index),
                };
                match each(self, entry) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            self.map.nodes.settle();
        }
        if let Some(Opened::Directory { listing: place, .. }) = self.handles.get_mut(handle) {
            *place = listing;
        }
        result
    }

    /// Reads the names that are not in the list yet. After `Missing`, the next call goes on where this one stopped.
    fn read_names(&mut self, ino: Ino, listing: &mut Listing) -> Answer<()> {
        if listing.complete {
            return Ok(());
        }
        if listing.entries.is_empty() {
            let parent = self.parent_of(ino)?;
            listing.push(b".", ino, FileKind::Directory);
            listing.push(b"..", parent, FileKind::Directory);
        }
        if !self.load(ino)?.orphan {
            let mut bad = None;
            let rest = listing.rest(ino);
            self.map
                .view()
                .range(&rest, |key, value| match Dentry::decode(value) {
                    Ok(dentry) => {
                        listing.push(&key[9..], dentry.ino, dentry.kind);
                        ControlFlow::Continue(())
                    }
                    Err(error) => {
                        bad = Some(error);
                        ControlFlow::Break(())
                    }
                })?;
            if let Some(bad) = bad {
                return Err(bad.into());
            }
        }
        listing.complete = true;
        Ok(())
    }
}
