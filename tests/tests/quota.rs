//! The account's quota on a real server: writes are refused when it is used up, and go on when the operator raises it.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use sealdrive_tests::compare::compare;
use sealdrive_tests::made::Noise;
use sealdrive_tests::world::{Machine, PATIENCE, Server, World, run, wait_for};

/// Bytes of the quota.
const QUOTA: &str = "3000000";
/// Exit code: data is not on the server yet.
const PENDING: i32 = 23;

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn is_over_quota(machine: &Machine) -> bool {
    machine.status()["over_quota"].as_bool().unwrap()
}

/// After the operator had raised the quota `sync` still said EDQUOT, and so did writes, until something happened to be
/// sent.
#[test]
fn a_raised_quota_is_used_without_a_new_mount() {
    let world = World::new();
    let mut server = Server::start(&world.path("server"), &["--account-quota", QUOTA]);
    let machine = world.machine("machine");
    machine.init(&server.invite());
    let mounted = machine.mount();
    let root = mounted.path();
    let mut kept = 0;
    let refused = wait_for("a write is refused", PATIENCE, || {
        let name = root.join(format!("file-{kept}"));
        match write_synced(&name, &Noise::new(kept).bytes(300_000)) {
            Ok(()) => {
                kept += 1;
                assert!(kept < 2000, "the quota was never reached");
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded, "{refused}");
    assert!(is_over_quota(&machine));
    // What was refused is not in the drive whole.
    fs::remove_file(root.join(format!("file-{kept}"))).ok();
    let point = root.to_str().unwrap();
    let pending = run(
        &mut machine.command(&["sync", "--timeout", "3s", point]),
        PATIENCE,
    );
    pending.code_is(PENDING);

    server.stop();
    server.restart_with(&["--account-quota", "3000000000"]);
    machine.sync();
    assert!(!is_over_quota(&machine));
    write_synced(&root.join("after"), &Noise::new(5000).bytes(300_000)).unwrap();
    machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    let there = fresh.mount();
    compare(root, there.path()).unwrap().assert_same(kept + 1);
    drop(there);
}

/// Nobody asks: it drains all the same.
#[test]
fn a_raised_quota_is_noticed_by_itself() {
    let world = World::new();
    let mut server = Server::start(&world.path("server"), &["--account-quota", QUOTA]);
    let machine = world.machine("machine");
    machine.init(&server.invite());
    let mounted = machine.mount();
    write_synced(
        &mounted.path().join("large"),
        &Noise::new(1).bytes(6_000_000),
    )
    .unwrap();
    wait_for("the account is full", PATIENCE, || {
        is_over_quota(&machine).then_some(())
    });
    server.stop();
    server.restart_with(&[]);
    wait_for("everything is on the server", PATIENCE, || {
        let status = machine.status();
        let done = status["state"] == "committed" && status["over_quota"] == false;
        done.then_some(())
    });
    write_synced(&mounted.path().join("after"), b"after").unwrap();
    machine.sync();
}
