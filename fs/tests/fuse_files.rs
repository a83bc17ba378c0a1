//! Content of files through a real mount: writing, reading, holes, copies, mappings, times, set-id bits.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod double;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use double::mounted::Mounted;
use rustix::fs::{
    AtFlags, FallocateFlags, SeekFrom as RustixSeek, Timespec, Timestamps, fallocate, seek,
};

/// Bytes that differ everywhere, so that a piece in the wrong place is seen.
fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&[seed]).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("the file opens")
}

#[test]
fn what_was_written_is_read_back_from_chunks_and_nodes() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    for (name, len) in [
        ("empty", 0),
        ("tiny", 5),
        ("page", 4096),
        ("odd", 100_001),
        ("large", 3_000_000),
    ] {
        let content = noise(len, 1);
        fs::write(mount.at(name), &content).unwrap();
        assert!(
            fs::read(mount.at(name)).unwrap() == content,
            "{name} before writeback"
        );
    }
    mount.settle();
    for (name, len) in [
        ("empty", 0),
        ("tiny", 5),
        ("page", 4096),
        ("odd", 100_001),
        ("large", 3_000_000),
    ] {
        assert!(
            fs::read(mount.at(name)).unwrap() == noise(len, 1),
            "{name} after writeback"
        );
    }
    let file = open(&mount.at("large"));
    file.write_all_at(b"in the middle", 1_234_567).unwrap();
    drop(file);
    mount.settle();
    let mut expected = noise(3_000_000, 1);
    expected[1_234_567..][..13].copy_from_slice(b"in the middle");
    assert!(
        fs::read(mount.at("large")).unwrap() == expected,
        "an overwrite inside a chunk"
    );
    mount.end();
}

#[test]
fn truncating_and_growing_leaves_zeros_and_never_old_bytes() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let file = open(&mount.at("f"));
    file.write_all_at(&noise(10_000, 2), 0).unwrap();
    mount.settle();
    file.set_len(100).unwrap();
    file.set_len(10_000).unwrap();
    let mut content = vec![1; 10_000];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content[..100], noise(10_000, 2)[..100]);
    assert!(content[100..].iter().all(|&byte| byte == 0));
    drop(
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(mount.at("f"))
            .unwrap(),
    );
    assert_eq!(file.metadata().unwrap().len(), 0);
    drop(file);
    mount.end();
}

#[test]
fn two_appenders_do_not_overwrite_each_other() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let append = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(mount.at("log"))
            .unwrap()
    };
    let (mut one, mut two) = (append(), append());
    for _ in 0..100 {
        one.write_all(b"one\n").unwrap();
        two.write_all(b"two\n").unwrap();
    }
    drop((one, two));
    mount.settle();
    assert_eq!(
        fs::read_to_string(mount.at("log")).unwrap(),
        "one\ntwo\n".repeat(100)
    );
    mount.end();
}

#[test]
fn direct_io_and_cached_io_see_each_other() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    // O_DIRECT.
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(0o40000)
        .open(mount.at("d"))
        .unwrap();
    let content = noise(64 << 10, 3);
    direct.write_all_at(&content, 0).unwrap();
    assert!(fs::read(mount.at("d")).unwrap() == content);
    let cached = open(&mount.at("d"));
    cached.write_all_at(b"cached", 8192).unwrap();
    let mut block = vec![0; 4096];
    direct.read_exact_at(&mut block, 8192).unwrap();
    assert_eq!(&block[..6], b"cached");
    // What passes by the kernel's pages is dated by the drive: the kernel has no time for it.
    direct.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    direct.write_all_at(&content[..4096], 0).unwrap();
    let ino = direct.metadata().unwrap().ino();
    let dated = mount.double.drive.getattr(ino).unwrap().mtime;
    assert!(dated.secs > 1_000_000_000, "{dated:?}");
    drop((direct, cached));
    mount.end();
}

