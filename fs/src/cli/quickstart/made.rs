//! A small tree with everything that copies tend to lose, for the round trip of `quickstart --check`.
//!
//! Invariant: the same bytes and times at every run, except that inode numbers differ. Called by the round trip.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{
    CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat,
};

/// Bytes of the largest made file: several chunks.
const BIG: usize = 6 << 20;

/// Makes the tree in `dir`, which must exist and be empty.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    contents(dir)?;
    names(dir)?;
    kinds(dir)?;
    times(dir)
}

fn contents(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("empty"), b"")?;
    fs::write(dir.join("one-byte"), b"x")?;
    fs::write(dir.join("inline-sized"), vec![b'i'; 900])?;
    fs::write(dir.join("page"), vec![b'p'; 4096])?;
    fs::write(dir.join("zeros"), vec![0u8; 1 << 20])?;
    fs::write(dir.join("big"), noise(1, BIG))?;
    // The same content twice is stored once; both must come back.
    fs::write(dir.join("big-again"), noise(1, BIG))?;
    let many = dir.join("many");
    fs::create_dir(&many)?;
    for number in 0..300u32 {
        fs::write(
            many.join(format!("file-{number:03}")),
            noise(number, 17 * number as usize),
        )?;
    }
    // 64 MiB long, with data only in its middle and at its end.
    let sparse = File::create(dir.join("sparse"))?;
    sparse.set_len(64 << 20)?;
    sparse.write_all_at(b"middle", 33 << 20)?;
    sparse.write_all_at(b"end", (64 << 20) - 3)
}

fn names(dir: &Path) -> io::Result<()> {
    let odd = dir.join("odd names");
    fs::create_dir(&odd)?;
    let longest = "n".repeat(255);
    let names: [&[u8]; 8] = [
        b"line\nbreak",
        b"\xff\xfe not UTF-8",
        b"-rf",
        b" leading and trailing ",
        b"quote'\"back\\slash",
        "e\u{301} decomposed".as_bytes(),
        "\u{e9} composed".as_bytes(),
        longest.as_bytes(),
    ];
    for name in names {
        let mut file = File::create(odd.join(std::ffi::OsStr::from_bytes(name)))?;
        file.write_all(name)?;
    }
    fs::create_dir_all(dir.join("deep").join(vec!["d"; 60].join("/")))
}

fn kinds(dir: &Path) -> io::Result<()> {
    symlink("no/such/place", dir.join("dangling"))?;
    symlink("empty", dir.join("link"))?;
    symlink("x".repeat(4000), dir.join("long-link"))?;
    mknodat(
        CWD,
        dir.join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )?;
    fs::write(dir.join("hard-a"), b"one inode, three names")?;
    fs::hard_link(dir.join("hard-a"), dir.join("hard-b"))?;
    fs::hard_link(dir.join("hard-a"), dir.join("deep").join("hard-c"))?;
    fs::write(dir.join("script"), b"#!/bin/sh\n")?;
    fs::set_permissions(dir.join("script"), fs::Permissions::from_mode(0o751))?;
    fs::write(dir.join("unreadable"), b"mode 000")?;
    fs::set_permissions(dir.join("unreadable"), fs::Permissions::from_mode(0o000))?;
    fs::create_dir(dir.join("sticky"))?;
    fs::set_permissions(dir.join("sticky"), fs::Permissions::from_mode(0o1777))?;
    fs::write(dir.join("tagged"), b"has extended attributes")?;
    for (name, value) in [
        ("user.colour", &b"green"[..]),
        ("user.bytes", &[0, 255, 10]),
        ("user.none", b""),
    ] {
        // A file system without user attributes (tmpfs of an older kernel) has none to lose.
        let _ = setxattr(dir.join("tagged"), name, value, XattrFlags::empty());
    }
    Ok(())
}

fn times(dir: &Path) -> io::Result<()> {
    let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let cases = [
        ("page", at(1, 1)),
        ("one-byte", at(-5, 999_999_999)),
        ("zeros", at(4_102_444_800, 123_456_789)),
    ];
    for (name, time) in cases {
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, dir.join(name), &times, rustix::fs::AtFlags::empty())?;
    }
    Ok(())
}

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}
