//! Clocks that jump by a year, forward and back, here and on the server: nothing stops, nothing is refused or lost.
//!
//! Needs libfaketime (Debian package libfaketime); monotonic time stays real, as it does when a clock is set.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sealdrive_tests::compare::compare;
use sealdrive_tests::made::Noise;
use sealdrive_tests::world::{Daemon, PATIENCE, World, program, run, wait_for};

/// Where Debian's multiarch directories have it.
fn library() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").unwrap().flatten();
    let found = places
        .map(|place| place.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists());
    if found.is_none() {
        println!("SKIPPED: libfaketime is missing, nothing was tested");
    }
    found
}

/// A wall clock in a file, for the processes started under it.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    fn new(library: &Path, file: PathBuf) -> Self {
        let clock = Self {
            library: library.to_owned(),
            file,
        };
        clock.set("+0");
        clock
    }

    /// Shifts the clock against the real one, such as `+1y` or `-1y`.
    fn set(&self, shift: &str) {
        fs::write(&self.file, format!("{shift}\n")).unwrap();
    }

    fn over(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
}

#[test]
fn a_year_forward_and_back_on_either_side() {
    let Some(library) = library() else { return };
    let world = World::new();
    let (here, there) = (
        Clock::new(&library, world.path("client-clock")),
        Clock::new(&library, world.path("server-clock")),
    );
    let data = world.path("data");
    let mut serve = Command::new(program("sealdrive-server"));
    serve
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data);
    there.over(&mut serve);
    let server = Daemon::start(&mut serve, &world.path("server.log"));
    let address = wait_for("the server listens", PATIENCE, || {
        let said = server.said();
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("listening on "));
        line.map(str::to_owned)
    });
    let mut invite = Command::new(program("sealdrive-server"));
    invite
        .args(["invite", "--address", &address, "--data"])
        .arg(&data);
    let connect = run(&mut invite, PATIENCE).ok().stdout;
    let machine = world.machine("machine");
    machine.init(connect.trim());
    let point = machine.mountpoint();
    let mut mount = machine.command(&["mount", "--foreground", point.to_str().unwrap()]);
    here.over(&mut mount);
    let mut daemon = Daemon::start(&mut mount, &world.path("mount.log"));
    wait_for("the drive is mounted", PATIENCE, || {
        daemon.said().contains("mounted at").then_some(())
    });

    for (number, (client, host)) in [
        ("+0", "+0"),
        ("+1y", "+0"),
        ("-1y", "+0"),
        ("+0", "+1y"),
        ("+0", "-1y"),
        ("-1y", "+1y"),
    ]
    .into_iter()
    .enumerate()
    {
        here.set(client);
        there.set(host);
        let name = point.join(format!("file-{number}"));
        fs::write(&name, Noise::new(number as u64).bytes(400_000)).unwrap();
        fs::create_dir(point.join(format!("dir-{number}"))).unwrap();
        let synced = machine.run(&["sync", "--timeout", "60s", point.to_str().unwrap()]);
        assert_eq!(
            synced.code, 0,
            "client {client}, server {host}: {}",
            synced.stderr
        );
    }
    // A login and a lease granted under one clock and used under another; a new mount on a third.
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    let other = fresh.mount();
    compare(&point, other.path()).unwrap().assert_same(12);
    machine.run(&["umount", point.to_str().unwrap()]).ok();
    let code = wait_for("the daemon ends", Duration::from_secs(30), || {
        daemon.ended()
    });
    assert_eq!(code, 0, "{}", daemon.said());
}
