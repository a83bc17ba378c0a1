//! Without the lease nothing is sent, also where a server would take it: another machine may be writing meanwhile.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use engine_support::{Machine, World, noise, soon};
use sealdrive::engine::{CrashPoints, Status};
use sealdrive::remote::RemoteError;

/// A world with a machine that has been there, and a server that takes whatever comes.
fn trusting() -> World {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/first", b"first");
    one.sync();
    one.unmount();
    world.server.faults.trusting.store(true, Ordering::SeqCst);
    world
}

fn lease_is(world: &World, error: Option<RemoteError>) {
    *world.server.faults.no_lease.lock().unwrap() = error;
}

#[track_caller]
fn until(machine: &Machine, ready: impl Fn(&Status) -> bool) {
    let end = soon(90);
    loop {
        let status = machine.engine.status();
        if ready(&status) {
            return;
        }
        assert!(soon(0) < end, "{status:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Objects and commits that the server has been given.
fn given(world: &World) -> (u64, usize) {
    let disk = world.server.disk();
    (disk.puts, disk.commits.len())
}

/// Until the machine has asked for the lease many times more.
fn let_it_ask(world: &World, machine: &Machine) {
    let asked = || world.server.faults.lease_asked.load(Ordering::SeqCst);
    let enough = asked() + 30;
    until(machine, |_| {
        machine.engine.hear(Duration::ZERO, soon(0));
        asked() >= enough
    });
}

/// The lease is granted, and asked for at once.
fn grant(world: &World, machine: &Machine) {
    lease_is(world, None);
    machine.engine.hear(Duration::ZERO, soon(0));
    machine.sync();
}

/// Everything so far is sealed and in a checkpoint: it only has to be sent.
fn checkpoint(machine: &Machine) {
    assert!(machine.engine.sync_server(soon(1), |_| true).is_err());
    until(machine, |status| {
        status.is_clean && status.pending_objects > 0
    });
}

#[test]
fn nothing_is_sent_before_the_lease_is_granted() {
    let world = trusting();
    lease_is(&world, Some(RemoteError::Unreachable("lost".into())));
    let one = world.mount("one", 1);
    let before = given(&world);
    one.write("/file", &noise(1, 300_000));
    checkpoint(&one);
    let_it_ask(&world, &one);
    assert_eq!(given(&world), before);
    grant(&world, &one);
    assert!(given(&world) > before);
    drop(one);
    assert_eq!(world.mount("two", 2).read("/file"), noise(1, 300_000));
}

#[test]
fn nothing_more_is_sent_on_an_open_stream_when_the_lease_is_lost() {
    let world = trusting();
    let one = world.mount("one", 1);
    one.write("/sent", &noise(1, 300_000));
    one.sync();
    lease_is(&world, Some(RemoteError::Fenced));
    one.engine.hear(Duration::ZERO, soon(0));
    until(&one, |status| status.lease_epoch == 0);
    let before = given(&world);
    one.write("/file", &noise(2, 300_000));
    checkpoint(&one);
    let_it_ask(&world, &one);
    assert_eq!(given(&world), before);
    grant(&world, &one);
    drop(one);
    assert_eq!(world.mount("two", 2).read("/file"), noise(2, 300_000));
}

/// Everything was sent under the lease, which is gone when the commit is about to be signed.
#[test]
fn nothing_is_committed_when_the_lease_is_lost_after_the_upload() {
    let world = trusting();
    let (arrived, waits) = mpsc::channel();
    let (go_on, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let points = CrashPoints::new(move |point| {
        if point == "acknowledged" && arrived.send(()).is_ok() {
            // Closed when it is to stop no more.
            let _ = held.lock().unwrap().recv();
        }
    });
    let one = world.mount_with_points("one", 1, points);
    one.write("/file", &noise(1, 300_000));
    let before = given(&world);
    let asked = one.engine.sync_server(soon(1), |_| true);
    assert!(asked.is_err(), "the commit is held up");
    waits.recv().unwrap();
    drop(waits);
    lease_is(&world, Some(RemoteError::Fenced));
    one.engine.hear(Duration::ZERO, soon(0));
    until(&one, |status| status.lease_epoch == 0);
    drop(go_on);
    let_it_ask(&world, &one);
    assert_eq!(given(&world).1, before.1);
    grant(&world, &one);
    drop(one);
    assert_eq!(world.mount("two", 2).read("/file"), noise(1, 300_000));
}
