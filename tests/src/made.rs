//! Makes trees: the odd corners of a file system in one directory, and plain trees of many files.
//!
//! Invariant: the same seed makes the same bytes. Called by the suites and by the bench.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat,
};
use sealdrive_proto::limits::{AVG_CHUNK, MAX_CHUNK, MIN_CHUNK};

/// A stream of bytes that no compressor shortens; the same for the same seed.
pub struct Noise(blake3::OutputReader);

impl Noise {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self(
            blake3::Hasher::new()
                .update(&seed.to_le_bytes())
                .finalize_xof(),
        )
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        self.0.fill(&mut out);
        out
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        let mut eight = [0; 8];
        self.0.fill(&mut eight);
        u64::from_le_bytes(eight) % bound.max(1)
    }
}

/// What a file of this name and version holds: its own bytes, and no other's.
pub fn bytes_of(name: &str, version: u64, length: usize) -> Vec<u8> {
    let seed = name.bytes().fold(version, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    Noise::new(seed).bytes(length)
}

/// Text that compresses about as well as source code.
pub fn prose(seed: u64, length: usize) -> Vec<u8> {
    const WORDS: &[&str] = &[
        "static int",
        "return",
        "struct page *",
        "if (err)",
        "unsigned long",
        "goto out;",
        "spin_lock(&lock);",
        "->",
        "\n\t",
        "\n}\n\n",
        "/* the caller holds the lock */",
        "NULL",
        "0x",
        " = ",
        "const char *name",
        "(void)",
        "flags",
    ];
    let mut noise = Noise::new(seed);
    let mut out = Vec::with_capacity(length + 64);
    while out.len() < length {
        out.extend_from_slice(WORDS[noise.below(WORDS.len() as u64) as usize].as_bytes());
        if noise.below(4) == 0 {
            out.extend_from_slice(format!("{:x} ", noise.below(1 << 16)).as_bytes());
        }
    }
    out.truncate(length);
    out
}

/// Sets the modification time of a path, not following links.
pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let both = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(CWD, path, &both, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The odd corners: sizes at every limit, holes, links, names of any bytes, xattrs, modes, times, owners.
pub fn odd_tree(root: &Path, seed: u64) -> io::Result<()> {
    fs::create_dir_all(root)?;
    sizes(&root.join("sizes"), seed)?;
    sparse(&root.join("sparse"), seed)?;
    links(&root.join("links"))?;
    names(&root.join("names"))?;
    attributes(&root.join("attributes"))?;
    special(&root.join("special"))?;
    many(&root.join("many"), 1500)?;
    times(root)
}

/// Every length at which something changes: nothing, inline, a bucket, the shortest, mean and longest chunk.
fn sizes(dir: &Path, seed: u64) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let edges = [
        1,
        128,
        512,
        2048,
        4096,
        65_536,
        MIN_CHUNK,
        AVG_CHUNK,
        MAX_CHUNK,
        2 * MAX_CHUNK,
    ];
    fs::write(dir.join("0"), b"")?;
    for edge in edges {
        for length in [edge - 1, edge, edge + 1] {
            fs::write(
                dir.join(format!("noise-{length}")),
                Noise::new(seed ^ length as u64).bytes(length),
            )?;
            fs::write(
                dir.join(format!("prose-{length}")),
                prose(seed ^ length as u64, length),
            )?;
        }
    }
    fs::write(dir.join("zeros"), vec![0; 3 * MAX_CHUNK + 5])?;
    fs::write(dir.join("large"), Noise::new(seed).bytes(20 << 20))?;
    let twice = Noise::new(seed + 1).bytes(3 << 20);
    fs::write(dir.join("twin-1"), &twice)?;
    fs::write(dir.join("twin-2"), &twice)
}

fn sparse(dir: &Path, seed: u64) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut noise = Noise::new(seed ^ 77);
    File::create(dir.join("only-hole"))?.set_len(10 << 20)?;
    let ends = File::create(dir.join("hole-first"))?;
    ends.write_all_at(&noise.bytes(5000), 4 << 20)?;
    let tail = File::create(dir.join("hole-last"))?;
    tail.write_all_at(&noise.bytes(9000), 0)?;
    tail.set_len(7 << 20)?;
    let comb = File::create(dir.join("comb"))?;
    for tooth in 0..40u64 {
        comb.write_all_at(&noise.bytes(4096), tooth * 65_536)?;
    }
    // A byte far out: no implementation may walk what lies before it.
    File::create(dir.join("far"))?.write_all_at(b"x", 1 << 40)
}

fn links(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.join("deep/er"))?;
    fs::write(dir.join("one"), b"one inode, four names")?;
    for name in ["two", "deep/three", "deep/er/four"] {
        fs::hard_link(dir.join("one"), dir.join(name))?;
    }
    symlink("one", dir.join("to-file"))?;
    symlink("deep", dir.join("to-directory"))?;
    symlink("/nowhere/at/all", dir.join("dangling"))?;
    symlink("itself", dir.join("itself"))?;
    fs::hard_link(dir.join("dangling"), dir.join("dangling-again"))?;
    symlink("x".repeat(4095), dir.join("longest"))?;
    symlink(OsStr::from_bytes(b"bytes \xff\xfe\n"), dir.join("to-bytes"))
}

