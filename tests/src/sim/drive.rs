//! A mounted drive as the kernel would use it, with paths of one level instead of inodes.
//!
//! Invariant: what needs the network is asked for again until it comes: a workload waits, it does not give up. Called
//! by `world.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use sealdrive::drive::{
    Answer, Cred, Drive, DriveError, Handle, NewNode, PlanPiece, RenameRule, SetAttr,
};
use sealdrive::engine::{BlobError, Engine};
use sealdrive_core::record::{FileKind, Ino, ROOT, Time};
use sealdrive_core::reference::Reference;
use sealdrive_runtime::time;

const ME: Cred = Cred {
    uid: 1000,
    gid: 1000,
    pid: 1,
};
/// Attempts at one object before the world is called broken: hours of virtual time.
const PATIENCE: usize = 500;

/// The kernel's clock. One that stood still would let a file that is renamed and back again pass for one that was never
/// touched.
fn now() -> Time {
    let since = time::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time {
        secs: since.as_secs() as i64,
        nanos: since.subsec_nanos(),
    }
}

/// Every file by name.
pub(super) type Tree = BTreeMap<String, Arc<Vec<u8>>>;

pub(super) struct Mounted(pub(super) Engine);

fn patiently<T>(mut attempt: impl FnMut() -> Result<T, BlobError>) -> T {
    let mut last = None;
    for _ in 0..PATIENCE {
        match attempt() {
            Ok(value) => return value,
            Err(error) => last = Some(error),
        }
        sealdrive_runtime::thread::sleep(Duration::from_secs(1));
    }
    panic!("an object does not come: {last:?}");
}

impl Mounted {
    fn op<T>(&self, mut f: impl FnMut(&Drive) -> Answer<T>) -> Answer<T> {
        loop {
            match f(self.0.drive()) {
                Err(DriveError::Missing(node)) => {
                    patiently(|| self.0.node(&node, time::now() + Duration::from_secs(40)));
                }
                done => return done,
            }
        }
    }

    fn ino(&self, name: &str) -> Answer<Ino> {
        Ok(self.op(|d| d.lookup(ROOT, name.as_bytes()))?.ino)
    }

    pub(super) fn create(&self, name: &str) -> Answer<Handle> {
        let new = NewNode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0o022,
            rdev: 0,
        };
        let made = self.op(|d| d.create(ROOT, name.as_bytes(), new, ME, now()));
        Ok(made?.1)
    }

    pub(super) fn open(&self, name: &str) -> Answer<Handle> {
        let ino = self.ino(name)?;
        self.op(|d| d.open(ino, true))
    }

    pub(super) fn release(&self, handle: Handle) {
        self.0.drive().release(handle);
    }

    pub(super) fn write(&self, name: &str, off: u64, data: &[u8]) -> Answer<()> {
        let ino = self.ino(name)?;
        self.op(|d| d.write(ino, off, data, false, now())).map(drop)
    }

    pub(super) fn truncate(&self, name: &str, size: u64) -> Answer<()> {
        let ino = self.ino(name)?;
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.op(|d| d.setattr(ino, set, now())).map(drop)
    }

    pub(super) fn unlink(&self, name: &str) -> Answer<()> {
        self.op(|d| d.unlink(ROOT, name.as_bytes(), now()))
            .map(drop)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Answer<()> {
        let rule = RenameRule::Replace;
        self.op(|d| d.rename(ROOT, from.as_bytes(), ROOT, to.as_bytes(), rule, now()))
            .map(drop)
    }

    fn chunk(&self, reference: &Reference) -> Bytes {
        patiently(|| {
            self.0
                .chunk(reference, time::now() + Duration::from_secs(40))
        })
    }

    fn read(&self, name: &str) -> Answer<Vec<u8>> {
        let ino = self.ino(name)?;
        let plan = self.op(|d| d.read_plan(ino, 0, u64::MAX))?;
        let mut out = Vec::new();
        for piece in plan.pieces {
            match piece {
                PlanPiece::Memory(bytes) => out.extend_from_slice(&bytes),
                PlanPiece::Zero(len) => out.resize(out.len() + len as usize, 0),
                PlanPiece::Chunk {
                    reference,
                    skip,
                    len,
                } => {
                    let chunk = self.chunk(&reference);
                    out.extend_from_slice(&chunk[skip as usize..][..len as usize]);
                }
            }
        }
        Ok(out)
    }

    /// Every file under the root, read through.
    pub(super) fn tree(&self) -> Answer<Tree> {
        let handle = self.op(|d| d.opendir(ROOT))?;
        let mut names = Vec::new();
        self.op(|d| {
            names.clear();
            d.readdir(handle, 0, |entry| {
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                true
            })
        })?;
        self.0.drive().releasedir(handle);
        let files = names.into_iter().filter(|name| name != "." && name != "..");
        files
            .map(|name| {
                let content = Arc::new(self.read(&name)?);
                Ok((name, content))
            })
            .collect()
    }
}
