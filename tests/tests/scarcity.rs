//! Scarcity: full disks on either side, a quota, little memory. Writes get a clear errno, nothing acknowledged is lost,
//! and everything goes on by itself when there is room again.
//!
//! Needs root: sized tmpfs mounts in a mount namespace of the test's own (each test runs itself again in one), and a
//! memory cgroup. Where that cannot be had the test says so loudly and proves nothing.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use sealdrive_tests::made::Noise;
use sealdrive_tests::world::{Machine, Server, World, run, wait_for};

/// One file of the load, bytes.
const FILE: usize = 1 << 20;
/// The bound on the mounted client.
const MEMORY: u64 = 256 << 20;

/// Whether this process is in a namespace of its own; if not, runs the named test in one and answers false.
fn alone(test: &str) -> bool {
    if std::env::var_os("SEALDRIVE_NAMESPACE").is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: {test} needs root for tmpfs mounts and cgroups");
        return false;
    }
    let mut again = Command::new("unshare");
    again.args(["--mount", "--propagation", "private"]);
    again.arg(std::env::current_exe().unwrap());
    again.args([test, "--exact", "--nocapture"]);
    again.env("SEALDRIVE_NAMESPACE", "1");
    let said = run(&mut again, Duration::from_secs(600)).ok();
    println!("{}", said.stdout);
    false
}

/// A disk of that many MiB at `path`; it goes with the namespace.
fn disk(path: &Path, mib: u64) {
    fs::create_dir_all(path).unwrap();
    let mut mount = Command::new("mount");
    mount.args([
        "-t",
        "tmpfs",
        "-o",
        &format!("size={mib}M,mode=700"),
        "none",
    ]);
    run(mount.arg(path), Duration::from_secs(10)).ok();
}

fn grow(path: &Path, mib: u64) {
    let mut mount = Command::new("mount");
    mount.args(["-o", &format!("remount,size={mib}M")]);
    run(mount.arg(path), Duration::from_secs(10)).ok();
}

fn content(number: u64) -> Vec<u8> {
    Noise::new(number).bytes(FILE)
}

fn put(root: &Path, number: u64) -> io::Result<()> {
    let mut file = File::create(root.join(format!("f{number}")))?;
    file.write_all(&content(number))?;
    file.sync_all()
}

/// Writes and fsyncs files from `first` on until one is refused: how many there are then, and the errno.
fn fill(root: &Path, first: u64, most: u64) -> (u64, Option<i32>) {
    for number in first..first + most {
        if let Err(error) = put(root, number) {
            drop(fs::remove_file(root.join(format!("f{number}"))));
            return (number, error.raw_os_error());
        }
    }
    (first + most, None)
}

fn check(root: &Path, upto: u64) {
    for number in 0..upto {
        let found = fs::read(root.join(format!("f{number}")));
        assert!(
            found.is_ok_and(|found| found == content(number)),
            "f{number}"
        );
    }
}

fn elsewhere(world: &World, machine: &Machine, upto: u64) {
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    check(fresh.mount().path(), upto);
}

#[test]
fn a_full_local_disk_is_enospc_and_drains_by_itself() {
    if !alone("a_full_local_disk_is_enospc_and_drains_by_itself") {
        return;
    }
    let world = World::new();
    let mut server = world.server();
    let machine = world.machine("machine");
    disk(&machine.home(), 260);
    machine.init(&server.invite());
    let mounted = machine.mount();
    // More than the disk holds, with the server there: copies of what it has must give way, or nothing would go on.
    let mut there = 0;
    while there < 300 {
        let (upto, errno) = fill(mounted.path(), there, 300 - there);
        assert!(
            errno.is_none_or(|errno| errno == Errno::NOSPC.raw_os_error()),
            "{errno:?}"
        );
        there = upto;
        if errno.is_some() {
            wait_for("there is room again", Duration::from_secs(60), || {
                put(mounted.path(), there).ok()
            });
            there += 1;
        }
    }
    machine.sync();
    server.kill();
    let (there, errno) = fill(mounted.path(), there, 400);
    assert_eq!(
        errno,
        Some(Errno::NOSPC.raw_os_error()),
        "{there} files, {}",
        machine.status()
    );
    let free = rustix::fs::statvfs(machine.home()).unwrap();
    assert!(
        free.f_bavail * free.f_frsize > 16 << 20,
        "nothing is left to drain with"
    );
    server.restart();
    machine.sync();
    // Without a remount and without help.
    wait_for("there is room again", Duration::from_secs(60), || {
        put(mounted.path(), there).ok()
    });
    machine.sync();
    check(mounted.path(), there + 1);
    mounted.kill();
    elsewhere(&world, &machine, there + 1);
    println!("{there} files on a disk for 200 of them");
}