fn names(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let long = [b'n'; 255];
    let list: &[&[u8]] = &[
        b" ",
        b"-rf",
        b"new\nline",
        b"tab\t",
        b"\xff\xfe not utf-8",
        b"back\\slash",
        b"quo'te\"",
        b"*?[",
        b"...",
        b"~",
        "é precomposed".as_bytes(),
        "e\u{301} decomposed".as_bytes(),
        "日本語".as_bytes(),
        "\u{202e}rtl".as_bytes(),
        b"Case",
        b"case",
        b"\x01\x7f",
        &long,
    ];
    for (at, name) in list.iter().enumerate() {
        fs::write(dir.join(OsStr::from_bytes(name)), format!("name {at}"))?;
    }
    let mut deep = dir.join("deep");
    for level in 0..40 {
        deep.push(format!("level-{level:02}"));
    }
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("bottom"), b"far down")?;
    fs::create_dir_all(dir.join("empty"))
}

fn attributes(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.join("sub"))?;
    let flags = XattrFlags::empty();
    let file = dir.join("xattrs");
    fs::write(&file, b"x")?;
    setxattr(&file, "user.empty", b"", flags)?;
    setxattr(&file, "user.bytes", b"\x00\xff\n", flags)?;
    // Longer than a value in a tree node may be; ext4 gives one inode a block of 4 KiB for all of them.
    setxattr(&file, "user.long", &Noise::new(5).bytes(3000), flags)?;
    setxattr(dir.join("sub"), "user.on-directory", b"yes", flags)?;
    for number in 0..20 {
        setxattr(
            dir.join("sub"),
            format!("user.n{number}"),
            format!("v{number}").as_bytes(),
            flags,
        )?;
    }
    // POSIX ACL, version 2: owner rwx, user 1234 r--, group r-x, mask r-x, other ---.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 4, 1234),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    fs::write(dir.join("acl"), b"acl")?;
    setxattr(dir.join("acl"), "system.posix_acl_access", &acl, flags)?;
    setxattr(dir.join("sub"), "system.posix_acl_default", &acl, flags)?;
    for mode in [
        0o000, 0o400, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711,
    ] {
        let path = dir.join(format!("mode-{mode:04o}"));
        fs::write(&path, format!("{mode:o}"))?;
        fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
    }
    fs::create_dir(dir.join("read-only"))?;
    fs::write(dir.join("read-only/inside"), b"inside")?;
    fs::set_permissions(dir.join("read-only"), PermissionsExt::from_mode(0o555))?;
    fs::set_permissions(dir.join("sub"), PermissionsExt::from_mode(0o3770))?;
    if rustix::process::geteuid().is_root() {
        fs::write(dir.join("owned"), b"owned")?;
        chown(dir.join("owned"), Some(4_000_000_000), Some(12_345))?;
        symlink("owned", dir.join("owned-link"))?;
        lchown(dir.join("owned-link"), Some(7), Some(8))?;
        setxattr(dir.join("owned"), "trusted.t", b"trusted", flags)?;
    }
    Ok(())
}

fn special(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    mknodat(
        CWD,
        dir.join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )?;
    mknodat(
        CWD,
        dir.join("socket"),
        FileType::Socket,
        Mode::from_raw_mode(0o600),
        0,
    )?;
    if rustix::process::geteuid().is_root() {
        let null = rustix::fs::makedev(1, 3);
        mknodat(
            CWD,
            dir.join("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            null,
        )?;
        let loop_device = rustix::fs::makedev(7, 200);
        mknodat(
            CWD,
            dir.join("loop"),
            FileType::BlockDevice,
            Mode::from_raw_mode(0o600),
            loop_device,
        )?;
    }
    Ok(())
}

/// `count` small files in one directory.
pub fn many(dir: &Path, count: u64) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for number in 0..count {
        let mut file = File::create(dir.join(format!("{number:06}")))?;
        file.write_all(&prose(number, (number * 37 % 6000) as usize))?;
    }
    Ok(())
}

/// Times last: making anything changes its directory's.
fn times(root: &Path) -> io::Result<()> {
    set_mtime(&root.join("sizes/noise-1"), -1_000_000, 1)?;
    set_mtime(&root.join("sizes/noise-2"), 4_000_000_000, 999_999_999)?;
    set_mtime(&root.join("sizes/noise-127"), 0, 0)?;
    set_mtime(&root.join("links/dangling"), 1_234_567_890, 123_456_789)?;
    set_mtime(&root.join("special/fifo"), 1_000_000_000, 7)?;
    set_mtime(&root.join("names"), 1_111_111_111, 111_111_111)?;
    set_mtime(&root.join("sizes"), 1_600_000_000, 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::compare;

    #[test]
    fn the_odd_tree_survives_cp_on_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        odd_tree(&left, 1).unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([&left, &right])
            .status()
            .unwrap();
        assert!(copied.success());
        compare(&left, &right).unwrap().assert_same(1600);
    }

    #[test]
    fn the_same_seed_makes_the_same_bytes() {
        assert_eq!(Noise::new(3).bytes(100), Noise::new(3).bytes(100));
        assert_ne!(Noise::new(3).bytes(100), Noise::new(4).bytes(100));
        assert_eq!(prose(9, 1000), prose(9, 1000));
    }
}
