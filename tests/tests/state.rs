//! The state of every file, seen through a real mount: each state when it is true, in order, and never a better one.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use sealdrive_tests::proxy::{Proxy, Weather};
use sealdrive_tests::world::{Machine, Mounted, PATIENCE, Server, World, run, wait_for};

const NAME: &str = "user.sealdrive.state";
const ORDER: [&str; 4] = ["dirty", "journaled", "sent", "committed"];
/// Exit codes.
const PENDING: i32 = 23;
const TOO_OLD: i32 = 24;

struct Behind {
    proxy: Proxy,
    machine: Machine,
    mounted: Mounted,
    _server: Server,
}

fn behind_a_proxy(world: &World, arguments: &[&str]) -> Behind {
    let server = world.server();
    let proxy = Proxy::start(server.address()).unwrap();
    let machine = world.machine("machine");
    machine.init(&server.invite_at(proxy.address()));
    let mounted = machine.mount_with(arguments);
    Behind {
        proxy,
        machine,
        mounted,
        _server: server,
    }
}

fn state(path: &Path) -> String {
    let mut value = vec![0; 64];
    let len = getxattr(path, NAME, &mut value).unwrap();
    value.truncate(len);
    String::from_utf8(value).unwrap()
}

fn rank(state: &str) -> usize {
    ORDER.iter().position(|word| *word == state).unwrap()
}

fn wait_for_state(path: &Path, wanted: &str) {
    wait_for(wanted, PATIENCE, || (state(path) == wanted).then_some(()));
}

/// `sealdrive status`, its exit code, and what it says as JSON.
fn status(machine: &Machine, arguments: &[&str]) -> (i32, serde_json::Value) {
    let mut all = vec!["status", "--json"];
    all.extend(arguments);
    let done = machine.run(&all);
    let value = serde_json::from_str(&done.stdout).unwrap_or_default();
    (done.code, value)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn states_come_in_order_and_none_before_it_is_true() {
    let world = World::new();
    let at = behind_a_proxy(&world, &[]);
    let root = at.mounted.path().to_owned();
    let (old, new) = (root.join("old"), root.join("new"));
    fs::write(&old, vec![1; 100_000]).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    at.machine.sync();
    assert_eq!(state(&old), "committed");
    assert_eq!(state(&root.join("dir")), "committed");
    assert_eq!(state(&root), "committed");

    // Without a server nothing gets beyond the journal, whatever is asked for.
    at.proxy.set(Weather::Refuse);
    fs::write(&new, vec![2; 3_000_000]).unwrap();
    File::open(&new).unwrap().sync_all().unwrap();
    assert_eq!(state(&new), "journaled", "an fsync returned");
    let (code, told) = status(&at.machine, &[text(&new)]);
    assert_eq!(
        (code, told["file_state"].as_str()),
        (PENDING, Some("journaled"))
    );
    // The checkpoint puts it into the local tree; that is no step towards the server.
    let sync = run(
        &mut at
            .machine
            .command(&["sync", "--timeout", "1s", text(&root)]),
        PATIENCE,
    );
    sync.code_is(PENDING);
    assert_eq!(state(&new), "journaled");
    assert_eq!(
        state(&old),
        "committed",
        "what others do does not take it back"
    );
    assert_eq!(state(&root.join("dir")), "committed");
    assert_eq!(state(&root), "journaled", "the new name is part of it");

    at.proxy.set(Weather::Clear);
    let mut seen = vec![state(&new)];
    wait_for("committed", PATIENCE, || {
        let now = state(&new);
        if seen.last() != Some(&now) {
            seen.push(now.clone());
        }
        (now == "committed").then_some(())
    });
    assert!(seen.is_sorted_by_key(|state| rank(state)), "{seen:?}");
    let (code, told) = status(&at.machine, &[text(&new), text(&old)]);
    assert!(
        code == 0 && told.is_null(),
        "two paths are two lines: {told}"
    );
    assert_eq!(
        status(&at.machine, &[text(&new)]).1["file_state"],
        "committed"
    );

    // Each kind of change takes the file back, and the names are the directory's.
    at.proxy.set(Weather::Refuse);
    setxattr(&old, "user.colour", b"red", XattrFlags::empty()).unwrap();
    assert_ne!(state(&old), "committed");
    fs::rename(&new, root.join("dir/renamed")).unwrap();
    assert_ne!(state(&root.join("dir/renamed")), "committed");
    assert_ne!(state(&root.join("dir")), "committed");
}

#[test]
fn the_attribute_is_neither_listed_nor_set_nor_copied() {
    let world = World::new();
    let (_server, machine, mounted) = world.mounted();
    let file = mounted.path().join("file");
    fs::write(&file, b"content").unwrap();
    setxattr(&file, "user.mine", b"1", XattrFlags::empty()).unwrap();
    let set = setxattr(&file, NAME, b"committed", XattrFlags::empty());
    assert_eq!(set, Err(Errno::PERM));
    assert_eq!(removexattr(&file, NAME), Err(Errno::PERM));
    let mut names = vec![0; 4096];
    let len = listxattr(&file, &mut names).unwrap();
    assert_eq!(&names[..len], b"user.mine\0");
    machine.sync();

    let copy = world.path("copy");
    let mut cp = Command::new("cp");
    run(cp.arg("-a").arg(&file).arg(&copy), PATIENCE).ok();
    let len = listxattr(&copy, &mut names).unwrap_or(0);
    assert!(!String::from_utf8_lossy(&names[..len]).contains("sealdrive"));
    assert_eq!(getxattr(&copy, NAME, &mut names), Err(Errno::NODATA));
}

#[test]
fn what_is_open_for_writing_is_never_committed() {
    let world = World::new();
    let (_server, machine, mounted) = world.mounted();
    let path = mounted.path().join("open");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"first").unwrap();
    machine.sync();
    wait_for_state(&path, "sent");
    let (code, told) = status(&machine, &[text(&path)]);
    assert_eq!((code, told["open_for_write"].as_u64()), (PENDING, Some(1)));
    // The whole drive is another matter: all that was written is there.
    assert_eq!(status(&machine, &[]).0, 0);
    assert_eq!(status(&machine, &[]).1["open_for_write"], 1);
    drop(file);
    wait_for_state(&path, "committed");

    // A mapping outlives its descriptor.
    let mut mapping = Mapping::of(&path);
    for round in 1..=20u8 {
        mapping.write(round);
        let now = state(&path);
        assert_ne!(now, "committed", "round {round}");
        if round % 5 == 0 {
            // What a mapping wrote is on the server when `sync` says so, though nobody closed anything.
            machine.sync();
            assert_eq!(state(&path), "sent", "round {round}");
        }
    }
    mapping.end();
    machine.sync();
    wait_for_state(&path, "committed");
    assert_eq!(fs::read(&path).unwrap()[4096], 20);
}

