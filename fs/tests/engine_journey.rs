//! The whole way: write, commit, lose the machine, mount elsewhere, read.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use engine_support::{World, noise};
use sealdrive::engine::CrashPoints;

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
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let machine = world.mount("one", 1);
    assert_eq!(machine.tree(), before);
    machine.write("/offline", b"still works");
    machine.engine.sync_local().unwrap();
    drop(machine);
    let machine = world.mount("one", 1);
    assert_eq!(machine.read("/offline"), b"still works");
    world.server.faults.offline.store(false, Ordering::SeqCst);
    machine.unmount();
    assert_eq!(world.mount("two", 2).read("/offline"), b"still works");
}

/// Chunks that wait are sealed side by side, and the same one may be among them several times: none was known when they
/// were looked up. The only worker is kept at another file until they wait.
#[test]
fn the_same_chunk_several_times_in_one_batch_is_stored_and_sent_once() {
    let world = World::new();
    let (go_on, held) = mpsc::channel::<()>();
    let (go_on, held) = (Mutex::new(Some(go_on)), Mutex::new(held));
    let (handed_out, sealing) = (AtomicU64::new(0), Arc::<AtomicU64>::default());
    let sealed = Arc::clone(&sealing);
    let mut config = world.config("one", 1);
    config.workers = 1;
    config.crash = CrashPoints::new(move |point| match point {
        // By the thread that hands them out, one file after the other: at the third the second is all there.
        "chunked" if handed_out.fetch_add(1, Ordering::SeqCst) == 2 => {
            go_on.lock().unwrap().take();
        }
        "object-sealed" if sealed.fetch_add(1, Ordering::SeqCst) == 0 => {
            let _ = held.lock().unwrap().recv();
        }
        _ => {}
    });
    let one = world.try_mount(config).unwrap();
    // No content cut in any of it: each MiB is the same chunk.
    let same = noise(1, 4096).repeat(6 << 8);
    let content = |name: &str| match name {
        "/same" => same.clone(),
        "/before" => noise(2, 1 << 20),
        _ => noise(3, 1 << 20),
    };
    for name in ["/before", "/same", "/behind"] {
        one.write(name, b"");
        one.write_at(name, 0, &content(name));
        while sealing.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }
    one.sync();
    let (objects, puts) = {
        let disk = world.server.disk();
        (disk.objects.len() as u64, disk.puts)
    };
    assert_eq!(puts, objects, "each was sent once");
    let two = world.mount("two", 2);
    for name in ["/before", "/same", "/behind"] {
        assert!(one.read(name) == content(name), "{name}");
        assert!(two.read(name) == content(name), "{name}, elsewhere");
    }
}
