//! Are two trees the same? Content, types, modes, owners, times to the nanosecond, extended attributes, link
//! structure and holes.
//!
//! Invariant: a difference is reported, never repaired or skipped; what is deliberately not compared is listed here:
//! atime (reading changes it), size and link count of directories (each file system's own), block numbers, and holes
//! smaller than a block. Called by the main job and the crash suites.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

/// Differences kept; a wrong tree has one for each file, and ten tell the story.
const MOST_TOLD: usize = 40;
/// Holes are compared in units of this many bytes: ext4's block, below which it knows no hole.
const BLOCK: u64 = 4096;
/// Buffer for content, bytes.
const BUFFER: usize = 256 << 10;

/// What a comparison saw.
#[derive(Debug, Default)]
pub struct Report {
    /// Directory entries compared.
    pub entries: u64,
    /// Bytes of content compared.
    pub bytes: u64,
    /// Differences found, told or not.
    pub count: u64,
    /// The first of them.
    pub differences: Vec<String>,
}

impl Report {
    /// Panics unless the trees were the same and had at least `entries` entries.
    #[track_caller]
    pub fn assert_same(&self, entries: u64) {
        assert!(
            self.count == 0,
            "{} differences:\n  {}",
            self.count,
            self.differences.join("\n  ")
        );
        assert!(
            self.entries >= entries,
            "only {} entries were compared",
            self.entries
        );
    }

    fn differ(&mut self, path: &Path, what: impl AsRef<str>) {
        self.count += 1;
        if self.differences.len() < MOST_TOLD {
            self.differences
                .push(format!("{}: {}", path.display(), what.as_ref()));
        }
    }
}

/// What two trees that were made by the same operations at different moments need not share.
#[derive(Debug, Clone, Copy)]
pub struct Care {
    /// Compare modification times.
    pub times: bool,
    /// Compare where holes are; without it a hole equals zeros.
    pub holes: bool,
}

/// Compares everything below two directories, and the directories themselves.
pub fn compare(left: &Path, right: &Path) -> io::Result<Report> {
    compare_with(
        Care {
            times: true,
            holes: true,
        },
        left,
        right,
    )
}

/// As `compare`, caring for less.
pub fn compare_with(care: Care, left: &Path, right: &Path) -> io::Result<Report> {
    let mut walk = Walk {
        care,
        report: Report::default(),
        links: BTreeMap::new(),
    };
    walk.pair(Path::new("."), left, right)?;
    Ok(walk.report)
}

struct Walk {
    care: Care,
    report: Report,
    /// Hard links: the first path of each (left device and inode), and the right inode that answered to it.
    links: BTreeMap<(u64, u64), (PathBuf, u64)>,
}

impl Walk {
    fn pair(&mut self, path: &Path, left: &Path, right: &Path) -> io::Result<()> {
        let (a, b) = (left.symlink_metadata()?, right.symlink_metadata()?);
        self.report.entries += 1;
        if a.file_type() != b.file_type() {
            self.report
                .differ(path, format!("{} against {}", kind(&a), kind(&b)));
            return Ok(());
        }
        self.attributes(path, &a, &b);
        self.xattrs(path, left, right)?;
        if !a.is_dir() {
            self.links(path, &a, &b);
        }
        if a.is_file() {
            self.content(path, left, right)?;
        } else if a.is_symlink() && left.read_link()? != right.read_link()? {
            self.report.differ(path, "the link points elsewhere");
        } else if a.is_dir() {
            for name in self.names(path, left, right)? {
                self.pair(&path.join(&name), &left.join(&name), &right.join(&name))?;
            }
        }
        Ok(())
    }

    fn attributes(&mut self, path: &Path, a: &Metadata, b: &Metadata) {
        let care = self.care;
        let mut check = |what: &str, a: i128, b: i128| {
            if a != b {
                self.report.differ(path, format!("{what} {a} against {b}"));
            }
        };
        check("mode", a.mode().into(), b.mode().into());
        check("uid", a.uid().into(), b.uid().into());
        check("gid", a.gid().into(), b.gid().into());
        if care.times {
            check("mtime", nanoseconds(a), nanoseconds(b));
        }
        check("rdev", a.rdev().into(), b.rdev().into());
        if !a.is_dir() {
            check("size", a.size().into(), b.size().into());
            check("link count", a.nlink().into(), b.nlink().into());
        }
    }

