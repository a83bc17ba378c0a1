//! A second machine takes a drive over: the first is fenced, refuses and says so, and what it had not sent comes back
//! whole, byte for byte and with its metadata, whenever its owner wants it.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use sealdrive_tests::compare::compare;
use sealdrive_tests::made::{Noise, many, set_mtime};
use sealdrive_tests::proxy::{Proxy, Weather};
use sealdrive_tests::world::{Machine, PATIENCE, Server, World, copy_tree, run, wait_for};

/// Exit codes.
const ELSEWHERE: i32 = 11;
const UNREACHABLE: i32 = 15;
const PENDING: i32 = 23;

/// Another machine of the same account, straight to the server.
fn second(world: &World, server: &Server, kit: &Path) -> Machine {
    let machine = world.machine("second");
    let kit = kit.to_str().unwrap();
    let invite = server.invite();
    machine
        .run(&[
            "recover", "--kit", kit, "--server", &invite, "--label", "laptop",
        ])
        .ok();
    machine
}

fn conflicts(machine: &Machine) -> Vec<serde_json::Value> {
    let said = machine.run(&["conflicts", "--json"]).ok().stdout;
    said.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A monitor's question has the machine ask the server at once; otherwise it learns at the next renewal of its lease.
fn wait_until_fenced(machine: &Machine) {
    wait_for("the take-over is noticed", PATIENCE, || {
        machine.run(&["status", "--max-age", "0s"]);
        let status = machine.status();
        (status["fenced"].is_object() && status["writable"] == false).then_some(())
    });
}

#[track_caller]
fn refused<T: std::fmt::Debug>(done: std::io::Result<T>) {
    let error = done.expect_err("a fenced machine changes nothing");
    assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
}

/// Everything a file can have.
fn work(root: &Path) {
    many(&root.join("tree/many"), 150).unwrap();
    fs::write(root.join("tree/large"), Noise::new(1).bytes(5_000_000)).unwrap();
    fs::hard_link(root.join("tree/large"), root.join("tree/many/link")).unwrap();
    symlink("large", root.join("tree/symlink")).unwrap();
    let holes = File::create(root.join("tree/holes")).unwrap();
    holes.write_all_at(b"in the middle", 10 << 20).unwrap();
    holes.set_len(20 << 20).unwrap();
    drop(holes);
    let dressed = root.join("tree/dressed");
    fs::write(&dressed, b"dressed").unwrap();
    setxattr(&dressed, "user.colour", &[7; 3000], XattrFlags::empty()).unwrap();
    fs::set_permissions(&dressed, PermissionsExt::from_mode(0o640)).unwrap();
    set_mtime(&dressed, 1_000_000_000, 123_456_789).unwrap();
    fs::create_dir(root.join("tree/empty")).unwrap();
    set_mtime(&root.join("tree/empty"), 1_000_000_001, 1).unwrap();
}

#[test]
fn what_a_fenced_machine_had_not_sent_comes_back_whole() {
    let world = World::new();
    let server = world.server();
    let proxy = Proxy::start(server.address()).unwrap();
    let first = world.machine("first");
    first.init(&server.invite_at(proxy.address()));
    let second = second(&world, &server, &first.kit());
    let mounted = first.mount();
    let root = mounted.path().to_owned();
    let shared = Noise::new(2).bytes(4_000_000);
    fs::write(root.join("shared"), &shared).unwrap();
    for name in ["untouched", "removed", "renamed"] {
        fs::write(root.join(name), name).unwrap();
    }
    first.sync();

    // From here on nothing of the first machine reaches the server.
    proxy.set(Weather::Refuse);
    work(&root);
    let patched = File::options()
        .write(true)
        .open(root.join("shared"))
        .unwrap();
    patched
        .write_all_at(b"patched in the middle", 2_000_000)
        .unwrap();
    drop(patched);
    fs::remove_file(root.join("removed")).unwrap();
    fs::rename(root.join("renamed"), root.join("tree/renamed")).unwrap();
    // Part of it in a checkpoint, part in the journal, and the last bytes in the kernel's pages only.
    let sync = ["sync", "--timeout", "1s", root.to_str().unwrap()];
    run(&mut first.command(&sync), PATIENCE).code_is(PENDING);
    fs::write(root.join("late"), b"late").unwrap();
    let mut open = File::create(root.join("open")).unwrap();
    open.write_all(b"written before the take-over").unwrap();

    let there = second.mount_with(&["--take-over"]);
    fs::write(there.path().join("of the second"), b"2").unwrap();
    fs::write(there.path().join("untouched"), b"touched by the second").unwrap();
    second.sync();
    proxy.set(Weather::Clear);
    // Somebody goes on writing until the mount says that it is taken over. All of that is called in before the gate
    // closes; no question is asked meanwhile, because that would call it in as well.
    let said = "laptop has taken over";
    let mut written = b"written before the take-over".to_vec();
    let mut surely = 0;
    wait_for("the mount says so", PATIENCE, || {
        // The last line may come a moment after the gate has closed; those before it were there when it had not.
        surely = written.len();
        let line = format!("\n{}", written.len());
        open.write_all(line.as_bytes()).unwrap();
        written.extend_from_slice(line.as_bytes());
        mounted.daemon.said().contains(said).then_some(())
    });
    wait_until_fenced(&first);

    refused(File::create(root.join("new")));
    refused(File::options().append(true).open(root.join("shared")));
    refused(fs::create_dir(root.join("directory")));
    refused(fs::remove_file(root.join("late")));
    refused(fs::rename(root.join("late"), root.join("later")));
    refused(setxattr(root.join("late"), "user.a", b"1", XattrFlags::empty()).map_err(Into::into));
    // Who had a file open learns of it when the kernel hands over what it wrote since.
    open.write_all(b" and after it").unwrap();
    refused(open.sync_all());
    drop(open);
    let told = first.status();
    assert_eq!(told["fenced"]["name"], "laptop");
    assert_eq!(told["writable"], false);
    let notes = told["notes"].as_array().unwrap().iter();
    let notes = notes.filter(|note| note.as_str().unwrap().contains(said));
    assert_eq!(notes.count(), 1, "once in the status: {told}");
    assert_eq!(
        mounted.daemon.said().matches(said).count(),
        1,
        "once in the log"
    );
    first.run(&["status"]).code_is(PENDING);
    let sync = first
        .run(&["sync", root.to_str().unwrap()])
        .code_is(ELSEWHERE);
    assert!(sync.stderr.contains(said), "{}", sync.stderr);

    // Reads go on, so the branch can be seen as it was; that is what must come back.
    let expected = world.path("expected");
    copy_tree(&root, &expected);
    assert!(
        fs::read(expected.join("open"))
            .unwrap()
            .starts_with(b"written before the take-over")
    );
    wait_for("the last of it is in the journal", PATIENCE, || {
        (first.status()["state"] != "dirty").then_some(())
    });
    // Not even a proper end.
    mounted.kill();
    let mounted = first.mount();
    compare(there.path(), &root).unwrap().assert_same(4);
    assert_eq!(first.status()["writable"], false, "the second still writes");
    let kept = conflicts(&first);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let id = kept[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(kept[0]["by_name"], "laptop");
    assert_eq!(kept[0]["counts"]["removed"], 1, "{kept:?}");
    assert!(kept[0]["counts"]["files"].as_u64() > Some(150), "{kept:?}");
    assert_eq!(first.status()["conflicts"], 1);

    // The drive goes on and comes back to this machine; the branch stays as it is.
    first.umount(mounted);
    second.umount(there);
    let mounted = first.mount();
    fs::write(root.join("of the first"), Noise::new(3).bytes(1_000_000)).unwrap();
    first.sync();
    assert_eq!(conflicts(&first).len(), 1);

    let out = world.path("out");
    let export = ["conflicts", "export", &id, out.to_str().unwrap()];
    let done = run(&mut first.command(&export), PATIENCE);
    assert!([0, 3].contains(&done.code), "{done:?}");
    compare(&expected.join("tree"), &out.join("tree"))
        .unwrap()
        .assert_same(150);
    for name in ["shared", "late"] {
        assert!(fs::read(expected.join(name)).unwrap() == fs::read(out.join(name)).unwrap());
        let (a, b) = (expected.join(name), out.join(name));
        let (a, b) = (a.metadata().unwrap(), b.metadata().unwrap());
        assert_eq!(
            (a.mtime(), a.mtime_nsec(), a.mode()),
            (b.mtime(), b.mtime_nsec(), b.mode())
        );
    }
    // What was written before the fence and was in the kernel's pages only, and nothing of what was refused.
    let there = fs::read(out.join("open")).unwrap();
    assert!(
        there.len() >= surely && written.starts_with(&there),
        "{} of {surely}",
        there.len()
    );
    let mut names: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["late", "open", "shared", "tree"],
        "and nothing else"
    );
    run(&mut first.command(&export), PATIENCE).code_is(2);

    first.run(&["conflicts", "drop", &id]).code_is(1);
    assert_eq!(conflicts(&first).len(), 1, "nobody said yes");
    first.run(&["conflicts", "drop", "--yes", &id]).ok();
    assert_eq!(conflicts(&first).len(), 0);
    assert!(root.join("of the first").exists() && !root.join("late").exists());
    drop(mounted);
}

#[test]
fn one_writes_and_the_others_read_until_somebody_takes_over() {
    let world = World::new();
    let (mut server, first, mounted) = world.mounted();
    let second = second(&world, &server, &first.kit());
    fs::write(mounted.path().join("file"), b"one").unwrap();
    first.sync();

    let there = second.mount();
    assert_eq!(fs::read(there.path().join("file")).unwrap(), b"one");
    refused(fs::write(there.path().join("new"), b"two"));
    let said = there.daemon.said();
    assert!(
        said.contains("writes this drive") && said.contains("--take-over"),
        "{said}"
    );
    assert_eq!(second.status()["writable"], false);
    second.sync();
    second.umount(there);

    // Taken over, and back again: each time with all that the other had sent, and nothing is in conflict.
    let there = second.mount_with(&["-o", "take_over"]);
    fs::write(there.path().join("file"), b"two").unwrap();
    second.sync();
    wait_until_fenced(&first);
    first.run(&["status"]).code_is(ELSEWHERE);
    first.umount(mounted);
    let mounted = first.mount_with(&["--take-over"]);
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"two");
    fs::write(mounted.path().join("file"), b"three").unwrap();
    first.sync();
    wait_until_fenced(&second);
    drop(there);
    first.umount(mounted);
    let there = second.mount();
    assert_eq!(fs::read(there.path().join("file")).unwrap(), b"three");
    assert_eq!(
        second.status()["writable"],
        true,
        "nobody else writes it now"
    );
    assert_eq!((conflicts(&first).len(), conflicts(&second).len()), (0, 0));
    second.umount(there);

    server.stop();
    let point = first.mountpoint();
    first
        .run(&["mount", "--take-over", point.to_str().unwrap()])
        .code_is(UNREACHABLE);
}