/// Another process with a shared mapping of a file and no descriptor of it.
struct Mapping(Child);

impl Mapping {
    fn of(path: &Path) -> Self {
        const PROGRAM: &str = "
import mmap, sys
f = open(sys.argv[1], 'r+b'); f.truncate(8192); m = mmap.mmap(f.fileno(), 8192); f.close()
print('mapped', flush=True)
for line in sys.stdin:
    m[4096] = int(line); print('written', flush=True)
";
        let mut python = Command::new("python3");
        python.args(["-c", PROGRAM]).arg(path);
        let child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut mapping = Self(child.unwrap());
        mapping.heard("mapped\n");
        mapping
    }

    fn heard(&mut self, wanted: &str) {
        let mut said = vec![0; wanted.len()];
        self.0
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut said)
            .unwrap();
        assert_eq!(said, wanted.as_bytes());
    }

    fn write(&mut self, byte: u8) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{byte}").unwrap();
        self.heard("written\n");
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_write_that_the_kernel_holds_is_seen_by_whoever_asks() {
    let world = World::new();
    let at = behind_a_proxy(&world, &[]);
    let path = at.mounted.path().join("held");
    let mut file = File::create(&path).unwrap();
    file.write_all(&[7; 4096]).unwrap();
    at.machine.sync();
    at.proxy.set(Weather::Refuse);
    for round in 0..20u32 {
        // Into the kernel's pages only: nothing makes them leave but the question itself.
        file.write_all(&round.to_le_bytes()).unwrap();
        if round % 2 == 0 {
            let now = state(&path);
            assert!(rank(&now) < rank("sent"), "{now} in round {round}");
        } else {
            let (code, told) = status(&at.machine, &[]);
            assert_eq!(code, PENDING);
            assert!(rank(told["state"].as_str().unwrap()) < rank("sent"));
        }
        at.proxy.set(Weather::Clear);
        at.machine.sync();
        at.proxy.set(Weather::Refuse);
    }
}