    /// The same inode on the left must be the same inode on the right, and another another.
    fn links(&mut self, path: &Path, a: &Metadata, b: &Metadata) {
        if a.nlink() < 2 && b.nlink() < 2 {
            return;
        }
        let (first, inode) = self
            .links
            .entry((a.dev(), a.ino()))
            .or_insert_with(|| (path.to_owned(), b.ino()))
            .clone();
        if inode != b.ino() {
            self.report
                .differ(path, format!("no longer a link to {}", first.display()));
        }
    }

    fn names(&mut self, path: &Path, left: &Path, right: &Path) -> io::Result<BTreeSet<OsString>> {
        let (a, b) = (names(left)?, names(right)?);
        for name in a.difference(&b) {
            self.report.differ(&path.join(name), "missing on the right");
        }
        for name in b.difference(&a) {
            self.report.differ(&path.join(name), "only on the right");
        }
        Ok(a.intersection(&b).cloned().collect())
    }

    fn xattrs(&mut self, path: &Path, left: &Path, right: &Path) -> io::Result<()> {
        let (a, b) = (xattrs(left)?, xattrs(right)?);
        for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
            if a.get(name) != b.get(name) {
                let side = |map: &BTreeMap<OsString, Vec<u8>>| {
                    map.get(name).map_or("none".into(), |v| v.len().to_string())
                };
                let (left, right) = (side(&a), side(&b));
                let name = name.display();
                self.report.differ(
                    path,
                    format!("xattr {name}: {left} against {right} bytes, or other bytes"),
                );
            }
        }
        Ok(())
    }

    fn content(&mut self, path: &Path, left: &Path, right: &Path) -> io::Result<()> {
        let (a, b) = (File::open(left)?, File::open(right)?);
        let (holes_a, holes_b) = (data_ranges(&a)?, data_ranges(&b)?);
        if self.care.holes && holes_a != holes_b {
            let first = holes_a
                .iter()
                .zip(&holes_b)
                .position(|(a, b)| a != b)
                .unwrap_or(0);
            let (a, b) = (holes_a.get(first), holes_b.get(first));
            self.report.differ(
                path,
                format!("holes: data range {first} is {a:?} against {b:?}"),
            );
        }
        // Only where either side has data: a hole of a terabyte is not read.
        let (mut x, mut y) = (vec![0; BUFFER], vec![0; BUFFER]);
        for (from, to) in holes_a
            .iter()
            .chain(holes_b.iter().filter(|range| !holes_a.contains(range)))
        {
            let mut at = *from;
            while at < *to {
                let step = (to - at).min(BUFFER as u64) as usize;
                let (n, m) = (fill(&a, &mut x[..step], at)?, fill(&b, &mut y[..step], at)?);
                if let Some(same) = x[..n].iter().zip(&y[..m]).position(|(a, b)| a != b) {
                    self.report.differ(
                        path,
                        format!("content differs from byte {}", at + same as u64),
                    );
                    return Ok(());
                }
                if n != m {
                    self.report.differ(
                        path,
                        format!("content ends at byte {}", at + n.min(m) as u64),
                    );
                    return Ok(());
                }
                if n == 0 {
                    break;
                }
                at += n as u64;
                self.report.bytes += n as u64;
            }
        }
        Ok(())
    }
}

