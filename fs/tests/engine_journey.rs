//! The whole way: write, commit, lose the machine, mount elsewhere, read.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use engine_support::{World, noise};

fn fill(machine: &engine_support::Machine) {
    machine.mkdir("/docs");
    machine.mkdir("/docs/deep");
    machine.write("/empty", b"");
    machine.write("/tiny", b"a few bytes");
    for n in 0..40 {
        machine.write(
            &format!("/docs/small-{n}"),
            &noise(n, 700 + 997 * n as usize),
        );
    }
    machine.write("/docs/deep/large", &noise(1000, 9 << 20));
    machine.write(
        "/docs/deep/text",
        "all work and no play\n".repeat(100_000).as_bytes(),
    );
    machine.write_at("/tiny", 100_000, b"behind a hole");
}

#[test]
fn what_was_committed_is_read_on_another_machine() {
    let world = World::new();
    let first = world.mount("first", 1);
    fill(&first);
    let before = first.tree();
    assert_eq!(before.len(), 46);
    first.sync();
    assert!(first.engine.status().is_committed());
    assert_eq!(
        first.tree(),
        before,
        "writeback changes nothing that is read"
    );
    first.unmount();
    std::fs::remove_dir_all(world.path("first")).unwrap();

    let second = world.mount("second", 2);
    assert_eq!(second.tree(), before);
    assert_eq!(second.engine.status().events, []);
    second.unmount();
}

#[test]
fn the_same_machine_mounts_again_without_a_server() {
    let world = World::new();
    let machine = world.mount("one", 1);
    fill(&machine);
    let before = machine.tree();
    machine.unmount();
    world
        .server
        .faults
        .offline
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let machine = world.mount("one", 1);
    assert_eq!(machine.tree(), before);
    machine.write("/offline", b"still works");
    machine.engine.sync_local().unwrap();
    drop(machine);
    let machine = world.mount("one", 1);
    assert_eq!(machine.read("/offline"), b"still works");
    world
        .server
        .faults
        .offline
        .store(false, std::sync::atomic::Ordering::SeqCst);
    machine.unmount();
    assert_eq!(world.mount("two", 2).read("/offline"), b"still works");
}