#[test]
fn a_directory_is_as_its_weakest_and_counts_are_told() {
    let world = World::new();
    let at = behind_a_proxy(&world, &[]);
    let top = at.mounted.path().join("top");
    fs::create_dir_all(top.join("a/b")).unwrap();
    for number in 0..600 {
        fs::write(top.join(format!("a/b/{number}")), format!("{number}")).unwrap();
    }
    symlink("a", top.join("link")).unwrap();
    at.machine.sync();
    let (code, told) = status(&at.machine, &[text(&top)]);
    assert_eq!((code, told["file_state"].as_str()), (0, Some("committed")));
    // 600 files, three directories, one link.
    assert_eq!(told["below"]["committed"], 604, "{told}");
    assert_eq!(told["below"]["complete"], true);

    at.proxy.set(Weather::Refuse);
    fs::write(top.join("a/b/77"), b"changed").unwrap();
    File::open(top.join("a/b/77")).unwrap().sync_all().unwrap();
    let (code, told) = status(&at.machine, &[text(&top)]);
    assert_eq!(
        (code, told["file_state"].as_str()),
        (PENDING, Some("journaled"))
    );
    assert_eq!(told["below"]["committed"], 603, "{told}");
    assert_eq!(told["below"]["journaled"], 1, "{told}");
    let said = at.machine.run(&["status", text(&top)]).code_is(PENDING);
    assert!(
        said.stdout
            .contains("journaled (1 journaled, 603 committed)"),
        "{}",
        said.stdout
    );
    assert_eq!(status(&at.machine, &[text(&top.join("link"))]).0, 0);
}

#[test]
fn a_monitor_is_told_when_something_waits_too_long_or_the_server_is_silent() {
    let world = World::new();
    let at = behind_a_proxy(&world, &[]);
    let root = at.mounted.path().to_owned();
    fs::write(root.join("file"), b"content").unwrap();
    at.machine.sync();
    let aged = |age: &str| status(&at.machine, &["--max-age", age]).0;
    // At rest, and asked for less than the time between two words of the server: it is asked.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(aged("1s"), 0);
    fs::write(root.join("young"), b"content").unwrap();
    assert_eq!(aged("1h"), 0, "what is young is on its way");

    at.machine.sync();
    at.proxy.set(Weather::Refuse);
    // Nothing is waiting here, and all the same nobody knows whether the server is still there.
    wait_for("silence is noticed", PATIENCE, || {
        (aged("1s") == TOO_OLD).then_some(())
    });
    fs::write(root.join("waiting"), b"content").unwrap();
    wait_for("waiting is noticed", PATIENCE, || {
        let waited = status(&at.machine, &[]).1["waiting_ms"].as_u64();
        (waited > Some(2000)).then_some(())
    });
    assert_eq!(aged("1s"), TOO_OLD);
    assert_eq!(aged("1h"), 0);
    let before = status(&at.machine, &[]).1["waiting_ms"].as_u64().unwrap();
    at.mounted.kill();
    let mounted = at.machine.mount();
    let after = status(&at.machine, &[]).1["waiting_ms"].as_u64().unwrap();
    assert!(
        after >= before,
        "a restart does not make it younger: {before}, {after}"
    );
    at.proxy.set(Weather::Clear);
    at.machine.sync();
    let (code, told) = status(&at.machine, &["--max-age", "5s"]);
    assert_eq!((code, told["waiting_ms"].as_u64()), (0, None));
    drop(mounted);
}

#[test]
fn fsync_may_wait_for_the_server_and_says_when_it_does_not_answer() {
    let world = World::new();
    let at = behind_a_proxy(&world, &["-o", "fsync=server"]);
    let path = at.mounted.path().join("file");
    let mut file = File::create(&path).unwrap();
    for round in 0..3u8 {
        file.write_all(&[round; 100_000]).unwrap();
        file.sync_all().unwrap();
        // It is there now, not soon: asked without any wait in between.
        assert_eq!(state(&path), "sent", "and open for writing");
    }
    assert_eq!(at.machine.status()["fsync"], "server");
    at.proxy.set(Weather::BlackHole);
    file.write_all(b"while it is away").unwrap();
    let refused = file.sync_all().unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()));
    assert_eq!(state(&path), "journaled", "it is safe here all the same");
    drop(file);
    at.mounted.kill();
    at.proxy.set(Weather::Clear);
    let mounted = at.machine.mount();
    assert!(
        fs::read(mounted.path().join("file"))
            .unwrap()
            .ends_with(b"while it is away")
    );
    at.machine.sync();
}
