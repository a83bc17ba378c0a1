//! Names through a real mount: directories, renames, links, special files, attributes, listings.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod double;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use double::mounted::Mounted;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, makedev, mknodat, renameat_with};
use rustix::io::Errno;

#[test]
fn directories_come_and_go_by_the_rules() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::create_dir_all(mount.at("a/b/c")).unwrap();
    assert_eq!(fs::metadata(mount.at("a")).unwrap().nlink(), 3);
    assert_eq!(
        fs::remove_dir(mount.at("a/b")).unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
    assert_eq!(
        fs::create_dir(mount.at("a")).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    let code = |result: std::io::Result<fs::Metadata>| result.unwrap_err().raw_os_error();
    assert_eq!(
        code(fs::metadata(mount.at(&"n".repeat(256)))),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
    assert_eq!(
        code(fs::metadata(mount.at("absent"))),
        Some(Errno::NOENT.raw_os_error())
    );
    // An absence the kernel remembers must end with the name's creation.
    fs::write(mount.at("absent"), "now here").unwrap();
    assert_eq!(fs::read_to_string(mount.at("absent")).unwrap(), "now here");
    fs::write(mount.at(&"n".repeat(255)), "long").unwrap();
    mount.settle();
    assert_eq!(
        fs::read_to_string(mount.at(&"n".repeat(255))).unwrap(),
        "long"
    );
    fs::remove_dir(mount.at("a/b/c")).unwrap();
    fs::remove_dir(mount.at("a/b")).unwrap();
    assert_eq!(fs::metadata(mount.at("a")).unwrap().nlink(), 2);
    mount.end();
}

#[test]
fn renames_replace_refuse_or_exchange() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let rename =
        |from: &str, to: &str, flags| renameat_with(CWD, mount.at(from), CWD, mount.at(to), flags);
    fs::write(mount.at("one"), "1").unwrap();
    fs::write(mount.at("two"), "2").unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    assert_eq!(
        rename("one", "two", RenameFlags::NOREPLACE),
        Err(Errno::EXIST)
    );
    rename("one", "two", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(mount.at("one")).unwrap(), "2");
    rename("two", "dir/moved", RenameFlags::NOREPLACE).unwrap();
    mount.settle();
    assert_eq!(fs::read_to_string(mount.at("dir/moved")).unwrap(), "1");
    rename("one", "dir/moved", RenameFlags::empty()).unwrap();
    assert_eq!(fs::read_to_string(mount.at("dir/moved")).unwrap(), "2");
    assert_eq!(
        rename("dir", "dir/inside", RenameFlags::empty()),
        Err(Errno::INVAL)
    );
    assert_eq!(
        rename("dir/moved", "x", RenameFlags::WHITEOUT),
        Err(Errno::INVAL)
    );
    mount.end();
}

#[test]
fn links_of_both_kinds() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("file"), "content").unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    fs::hard_link(mount.at("file"), mount.at("dir/also")).unwrap();
    symlink("../file", mount.at("dir/soft")).unwrap();
    symlink("x".repeat(4095), mount.at("long")).unwrap();
    mount.settle();
    let (file, also) = (
        fs::metadata(mount.at("file")).unwrap(),
        fs::metadata(mount.at("dir/also")).unwrap(),
    );
    assert_eq!((file.ino(), file.nlink()), (also.ino(), 2));
    fs::remove_file(mount.at("file")).unwrap();
    assert_eq!(fs::read_to_string(mount.at("dir/also")).unwrap(), "content");
    assert_eq!(fs::metadata(mount.at("dir/also")).unwrap().nlink(), 1);
    assert_eq!(
        fs::read_link(mount.at("dir/soft")).unwrap(),
        Path::new("../file")
    );
    assert_eq!(
        fs::read_link(mount.at("long")).unwrap().as_os_str().len(),
        4095
    );
    assert_eq!(
        fs::metadata(mount.at("dir/soft")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    mount.end();
}

#[test]
fn pipes_sockets_and_devices() {
    let Some(mount) = Mounted::new("dev") else {
        return;
    };
    let make = |name: &str, kind, device| {
        mknodat(CWD, mount.at(name), kind, Mode::from(0o640), device).unwrap()
    };
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    make("null", FileType::CharacterDevice, makedev(1, 3));
    make("loop", FileType::BlockDevice, makedev(7, 300));
    mount.settle();
    let meta = |name: &str| fs::symlink_metadata(mount.at(name)).unwrap();
    assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
    assert_eq!(meta("null").rdev(), makedev(1, 3));
    assert_eq!(meta("loop").rdev(), makedev(7, 300), "a minor above 255");
    assert_eq!(meta("fifo").mode() & 0o7777, 0o640);
    assert_eq!(
        fs::read(mount.at("null")).unwrap(),
        b"",
        "the device works with -o dev"
    );
    mount.end();
}

#[test]
fn devices_do_nothing_by_default() {
    let Some(mount) = Mounted::new("rw") else {
        return;
    };
    mknodat(
        CWD,
        mount.at("null"),
        FileType::CharacterDevice,
        Mode::from(0o666),
        makedev(1, 3),
    )
    .unwrap();
    assert_eq!(
        fs::read(mount.at("null")).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    mount.end();
}

#[test]
fn extended_attributes() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let path = mount.at("file");
    fs::write(&path, "").unwrap();
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    let get = |name: &str| {
        let mut value = vec![0; 64 << 10];
        rustix::fs::getxattr(&path, name, &mut value[..]).map(|len| value[..len].to_vec())
    };
    set("user.a", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(set("user.a", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set("user.b", b"2", XattrFlags::REPLACE), Err(Errno::NODATA));
    let long = vec![7; 60_000];
    set("user.long", &long, XattrFlags::empty()).unwrap();
    set("user.empty", b"", XattrFlags::empty()).unwrap();
    mount.settle();
    assert_eq!(
        (get("user.a"), get("user.empty")),
        (Ok(b"1".to_vec()), Ok(vec![]))
    );
    assert_eq!(get("user.long"), Ok(long));
    assert_eq!(
        rustix::fs::getxattr(&path, "user.long", &mut [0u8; 10][..]),
        Err(Errno::RANGE)
    );
    rustix::fs::removexattr(&path, "user.a").unwrap();
    assert_eq!(get("user.a"), Err(Errno::NODATA));
    let mut names = vec![0u8; 1000];
    let len = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
    let names: BTreeSet<&[u8]> = names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    assert_eq!(names, BTreeSet::from([&b"user.long"[..], b"user.empty"]));
    mount.end();
}

/// The list of acl(5) as the kernel passes it: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn default_lists_are_inherited_instead_of_the_umask() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let dir = mount.at("shared");
    fs::create_dir(&dir).unwrap();
    const NONE: u32 = u32::MAX;
    let list = acl(&[
        (1, 7, NONE),
        (2, 7, 1234),
        (4, 5, NONE),
        (0x10, 7, NONE),
        (0x20, 0, NONE),
    ]);
    rustix::fs::setxattr(&dir, "system.posix_acl_default", &list, XattrFlags::empty()).unwrap();
    let script = "umask 077; echo x > \"$1/file\"; mkdir \"$1/sub\"";
    assert!(
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&dir)
            .status()
            .unwrap()
            .success()
    );
    mount.settle();
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().mode() & 0o777;
    assert_eq!(mode("file"), 0o660, "by the list, not by the umask");
    assert_eq!(mode("sub"), 0o770);
    let mut value = [0; 256];
    let access =
        rustix::fs::getxattr(dir.join("file"), "system.posix_acl_access", &mut value[..]).unwrap();
    assert_eq!(
        value[..access],
        acl(&[
            (1, 6, NONE),
            (2, 7, 1234),
            (4, 5, NONE),
            (0x10, 6, NONE),
            (0x20, 0, NONE)
        ])
    );
    let inherited =
        rustix::fs::getxattr(dir.join("sub"), "system.posix_acl_default", &mut value[..]).unwrap();
    assert_eq!(value[..inherited], list);
    fs::set_permissions(dir.join("file"), Permissions::from_mode(0o600)).unwrap();
    let access =
        rustix::fs::getxattr(dir.join("file"), "system.posix_acl_access", &mut value[..]).unwrap();
    assert_eq!(value[access - 14], 0, "chmod sets the mask");
    mount.end();
}

#[test]
fn ten_thousand_names_listed_while_they_are_deleted() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let dir = mount.at("big");
    fs::create_dir(&dir).unwrap();
    let name = |index: usize| format!("a-name-of-some-length-{index:05}");
    for index in 0..10_000 {
        fs::File::create(dir.join(name(index))).unwrap();
    }
    mount.settle();
    let listed: BTreeSet<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(
        listed,
        (0..10_000).map(|index| name(index).into()).collect()
    );
    let sizes: u64 = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(sizes, 0);
    let mut deleted = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        deleted += 1;
    }
    assert_eq!(deleted, 10_000, "each name once, none skipped");
    mount.settle();
    fs::remove_dir(&dir).unwrap();
    mount.end();
}

#[test]
fn statfs_tells_room() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("f"), vec![1; 1 << 20]).unwrap();
    let stat = rustix::fs::statfs(mount.path()).unwrap();
    assert_eq!((stat.f_namelen, stat.f_bsize), (255, 4096));
    assert!(stat.f_blocks >= stat.f_bavail && stat.f_bavail as i64 * 4096 == 1 << 39);
    assert!(stat.f_files > stat.f_ffree);
    mount.end();
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let Some(mount) = Mounted::new("ro") else {
        return;
    };
    assert_eq!(
        fs::write(mount.at("x"), "").unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );
    assert!(fs::read_dir(mount.path()).unwrap().next().is_none());
    mount.end();
}