/// A copy of a file that is still being written had holes where the data was: the kernel asks for data and holes
/// without sending its dirty pages first.
#[test]
fn data_still_in_the_kernel_is_not_taken_for_a_hole() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let file = open(&mount.at("sparse"));
    file.write_all_at(&[7; 4096], 1 << 20).unwrap();
    assert_eq!(seek(&file, RustixSeek::Data(0)).unwrap(), 1 << 20);
    assert_eq!(
        seek(&file, RustixSeek::Hole(1 << 20)).unwrap(),
        (1 << 20) + 4096
    );
    file.write_all_at(&[7; 4096], 4 << 20).unwrap();
    assert_eq!(
        seek(&file, RustixSeek::Data((1 << 20) + 4096)).unwrap(),
        4 << 20
    );
    assert!(seek(&file, RustixSeek::Data(5 << 20)).is_err());
    drop(file);
    mount.settle();
    let mut file = File::open(mount.at("sparse")).unwrap();
    assert_eq!(seek(&file, RustixSeek::Data(0)).unwrap(), 1 << 20);
    assert!(
        file.metadata().unwrap().blocks() * 512 < 1 << 20,
        "holes take no space"
    );
    file.seek(SeekFrom::Start((1 << 20) - 10)).unwrap();
    let mut edge = [9; 20];
    file.read_exact(&mut edge).unwrap();
    assert_eq!(
        edge,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]
    );
    drop(file);
    mount.end();
}

#[test]
fn punching_and_zeroing() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let file = open(&mount.at("p"));
    file.write_all_at(&[5; 100_000], 0).unwrap();
    mount.settle();
    let before = file.metadata().unwrap().blocks();
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        8192,
        40_960,
    )
    .unwrap();
    assert!(file.metadata().unwrap().blocks() < before);
    assert_eq!(seek(&file, RustixSeek::Hole(0)).unwrap(), 8192);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 90_000, 20_000).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 200_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 200_000);
    let content = fs::read(mount.at("p")).unwrap();
    let data =
        |range: std::ops::Range<usize>, byte| content[range].iter().all(|&found| found == byte);
    assert!(
        data(0..8192, 5)
            && data(8192..49_152, 0)
            && data(49_152..90_000, 5)
            && data(90_000..200_000, 0)
    );
    let collapse = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(rustix::io::Errno::OPNOTSUPP));
    drop(file);
    mount.end();
}

/// Names the file to the process that maps it.
const MAPPED: &str = "SEALDRIVE_TEST_MAPPED";

/// Runs in a process of its own: munmap waits for writeback with the process's memory locked, so the process that
/// serves a mount must never map a file of it.
#[test]
#[allow(
    unsafe_code,
    reason = "a mapping is what is tested; the file is not truncated while it stands"
)]
fn mapping_process() {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    let Some(path) = std::env::var_os(MAPPED) else {
        return;
    };
    let file = open(Path::new(&path));
    file.set_len(1 << 20).unwrap();
    unsafe {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let map = mmap(
            std::ptr::null_mut(),
            1 << 20,
            both,
            MapFlags::SHARED,
            &file,
            0,
        )
        .unwrap();
        let bytes = std::slice::from_raw_parts_mut(map.cast::<u8>(), 1 << 20);
        bytes[500_000..500_007].copy_from_slice(b"mapping");
        file.write_all_at(b"written", 700_000).unwrap();
        assert_eq!(&bytes[700_000..700_007], b"written");
        msync(map, 1 << 20, MsyncFlags::SYNC).unwrap();
        bytes[900_000] = 1;
        munmap(map, 1 << 20).unwrap();
    }
}

#[test]
fn a_shared_mapping_is_the_file() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mapping_process"])
        .env(MAPPED, mount.at("m"))
        .status()
        .unwrap();
    assert!(status.success());
    mount.settle();
    let content = fs::read(mount.at("m")).unwrap();
    assert_eq!(
        (&content[500_000..500_007], content[900_000]),
        (&b"mapping"[..], 1)
    );
    mount.end();
}

#[test]
fn an_open_file_lives_after_its_name() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let file = open(&mount.at("gone"));
    file.write_all_at(&noise(500_000, 4), 0).unwrap();
    mount.settle();
    fs::remove_file(mount.at("gone")).unwrap();
    assert!(!mount.at("gone").exists());
    file.write_all_at(b"after", 500_000).unwrap();
    mount.settle();
    let mut content = vec![0; 500_005];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content[..500_000] == noise(500_000, 4)[..] && &content[500_000..] == b"after");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop(file);
    mount.end();
}