#[test]
fn a_full_server_and_a_used_up_quota_lose_nothing() {
    if !alone("a_full_server_and_a_used_up_quota_lose_nothing") {
        return;
    }
    let world = World::new();
    disk(&world.path("server"), 100);
    let mut server = world.server();
    let machine = world.machine("machine");
    machine.init(&server.invite());
    let mounted = machine.mount_with(&["-o", "outbox=32M"]);
    // The server keeps 64 MiB of its 100 for itself; the client then fills its outbox.
    let (there, errno) = fill(mounted.path(), 0, 400);
    assert_eq!(
        errno,
        Some(Errno::NOSPC.raw_os_error()),
        "{there} files, {}",
        machine.status()
    );
    let notes = machine.status()["notes"].to_string();
    assert!(notes.contains("server has no space"), "{notes}");
    check(mounted.path(), there);
    grow(&world.path("server"), 600);
    machine.sync();
    wait_for("there is room again", Duration::from_secs(60), || {
        put(mounted.path(), there).ok()
    });
    machine.sync();
    check(mounted.path(), there + 1);
    machine.umount(mounted);
    server.stop();

    // The same store under a quota that is used up already.
    let mut server = Server::start_at(
        &world.path("server"),
        server.address(),
        &["--account-quota", "1000000"],
    );
    let mounted = machine.mount();
    let (more, errno) = wait_for("the quota is met", Duration::from_secs(60), || {
        let (more, errno) = fill(mounted.path(), there + 1, 1);
        (errno.is_some() || more > there + 20).then_some((more, errno))
    });
    assert_eq!(
        errno,
        Some(Errno::DQUOT.raw_os_error()),
        "{more}: {}",
        machine.status()
    );
    check(mounted.path(), more);
    server.stop();
    let _server = Server::start_at(&world.path("server"), server.address(), &[]);
    machine.sync();
    wait_for("writes go on", Duration::from_secs(60), || {
        put(mounted.path(), more).ok()
    });
    machine.sync();
    mounted.kill();
    elsewhere(&world, &machine, more + 1);
}

#[test]
fn a_mount_under_load_stays_below_256_mib() {
    if !alone("a_mount_under_load_stays_below_256_mib") {
        return;
    }
    let group =
        Path::new("/sys/fs/cgroup/memory").join(format!("sealdrive-test-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&group) {
        eprintln!("NOT TESTED: no memory cgroup ({error}); the peak is only measured");
    }
    let limited = fs::write(group.join("memory.limit_in_bytes"), MEMORY.to_string()).is_ok();
    let world = World::new();
    let (_server, machine, mounted) = world.mounted();
    if limited {
        // Unlocking is over; from here on the process is held to its budget.
        fs::write(group.join("cgroup.procs"), mounted.daemon.id().to_string()).unwrap();
    }
    let mut big = File::create(mounted.path().join("big")).unwrap();
    let mut hash = blake3::Hasher::new();
    let mut noise = Noise::new(1);
    for _ in 0..600 {
        let piece = noise.bytes(1 << 20);
        hash.update(&piece);
        big.write_all(&piece).unwrap();
    }
    big.sync_all().unwrap();
    for number in 0..6000u64 {
        let dir = mounted.path().join(format!("d{}", number % 60));
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join(format!("{number}")),
            Noise::new(number).bytes(5000),
        )
        .unwrap();
    }
    machine.sync();
    let mut read = blake3::Hasher::new();
    io::copy(
        &mut File::open(mounted.path().join("big")).unwrap(),
        &mut read,
    )
    .unwrap();
    assert_eq!(read.finalize(), hash.finalize());
    let peak = mounted.daemon.peak_memory();
    println!(
        "peak {} MiB{}",
        peak >> 20,
        if limited { ", limited by a cgroup" } else { "" }
    );
    assert!(peak < MEMORY, "{} MiB", peak >> 20);
    mounted.kill();
    drop(fs::remove_dir(&group));
}
