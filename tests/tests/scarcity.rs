//! Scarcity of memory: a mounted client under load stays within its budget.
//!
//! Needs root: a mount namespace of the test's own (the test runs itself again in one), and a memory cgroup. Where that
//! cannot be had the test says so loudly and proves nothing.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sealdrive_tests::made::Noise;
use sealdrive_tests::world::{World, run};

/// The bound on the mounted client.
const MEMORY: u64 = 256 << 20;

/// Whether this process is in a namespace of its own; if not, runs the named test in one and answers false.
fn alone(test: &str) -> bool {
    if std::env::var_os("SEALDRIVE_NAMESPACE").is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: {test} needs root for a memory cgroup");
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