fn nanoseconds(meta: &Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symbolic link",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}

fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    directory
        .read_dir()?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

/// Fills the buffer unless the file ends: two files are read in equal steps.
fn fill(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Extended attributes with their values. Left out: `security.*` (the kernel's own) and our state attribute.
pub fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut list = vec![0u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut all = BTreeMap::new();
    for name in list[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"security.") || name.starts_with(b"user.sealdrive.") {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let mut value = vec![0u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        all.insert(name.to_owned(), value);
    }
    Ok(all)
}

/// Where a file has data, as SEEK_DATA and SEEK_HOLE tell it, rounded outwards to blocks and joined.
pub fn data_ranges(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let size = file.metadata()?.len();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data))?;
        let (from, to) = (
            data / BLOCK * BLOCK,
            (hole.div_ceil(BLOCK) * BLOCK).min(size),
        );
        match ranges.last_mut() {
            Some(last) if last.1 >= from => last.1 = to,
            _ => ranges.push((from, to)),
        }
        at = hole.max(data + 1);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, FileTimes};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    type Change = fn(&Path) -> io::Result<()>;

    fn tree(root: &Path) -> io::Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        fs::create_dir_all(root.join("d"))?;
        fs::write(root.join("d/a"), vec![7u8; 300_000])?;
        fs::hard_link(root.join("d/a"), root.join("b"))?;
        fs::write(root.join("c"), b"")?;
        symlink("nowhere", root.join("l"))?;
        let sparse = File::create(root.join("s"))?;
        sparse.set_len(1 << 20)?;
        rustix::fs::setxattr(
            root.join("c"),
            "user.k",
            b"v",
            rustix::fs::XattrFlags::empty(),
        )?;
        for name in ["d/a", "c", "s"] {
            File::open(root.join(name))?.set_times(FileTimes::new().set_modified(time))?;
        }
        for name in ["d", "."] {
            File::open(root.join(name))?.set_times(FileTimes::new().set_modified(time))?;
        }
        rustix::fs::utimensat(
            rustix::fs::CWD,
            root.join("l"),
            &rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec {
                    tv_sec: 5,
                    tv_nsec: 0,
                },
                last_modification: rustix::fs::Timespec {
                    tv_sec: 5,
                    tv_nsec: 0,
                },
            },
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )?;
        Ok(())
    }

    fn change_time(path: &Path) -> io::Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_788);
        File::open(path)?.set_times(FileTimes::new().set_modified(time))
    }

    #[test]
    fn equal_trees_are_equal_and_each_difference_is_found() {
        let changes: &[(&str, Change)] = &[
            ("content", |r| {
                let time = r.join("d/a").metadata()?.modified()?;
                let mut bytes = fs::read(r.join("d/a"))?;
                bytes[299_999] ^= 1;
                fs::write(r.join("d/a"), bytes)?;
                File::open(r.join("d/a"))?.set_times(FileTimes::new().set_modified(time))
            }),
            ("mode", |r| {
                fs::set_permissions(r.join("c"), PermissionsExt::from_mode(0o600))
            }),
            ("one nanosecond", |r| change_time(&r.join("c"))),
            ("time of a directory", |r| change_time(&r.join("d"))),
            ("xattr", |r| {
                let flags = rustix::fs::XattrFlags::empty();
                Ok(rustix::fs::setxattr(r.join("c"), "user.k", b"w", flags)?)
            }),
            ("link broken", |r| {
                fs::copy(r.join("b"), r.join("x"))?;
                fs::rename(r.join("x"), r.join("b"))
            }),
            ("hole filled", |r| fs::write(r.join("s"), vec![0; 1 << 20])),
            ("missing", |r| fs::remove_file(r.join("l"))),
            ("extra", |r| fs::write(r.join("d/extra"), b"")),
        ];
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("left");
        tree(&left).unwrap();
        for (name, change) in changes {
            let right = dir.path().join("right");
            tree(&right).unwrap();
            compare(&left, &right).unwrap().assert_same(6);
            change(&right).unwrap();
            let report = compare(&left, &right).unwrap();
            assert!(report.count > 0, "{name} was not found");
            fs::remove_dir_all(&right).unwrap();
        }
    }

    #[test]
    fn a_kind_is_compared_before_anything_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/x")).unwrap();
        fs::create_dir_all(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/x"), b"").unwrap();
        let report = compare(&dir.path().join("a"), &dir.path().join("b")).unwrap();
        assert!(
            report
                .differences
                .iter()
                .any(|line| line.contains("directory against file")),
            "{report:?}"
        );
    }
}
