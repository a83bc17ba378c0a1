//! Whether two trees are the same: names, kinds, content, holes' content, modes, owners, times, links, attributes.
//!
//! Invariant: reports every difference it finds up to a bound, by path; reads both sides from the file system only.
//! Called by the round trip of `quickstart --check`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Differences reported at most: more say nothing new.
const MAX_REPORTED: usize = 20;
/// Bytes compared at a time.
const BLOCK: usize = 256 << 10;
/// Longest list or value of extended attributes, bytes (the kernel's own bound).
const MAX_XATTR: usize = 64 << 10;

/// What was compared and what differs.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Entries of the first tree.
    pub(super) entries: u64,
    /// Bytes of content compared.
    pub(super) bytes: u64,
    /// What differs, one line each.
    pub(super) differences: Vec<String>,
    /// Inode of the left tree to inode of the right one: hard links must be one inode on both sides.
    links: HashMap<u64, u64>,
}

/// Compares two directories and all below.
pub(super) fn compare(left: &Path, right: &Path) -> io::Result<Verdict> {
    let mut verdict = Verdict::default();
    directory(&mut verdict, left, right, Path::new(""))?;
    Ok(verdict)
}

impl Verdict {
    fn differs(&mut self, path: &Path, what: impl Into<String>) {
        if self.differences.len() < MAX_REPORTED {
            self.differences.push(format!(
                "{}: {}",
                path.display().to_string().escape_debug(),
                what.into()
            ));
        }
    }
}

fn directory(verdict: &mut Verdict, left: &Path, right: &Path, path: &Path) -> io::Result<()> {
    let (ours, theirs) = (names(&left.join(path))?, names(&right.join(path))?);
    for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
        verdict.differs(&path.join(name), "was not there before");
    }
    for name in ours.into_keys() {
        let inner = path.join(&name);
        verdict.entries += 1;
        if !theirs.contains_key(&name) {
            verdict.differs(&inner, "is missing");
            continue;
        }
        entry(verdict, left, right, &inner)?;
    }
    Ok(())
}

fn names(dir: &Path) -> io::Result<BTreeMap<OsString, ()>> {
    fs::read_dir(dir)?
        .map(|entry| Ok((entry?.file_name(), ())))
        .collect()
}

fn entry(verdict: &mut Verdict, left: &Path, right: &Path, path: &Path) -> io::Result<()> {
    let (a, b) = (left.join(path), right.join(path));
    let (ours, theirs) = (fs::symlink_metadata(&a)?, fs::symlink_metadata(&b)?);
    if ours.mode() != theirs.mode() {
        verdict.differs(
            path,
            format!("mode {:o} became {:o}", ours.mode(), theirs.mode()),
        );
        return Ok(());
    }
    for what in attributes(&ours, &theirs) {
        verdict.differs(path, what);
    }
    if xattrs(&a)? != xattrs(&b)? {
        verdict.differs(path, "extended attributes differ");
    }
    if !ours.is_dir() && ours.nlink() > 1 {
        let seen = *verdict.links.entry(ours.ino()).or_insert(theirs.ino());
        if seen != theirs.ino() {
            verdict.differs(path, "is no hard link to the same file any more");
        }
    }
    let kind = ours.file_type();
    if kind.is_dir() {
        return directory(verdict, left, right, path);
    }
    if kind.is_symlink() && fs::read_link(&a)? != fs::read_link(&b)? {
        verdict.differs(path, "points elsewhere");
    }
    if kind.is_file() && !kind.is_fifo() {
        verdict.bytes += ours.len();
        if let Some(at) = first_difference(&a, &b)? {
            verdict.differs(
                path,
                format!("content differs within {BLOCK} bytes of offset {at}"),
            );
        }
    }
    Ok(())
}

