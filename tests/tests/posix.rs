//! Foreign conformance suites over a real mount: no worse than this machine's own file system.
//!
//! Exceptions stand in SEMANTICS.md, each with its reason; one that no longer fails must leave the table.

use std::collections::BTreeSet;

use sealdrive_tests::conformance::{exceptions, fsx, pjdfstest};
use sealdrive_tests::world::World;

/// Operations of fsx in each mode here; scripts/posix takes more.
const OPERATIONS: u32 = 1500;

fn operations() -> u32 {
    std::env::var("SEALDRIVE_FSX_OPERATIONS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(OPERATIONS)
}

#[test]
fn pjdfstest_is_no_worse_than_the_native_file_system() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("pjdfstest needs root; nothing was run");
        return;
    }
    let world = World::new();
    let native = pjdfstest(&world.path(""));
    let server = world.server();
    let machine = world.machine("m");
    machine.init(&server.invite());
    let mounted = machine.mount_with(&["-o", "suid,dev,allow_other"]);
    let ours = pjdfstest(mounted.path());
    println!("native: {}\nours:   {}", native.counts(), ours.counts());
    let excepted = exceptions();
    let worse: BTreeSet<_> = native.passed.difference(&ours.passed).cloned().collect();
    let unexplained: Vec<_> = worse.difference(&excepted).collect();
    assert!(
        unexplained.is_empty(),
        "pass on the native file system and not on ours: {unexplained:#?}"
    );
    let stale: Vec<_> = excepted.difference(&worse).collect();
    assert!(
        stale.is_empty(),
        "excepted in SEMANTICS.md and not needed any more: {stale:#?}"
    );
    machine.umount(mounted);
}

#[test]
fn fsx_passes_in_every_mode() {
    let world = World::new();
    let native = fsx(&world.path(""), operations(), &[1]);
    assert!(native.is_empty(), "on the native file system: {native:#?}");
    let (_server, machine, mounted) = world.mounted();
    let ours = fsx(mounted.path(), operations(), &[1, 2]);
    assert!(ours.is_empty(), "{ours:#?}");
    machine.umount(mounted);
}