#[test]
fn copies_inside_the_drive() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("from"), noise(1_000_000, 5)).unwrap();
    let (from, to) = (File::open(mount.at("from")).unwrap(), open(&mount.at("to")));
    let (mut at, mut into) = (1000, 5000);
    let mut left = 900_000;
    while left > 0 {
        let copied =
            rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), left).unwrap();
        assert!(copied > 0);
        left -= copied;
    }
    drop((from, to));
    mount.settle();
    let content = fs::read(mount.at("to")).unwrap();
    assert!(content[..5000].iter().all(|&byte| byte == 0));
    assert!(content[5000..] == noise(1_000_000, 5)[1000..901_000]);
    mount.end();
}

#[test]
fn set_id_bits_do_not_survive_a_write_by_a_stranger() {
    let Some(mount) = Mounted::new("suid,allow_other") else {
        return;
    };
    fs::set_permissions(mount.path(), Permissions::from_mode(0o755)).unwrap();
    let path = mount.at("tool");
    let mode = || fs::symlink_metadata(&path).unwrap().mode() & 0o7777;
    let reset = || {
        fs::write(&path, "content").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
    };
    let stranger = |script: &str| {
        let status = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&path)
            .uid(65534)
            .gid(65534)
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    };
    reset();
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"root")
        .unwrap();
    assert_eq!(mode(), 0o6777, "root keeps them");
    stranger("echo x >> \"$1\"");
    assert_eq!(mode(), 0o777, "append");
    reset();
    stranger(": > \"$1\"");
    assert_eq!(mode(), 0o777, "truncate at open");
    reset();
    stranger("truncate -s 3 \"$1\"");
    assert_eq!(mode(), 0o777, "truncate");
    reset();
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    assert_eq!(mode() & 0o4000, 0, "chown");
    mount.end();
}

#[test]
fn times_to_the_nanosecond_and_before_1970() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("t"), "").unwrap();
    for (secs, nanos) in [
        (0, 0),
        (1_234_567_890, 123_456_789),
        (-3, 250_000_000),
        (-7, 0),
        (5_000_000_000, 1),
    ] {
        let time = Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(rustix::fs::CWD, mount.at("t"), &times, AtFlags::empty()).unwrap();
        mount.settle();
        let meta = fs::metadata(mount.at("t")).unwrap();
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (secs, i64::from(nanos as i32)),
            "modified"
        );
        assert_eq!(
            (meta.atime(), meta.atime_nsec()),
            (secs, i64::from(nanos as i32)),
            "accessed"
        );
    }
    mount.end();
}

/// The kernel keeps the times of pages that it keeps, and sends them on their own; of what goes straight through, the
/// drive does.
#[test]
fn kept_pages_come_without_a_time_and_what_goes_past_them_with_one() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let long_ago = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 7,
    };
    let times = Timestamps {
        last_access: long_ago,
        last_modification: long_ago,
    };
    // What the drive has, not what the kernel says of it.
    let modified = |file: &File| {
        let ino = file.metadata().unwrap().ino();
        mount.double.drive.getattr(ino).unwrap().mtime.secs
    };
    let kept = open(&mount.at("kept"));
    kept.write_all_at(&noise(100_000, 6), 0).unwrap();
    rustix::fs::futimens(&kept, &times).unwrap();
    kept.sync_all().unwrap();
    assert_eq!(modified(&kept), long_ago.tv_sec);
    let straight = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
        .open(mount.at("straight"))
        .unwrap();
    rustix::fs::futimens(&straight, &times).unwrap();
    assert_eq!(modified(&straight), long_ago.tv_sec);
    straight.write_all_at(&noise(4096, 7), 0).unwrap();
    assert!(modified(&straight) > long_ago.tv_sec);
    drop((kept, straight));
    mount.end();
}

#[test]
fn locks_exclude_each_other() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let file = open(&mount.at("lock"));
    file.lock().unwrap();
    let other = open(&mount.at("lock"));
    assert!(other.try_lock().is_err(), "a lock held is a lock held");
    file.unlock().unwrap();
    other.try_lock().unwrap();
    drop((file, other));
    mount.end();
}