fn attributes(ours: &Metadata, theirs: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    let mut same = |what: &str, a: i128, b: i128| {
        if a != b {
            found.push(format!("{what} {a} became {b}"));
        }
    };
    same("owner", ours.uid().into(), theirs.uid().into());
    same("group", ours.gid().into(), theirs.gid().into());
    if !ours.is_dir() {
        same("link count", ours.nlink().into(), theirs.nlink().into());
        same("size", ours.len().into(), theirs.len().into());
    }
    let time =
        |meta: &Metadata| i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    same("modification time", time(ours), time(theirs));
    found
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0u8; MAX_XATTR];
    let len = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut found = BTreeMap::new();
    let mut value = vec![0u8; MAX_XATTR];
    // Only what a copy can carry: `security.` and our own state attributes are made by the file systems themselves.
    for name in list[..len]
        .split(|&b| b == 0)
        .filter(|name| name.starts_with(b"user."))
    {
        if name.starts_with(b"user.sealdrive.") {
            continue;
        }
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        found.insert(name.to_vec(), value[..len].to_vec());
    }
    Ok(found)
}

fn first_difference(a: &Path, b: &Path) -> io::Result<Option<u64>> {
    let open = |path: &Path| match File::open(path) {
        // Mode 000 and we are not root: its content is as private as it should be.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        other => other.map(Some),
    };
    let (Some(mut ours), Some(mut theirs)) = (open(a)?, open(b)?) else {
        return Ok(None);
    };
    let (mut one, mut two) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    loop {
        let (n, m) = (fill(&mut ours, &mut one)?, fill(&mut theirs, &mut two)?);
        if one[..n] != two[..m] {
            return Ok(Some(at));
        }
        if n < BLOCK {
            return Ok(None);
        }
        at += n as u64;
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {

    use super::super::made;
    use super::*;

    fn pair() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).expect("makes a");
        made::make(&a).expect("makes the tree");
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(&a)
            .arg(&b)
            .status()
            .expect("runs cp");
        assert!(copied.success());
        (dir, a, b)
    }

    #[test]
    fn a_copy_is_the_same_and_each_change_is_seen() {
        let (_dir, a, b) = pair();
        let verdict = compare(&a, &b).expect("compares");
        assert_eq!(verdict.differences, Vec::<String>::new());
        assert!(verdict.entries > 320 && verdict.bytes > 70 << 20);

        type Change = (&'static str, fn(&Path) -> io::Result<()>);
        let changes: [Change; 7] = [
            ("content differs", |b| {
                use std::os::unix::fs::FileExt;
                let path = b.join("big");
                let time = fs::metadata(&path)?.modified()?;
                let file = File::options().write(true).open(&path)?;
                file.write_all_at(b"?", 5 << 20)?;
                file.set_modified(time)
            }),
            ("is missing", |b| fs::remove_file(b.join("fifo"))),
            ("was not there", |b| fs::write(b.join("new"), b"")),
            ("hard link", |b| {
                let path = b.join("hard-b");
                let time = fs::metadata(&path)?.modified()?;
                fs::copy(&path, b.join("tmp"))?;
                fs::rename(b.join("tmp"), &path)?;
                File::options().write(true).open(&path)?.set_modified(time)
            }),
            ("points elsewhere", |b| {
                fs::remove_file(b.join("dangling"))?;
                std::os::unix::fs::symlink("no/such/thing", b.join("dangling"))
            }),
            ("modification time", |b| {
                let file = File::options().write(true).open(b.join("empty"))?;
                file.set_modified(std::time::UNIX_EPOCH)
            }),
            ("mode", |b| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(b.join("script"), fs::Permissions::from_mode(0o755))
            }),
        ];
        for (expected, change) in changes {
            let (_dir, a, b) = pair();
            change(&b).expect("changes the copy");
            let verdict = compare(&a, &b).expect("compares");
            assert!(
                verdict
                    .differences
                    .iter()
                    .any(|line| line.contains(expected)),
                "{expected}: {:?}",
                verdict.differences
            );
        }
    }
}
