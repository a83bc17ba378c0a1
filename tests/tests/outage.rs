//! The server away: writing and reading what is local goes on, nothing hangs, and everything drains by itself later.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use sealdrive_tests::compare::compare;
use sealdrive_tests::made::{Noise, many};
use sealdrive_tests::proxy::{Proxy, Weather};
use sealdrive_tests::world::{
    Daemon, Machine, Mounted, PATIENCE, Server, World, copy_tree, run, wait_for,
};

/// What "at once" may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Exit code: data is not on the server yet.
const PENDING: i32 = 23;
/// Exit code: no room.
const NO_ROOM: i32 = 14;

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
    assert!(
        read.stderr.contains("No route to host"),
        "EHOSTUNREACH: it is not damaged, only not here: {}",
        read.stderr
    );
    // A reader that is killed while it waits is gone by the deadline, not asleep for ever.
    let mut killed = Daemon::start(
        std::process::Command::new("cat").arg(there.path().join("remote")),
        &world.path("cat.log"),
    );
    wait_for("the reader waits", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", killed.id())).unwrap();
        let state = stat.rsplit(") ").next().unwrap().chars().next().unwrap();
        ['S', 'D'].contains(&state).then_some(())
    });
    killed.signal(rustix::process::Signal::KILL);
    wait_for("a killed reader ends", PATIENCE, || killed.ended());
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

/// Another server at the address (a hotel's login page, a changed route) used to stop commits for the rest of the mount
/// as if the drive had been forked, and a machine could not even mount while it answered.
#[test]
fn another_server_at_the_address_gets_nothing_and_stops_nothing() {
    let world = World::new();
    let at = behind_a_proxy(&world);
    let root = at.mounted.path().to_owned();
    fs::write(root.join("before"), b"before").unwrap();
    at.machine.sync();
    let other = Server::start(&world.path("other"), &[]);
    at.proxy.point_at(other.address());
    at.proxy.cut();
    write_synced(&root.join("during"), &Noise::new(5).bytes(2_000_000));
    wait_for("it is said that another server answers", PATIENCE, || {
        let notes = at.machine.status()["notes"].to_string();
        notes.contains("another server answers").then_some(())
    });
    assert_eq!(fs::read(root.join("before")).unwrap(), b"before");
    at.mounted.kill();
    let mounted = at.machine.mount();
    assert_eq!(fs::read(root.join("during")).unwrap().len(), 2_000_000);
    fs::write(root.join("after"), b"after").unwrap();

    at.proxy.point_at(at.server.address());
    at.proxy.cut();
    at.machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&at.machine.kit());
    let there = fresh.mount();
    compare(&root, there.path()).unwrap().assert_same(3);
    drop(mounted);
}

#[test]
fn a_suspended_client_goes_on_where_it_was() {
    let world = World::new();
    let at = behind_a_proxy(&world);
    let root = at.mounted.path().to_owned();
    at.proxy.set(Weather::Slow);
    fs::write(root.join("large"), Noise::new(6).bytes(6_000_000)).unwrap();
    let before = at.proxy.sent();
    wait_for("something is on its way", PATIENCE, || {
        (at.proxy.sent() > before + 100_000).then_some(())
    });
    at.mounted.daemon.signal(rustix::process::Signal::STOP);
    // The network forgets the connection while the machine sleeps, and a program runs into the sleeping drive.
    at.proxy.cut();
    let mut reader = Daemon::start(
        std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("echo more > {}/more", root.display())),
        &world.path("sh.log"),
    );
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(reader.ended(), None, "nobody can have answered it");
    at.mounted.daemon.signal(rustix::process::Signal::CONT);
    assert_eq!(wait_for("it goes on", PATIENCE, || reader.ended()), 0);
    // On a slow line what is local is still at once.
    let started = Instant::now();
    many(&root.join("many"), 100).unwrap();
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    at.proxy.set(Weather::Clear);
    at.machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&at.machine.kit());
    let there = fresh.mount();
    compare(&root, there.path()).unwrap().assert_same(103);
}

#[test]
fn a_full_outbox_refuses_data_and_nothing_else_and_drains_by_itself() {
    const BUDGET: usize = 16 << 20;
    // Beyond the budget: what may be dirty in memory (64 MiB) while the first of it is sealed, and the kernel's pages.
    const MOST: usize = 256 << 20;
    let world = World::new();
    let server = world.server();
    let proxy = Proxy::start(server.address()).unwrap();
    let machine = world.machine("machine");
    machine.init(&server.invite_at(proxy.address()));
    let mounted = machine.mount_with(&["-o", "outbox=16M"]);
    let root = mounted.path().to_owned();
    fs::write(root.join("old"), b"old").unwrap();
    machine.sync();
    let mut open = File::create(root.join("open")).unwrap();
    proxy.set(Weather::Refuse);

    let mut kept = 0;
    let refused = loop {
        let name = root.join(format!("data-{kept}"));
        let written = File::create(&name).and_then(|mut file| {
            file.write_all(&Noise::new(kept as u64).bytes(1 << 20))?;
            file.sync_all()
        });
        match written {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept << 20 < MOST, "no end of room without a server");
    };
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull, "{refused}");
    assert!(kept << 20 >= BUDGET / 2, "refused after {kept} MiB");
    // Pages that the kernel held are refused and gone, and their program has not asked: `sync` must say so, once.
    open.write_all(&Noise::new(1).bytes(300_000)).unwrap();
    let point = root.to_str().unwrap();
    let sync = || {
        let mut command = machine.command(&["sync", "--timeout", "1s", point]);
        run(&mut command, PATIENCE)
    };
    sync().code_is(NO_ROOM);
    sync().code_is(PENDING);
    // The kernel tells it to whoever flushes first, which may be `status`.
    open.write_all(&Noise::new(2).bytes(300_000)).unwrap();
    let notes = machine.status()["notes"].to_string();
    assert!(notes.contains("while there was no room"), "{notes}");
    sync().code_is(PENDING);
    drop(open);
    fs::remove_file(root.join("open")).unwrap();
    // Everything that needs no room goes on, and so does reading.
    let _ = fs::remove_file(root.join(format!("data-{kept}")));
    fs::rename(root.join("old"), root.join("older")).unwrap();
    assert_eq!(fs::read(root.join("older")).unwrap(), b"old");
    assert!(fs::read(root.join("data-0")).unwrap() == Noise::new(0).bytes(1 << 20));

    proxy.set(Weather::Clear);
    wait_for("there is room again without help", PATIENCE, || {
        fs::write(root.join("room"), b"room").ok()
    });
    machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    let there = fresh.mount();
    compare(&root, there.path())
        .unwrap()
        .assert_same(kept as u64 + 2);
    drop(mounted);
}
