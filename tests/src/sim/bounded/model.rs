//! The oracle: a file system of a few names as POSIX describes it, and what of it may be found after a power cut.
//!
//! Invariant: it shares no code with the drive. A request that POSIX refuses changes nothing and says so. Called by the
//! enumeration (which sequences are possible) and by the world (what must be found again).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::request::{Content, Request};

/// Everything under the root, by path; names of a directory follow it after a slash.
pub(super) type Tree = BTreeMap<String, Found>;

/// What stands under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) what: What,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of all names of the same inode, and how many it says it has.
    pub(super) twin: String,
    pub(super) links: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
}

#[derive(Clone)]
struct Inode {
    what: What,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Written since the last fsync, while the file is still open.
    unsynced: Vec<Range<usize>>,
}

/// The file system after some requests.
#[derive(Clone, Default)]
pub(super) struct Model {
    inodes: Vec<Arc<Inode>>,
    names: BTreeMap<String, usize>,
    /// The one file that is open for writing.
    open: Option<usize>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Model {
    /// Does it; `None` if it is refused.
    pub(super) fn apply(&mut self, request: &Request) -> Option<()> {
        match request {
            Request::Create(path) => {
                self.close();
                let file = self.add(path, What::File(Vec::new()))?;
                self.open = Some(file);
            }
            Request::Open(path) => {
                self.close();
                self.open = Some(self.file(path)?);
            }
            Request::Close => self.close(),
            Request::Write { path, at, content } => self.write(path, *at, content)?,
            Request::SetSize(path, size) => self.content(path)?.resize(*size, 0),
            Request::Zero {
                path,
                at,
                len,
                grow,
            } => {
                let content = self.content(path)?;
                let end = at + len;
                if *grow {
                    content.resize(content.len().max(end), 0);
                }
                let end = end.min(content.len());
                content[(*at).min(end)..end].fill(0);
            }
            Request::Allocate(path, end) => {
                let content = self.content(path)?;
                content.resize(content.len().max(*end), 0);
            }
            Request::Rename(from, to) => self.rename(from, to)?,
            Request::Link(from, to) => {
                let inode = self.file(from)?;
                self.vacant(to)?;
                self.names.insert((*to).to_owned(), inode);
            }
            Request::Unlink(path) => {
                let inode = *self.names.get(*path)?;
                if self.inodes[inode].what == What::Directory {
                    return None;
                }
                self.names.remove(*path);
            }
            Request::Mkdir(path) => drop(self.add(path, What::Directory)?),
            Request::Rmdir(path) => {
                let inode = *self.names.get(*path)?;
                if self.inodes[inode].what != What::Directory || !self.is_empty(path) {
                    return None;
                }
                self.names.remove(*path);
            }
            Request::Symlink(path, target) => {
                let target = target.as_bytes().to_vec();
                self.add(path, What::Symlink(target))?;
            }
            Request::SetXattr(path, value) => {
                let inode = self.file(path)?;
                let xattrs = &mut Arc::make_mut(&mut self.inodes[inode]).xattrs;
                xattrs.insert(super::request::XATTR.to_vec(), value.as_bytes().to_vec());
            }
            Request::Fsync => {
                for inode in &mut self.inodes {
                    if !inode.unsynced.is_empty() {
                        Arc::make_mut(inode).unsynced.clear();
                    }
                }
            }
            Request::Pause => {}
        }
        Some(())
    }

    fn write(&mut self, path: &str, at: usize, content: &Content) -> Option<()> {
        let (inode, bytes) = (self.file(path)?, content.bytes());
        let (end, open) = (at + bytes.len(), self.open == Some(inode));
        let inode = Arc::make_mut(&mut self.inodes[inode]);
        let What::File(old) = &mut inode.what else {
            return None;
        };
        old.resize(old.len().max(end), 0);
        old[at..end].copy_from_slice(&bytes);
        if open {
            inode.unsynced.push(at..end);
        }
        Some(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Option<()> {
        let inode = *self.names.get(from)?;
        let is_dir = self.inodes[inode].what == What::Directory;
        if to.starts_with(&format!("{from}/")) || !self.is_dir(parent(to)) {
            return None;
        }
        match self.names.get(to) {
            Some(other) if *other == inode => return Some(()),
            Some(other) => {
                let over_dir = self.inodes[*other].what == What::Directory;
                if over_dir != is_dir || (over_dir && !self.is_empty(to)) {
                    return None;
                }
            }
            None => {}
        }
        self.names.remove(from);
        self.names.insert(to.to_owned(), inode);
        let below = format!("{from}/");
        let moved: Vec<String> = self.names.keys().cloned().collect();
        for path in moved.iter().filter(|path| path.starts_with(&below)) {
            if let Some(inode) = self.names.remove(path) {
                self.names
                    .insert(format!("{to}/{}", &path[below.len()..]), inode);
            }
        }
        Some(())
    }

    /// A file that is closed is complete, once it is found.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            Arc::make_mut(&mut self.inodes[open]).unsynced.clear();
        }
    }

    /// Whether a file is open for writing.
    pub(super) fn has_open(&self) -> bool {
        self.open.is_some()
    }

    fn add(&mut self, path: &str, what: What) -> Option<usize> {
        self.vacant(path)?;
        self.inodes.push(Arc::new(Inode {
            what,
            xattrs: BTreeMap::new(),
            unsynced: Vec::new(),
        }));
        let inode = self.inodes.len() - 1;
        self.names.insert(path.to_owned(), inode);
        Some(inode)
    }

    fn vacant(&self, path: &str) -> Option<()> {
        (self.is_dir(parent(path)) && !self.names.contains_key(path)).then_some(())
    }

    fn is_dir(&self, path: &str) -> bool {
        let found = self.names.get(path);
        path.is_empty() || found.is_some_and(|n| self.inodes[*n].what == What::Directory)
    }

    fn is_empty(&self, path: &str) -> bool {
        let below = format!("{path}/");
        !self.names.keys().any(|name| name.starts_with(&below))
    }

    fn file(&self, path: &str) -> Option<usize> {
        let inode = *self.names.get(path)?;
        matches!(self.inodes[inode].what, What::File(_)).then_some(inode)
    }

    fn content(&mut self, path: &str) -> Option<&mut Vec<u8>> {
        let inode = self.file(path)?;
        match &mut Arc::make_mut(&mut self.inodes[inode]).what {
            What::File(content) => Some(content),
            _ => None,
        }
    }

    /// Whether this may be found where this state was recovered.
    pub(super) fn allows(&self, found: &Tree) -> bool {
        self.names.len() == found.len()
            && self
                .names
                .iter()
                .zip(found)
                .all(|((path, inode), (name, theirs))| {
                    let same = |other: &&String| self.names.get(*other) == Some(inode);
                    let links = self.names.values().filter(|other| *other == inode).count();
                    let ours = &self.inodes[*inode];
                    path == name
                        && self.names.keys().find(same) == Some(&theirs.twin)
                        && (ours.what == What::Directory || links == theirs.links as usize)
                        && ours.xattrs == theirs.xattrs
                        && ours.allows(&theirs.what)
                })
    }

    /// Names, lengths and hashes, for a complaint.
    pub(super) fn outline(&self) -> Vec<String> {
        let line = |(path, inode): (&String, &usize)| {
            format!("{path}: {}", outline(&self.inodes[*inode].what))
        };
        self.names.iter().map(line).collect()
    }
}

impl Inode {
    fn allows(&self, found: &What) -> bool {
        let (What::File(ours), What::File(theirs)) = (&self.what, found) else {
            return self.what == *found;
        };
        let may_lack = |at: usize| self.unsynced.iter().any(|range| range.contains(&at));
        theirs.len() <= ours.len()
            && (ours == theirs
                || (0..ours.len()).all(|at| match theirs.get(at) {
                    Some(byte) => *byte == ours[at] || (*byte == 0 && may_lack(at)),
                    None => may_lack(at),
                }))
    }
}

pub(super) fn outline(what: &What) -> String {
    match what {
        What::File(content) => {
            let hash = blake3::hash(content).to_hex();
            format!("{} bytes {}", content.len(), &hash.as_str()[..8])
        }
        What::Directory => "directory".to_owned(),
        What::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Content;
    use super::*;

    fn model(requests: &[Request]) -> Model {
        let mut model = Model::default();
        for request in requests {
            assert_eq!(model.apply(request), Some(()), "{request:?}");
        }
        model
    }

    fn file(content: &[u8], twin: &str, links: u32) -> Found {
        Found {
            what: What::File(content.to_vec()),
            xattrs: BTreeMap::new(),
            twin: twin.to_owned(),
            links,
        }
    }

    const WRITE: Request = Request::Write {
        path: "a",
        at: 2,
        content: Content { seed: 1, len: 3 },
    };

    #[test]
    fn only_what_is_open_and_not_synced_may_be_lacking() {
        let bytes = written();
        let whole = Tree::from([("a".to_owned(), file(&bytes, "a", 1))]);
        let mut torn = bytes.clone();
        torn[3] = 0;
        let short = file(&bytes[..4], "a", 1);
        let mut wrong = bytes.clone();
        wrong[0] = 7;
        let lacking = [file(&torn, "a", 1), short];
        let open = model(&[Request::Create("a"), WRITE]);
        let synced = model(&[Request::Create("a"), WRITE, Request::Fsync]);
        let closed = model(&[Request::Create("a"), WRITE, Request::Close]);
        for model in [&open, &synced, &closed] {
            assert!(model.allows(&whole));
            let tree = Tree::from([("a".to_owned(), file(&wrong, "a", 1))]);
            assert!(!model.allows(&tree) && !model.allows(&Tree::new()));
        }
        for found in lacking {
            let tree = Tree::from([("a".to_owned(), found)]);
            assert!(open.allows(&tree) && !synced.allows(&tree) && !closed.allows(&tree));
        }
    }

    fn written() -> Vec<u8> {
        let mut bytes = vec![0; 2];
        bytes.extend(Content { seed: 1, len: 3 }.bytes());
        assert!(bytes[2..].iter().all(|byte| *byte != 0));
        bytes
    }

    #[test]
    fn names_of_one_inode_are_one_file() {
        let linked = model(&[Request::Create("a"), Request::Link("a", "b")]);
        let tree = |twin: &str, links| {
            Tree::from([
                ("a".to_owned(), file(b"", "a", links)),
                ("b".to_owned(), file(b"", twin, links)),
            ])
        };
        assert!(linked.allows(&tree("a", 2)));
        assert!(!linked.allows(&tree("b", 2)) && !linked.allows(&tree("a", 1)));
    }

    #[test]
    fn what_posix_refuses_is_refused() {
        let base = [
            Request::Mkdir("d"),
            Request::Create("d/c"),
            Request::Create("a"),
        ];
        for request in [
            Request::Rmdir("d"),
            Request::Unlink("d"),
            Request::Mkdir("a"),
            Request::Rename("a", "d"),
            Request::Rename("d", "a"),
            Request::Rename("d", "d/e"),
            Request::Rename("x", "a"),
            Request::Create("x/y"),
            Request::Link("d", "e"),
            Request::Unlink("b"),
        ] {
            assert_eq!(model(&base).apply(&request), None, "{request:?}");
        }
        let mut moved = model(&base);
        moved.apply(&Request::Rename("d", "e")).unwrap();
        assert!(moved.names.contains_key("e/c") && !moved.names.contains_key("d/c"));
    }
}
