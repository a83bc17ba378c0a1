//! The server away: writing and reading what is local goes on, nothing hangs, and everything drains by itself later.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use sealdrive_tests::compare::compare;
use sealdrive_tests::made::{Noise, many};
use sealdrive_tests::proxy::{Proxy, Weather};
use sealdrive_tests::world::{Machine, Mounted, PATIENCE, Server, World, copy_tree, run, wait_for};

/// What "at once" may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Exit code: data is not on the server yet.
const PENDING: i32 = 23;

struct Behind {
    proxy: Proxy,
    machine: Machine,
    mounted: Mounted,
    server: Server,
}

/// A mounted drive whose server stands behind a proxy.
fn behind_a_proxy(world: &World) -> Behind {
    let server = world.server();
    let proxy = Proxy::start(server.address()).unwrap();
    let machine = world.machine("machine");
    machine.init(&server.invite_at(proxy.address()));
    let mounted = machine.mount();
    Behind {
        proxy,
        machine,
        mounted,
        server,
    }
}

fn write_synced(path: &std::path::Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn work_goes_on_without_the_server_and_drains_when_it_is_back() {
    let world = World::new();
    let mut at = behind_a_proxy(&world);
    let root = at.mounted.path().to_owned();
    fs::write(root.join("before"), b"before").unwrap();
    at.machine.sync();
    at.proxy.set(Weather::Refuse);
    at.server.kill();

    let started = Instant::now();
    write_synced(&root.join("during"), b"during");
    assert_eq!(fs::read(root.join("before")).unwrap(), b"before");
    many(&root.join("many"), 200).unwrap();
    fs::rename(root.join("before"), root.join("renamed")).unwrap();
    assert_eq!(fs::read_dir(root.join("many")).unwrap().count(), 200);
    assert!(
        started.elapsed() < AT_ONCE,
        "local work took {:?} without the server",
        started.elapsed()
    );
    let point = root.to_str().unwrap();
    let pending = run(
        &mut at.machine.command(&["sync", "--timeout", "2s", point]),
        PATIENCE,
    );
    pending.code_is(PENDING);

    at.server.restart();
    at.proxy.set(Weather::Clear);
    at.machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&at.machine.kit());
    let there = fresh.mount();
    compare(&root, there.path()).unwrap().assert_same(203);
}

#[test]
fn cuts_in_the_middle_of_sending_lose_nothing() {
    let world = World::new();
    let at = behind_a_proxy(&world);
    let source = world.path("source");
    many(&source.join("many"), 300).unwrap();
    for number in 0..6u64 {
        fs::write(
            source.join(format!("large-{number}")),
            Noise::new(number).bytes(5_000_000),
        )
        .unwrap();
    }
    let before = at.proxy.sent();
    for cut in [300_000, 1_000_000, 2_000_000] {
        at.proxy.cut_after(cut);
        copy_tree(&source, &at.mounted.path().join(format!("copy-{cut}")));
        // The planned cut must have happened while bytes were on their way, or this tests nothing.
        wait_for("bytes up to the cut", PATIENCE, || {
            (at.proxy.sent() - before >= cut).then_some(())
        });
    }
    at.machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&at.machine.kit());
    let there = fresh.mount();
    for cut in [300_000, 1_000_000, 2_000_000] {
        compare(&source, &there.path().join(format!("copy-{cut}")))
            .unwrap()
            .assert_same(307);
    }
}

#[test]
fn a_black_hole_delays_nothing_local_and_ends_in_an_error_not_a_hang() {
    let world = World::new();
    let at = behind_a_proxy(&world);
    let content = Noise::new(1).bytes(8_000_000);
    fs::write(at.mounted.path().join("remote"), &content).unwrap();
    at.machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&at.machine.kit());
    let there = fresh.mount();
    // The names are fetched while the server still answers; the content is not.
    assert_eq!(
        fs::metadata(there.path().join("remote")).unwrap().len(),
        8_000_000
    );
    at.proxy.set(Weather::BlackHole);

    let started = Instant::now();
    assert!(fs::metadata(there.path().join("remote")).is_ok());
    assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1);
    assert!(
        started.elapsed() < AT_ONCE,
        "metadata took {:?}",
        started.elapsed()
    );
    // In a process of its own: should it hang, `run` says so after its patience instead of hanging too.
    let mut cat = std::process::Command::new("cmp");
    cat.arg(there.path().join("remote"))
        .arg(at.mounted.path().join("remote"));
    let read = run(&mut cat, PATIENCE);
    assert_ne!(read.code, 0, "what is not local cannot have been read");
    at.proxy.set(Weather::Clear);
    let healed = wait_for("reading works again", PATIENCE, || {
        fs::read(there.path().join("remote")).ok()
    });
    assert!(healed == content);
}

#[test]
fn a_drive_mounts_and_is_read_without_its_server() {
    let world = World::new();
    let (mut server, machine, mounted) = world.mounted();
    let content = Noise::new(2).bytes(3_000_000);
    fs::write(mounted.path().join("file"), &content).unwrap();
    machine.umount(mounted);
    server.stop();
    let started = Instant::now();
    let mounted = machine.mount();
    assert!(
        started.elapsed() < AT_ONCE * 2,
        "mounting took {:?} without the server",
        started.elapsed()
    );
    assert!(fs::read(mounted.path().join("file")).unwrap() == content);
    write_synced(&mounted.path().join("new"), b"written offline");
    mounted.kill();
    let mounted = machine.mount();
    assert_eq!(
        fs::read(mounted.path().join("new")).unwrap(),
        b"written offline"
    );
    server.restart();
    machine.sync();
}
