//! kill -9 of client and server at random moments under load, with a ledger of what fsync acknowledged.
//!
//! Everything in the ledger must be there after the next mount, and at the end on another machine with an empty cache.
//! A run in which nothing was in flight at the kills proves nothing and fails.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sealdrive_tests::made::Noise;
use sealdrive_tests::world::World;

/// Kills of the client in this test; `SEALDRIVE_KILLS` asks for more.
const KILLS: u64 = 6;
/// Threads that write.
const WRITERS: u64 = 3;

/// What fsync promised: version of each replaced file, length of each growing one.
#[derive(Default)]
struct Ledger {
    /// Whole files, each written once: name → seed and length.
    whole: BTreeMap<String, (u64, usize)>,
    /// Files that only grow: name → acknowledged length.
    grown: BTreeMap<String, usize>,
    /// Files replaced by rename: name → acknowledged version.
    replaced: BTreeMap<String, u64>,
}

fn bytes_of(name: &str, version: u64, length: usize) -> Vec<u8> {
    let seed = name.bytes().fold(version, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    Noise::new(seed).bytes(length)
}

struct Load {
    ledger: Mutex<Ledger>,
    stop: AtomicBool,
    /// Operations begun and not yet answered when the daemon died.
    in_flight: AtomicU64,
    next: AtomicU64,
}

/// Writes until an error or the stop; the ledger is written only after fsync returned 0.
fn write(load: &Load, root: &Path, writer: u64) {
    while !load.stop.load(Ordering::SeqCst) {
        let number = load.next.fetch_add(1, Ordering::SeqCst);
        let done = match number % 3 {
            0 => whole(load, root, number),
            1 => grow(load, root, writer),
            _ => replace(load, root, writer, number),
        };
        if done.is_err() {
            load.in_flight.fetch_add(1, Ordering::SeqCst);
            return;
        }
    }
}

fn whole(load: &Load, root: &Path, number: u64) -> std::io::Result<()> {
    let (name, length) = (
        format!("whole-{number}"),
        (number as usize * 7919) % 900_000,
    );
    let mut file = File::create(root.join(&name))?;
    file.write_all(&bytes_of(&name, 0, length))?;
    file.sync_all()?;
    load.ledger.lock().unwrap().whole.insert(name, (0, length));
    Ok(())
}

fn grow(load: &Load, root: &Path, writer: u64) -> std::io::Result<()> {
    let name = format!("grown-{writer}");
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(root.join(&name))?;
    let before = file.metadata()?.len() as usize;
    let all = bytes_of(&name, 0, before + 5000);
    file.write_all(&all[before..])?;
    file.sync_data()?;
    load.ledger
        .lock()
        .unwrap()
        .grown
        .insert(name, before + 5000);
    Ok(())
}

fn replace(load: &Load, root: &Path, writer: u64, version: u64) -> std::io::Result<()> {
    let (name, aside) = (
        format!("replaced-{writer}"),
        format!("replaced-{writer}.new"),
    );
    let mut file = File::create(root.join(&aside))?;
    file.write_all(&version.to_le_bytes())?;
    file.write_all(&bytes_of(&name, version, 3000))?;
    file.sync_all()?;
    fs::rename(root.join(&aside), root.join(&name))?;
    File::open(root)?.sync_all()?;
    load.ledger.lock().unwrap().replaced.insert(name, version);
    Ok(())
}

/// Everything acknowledged is there, and nothing there is wrong.
fn verify(ledger: &Ledger, root: &Path) {
    for (name, (version, length)) in &ledger.whole {
        let there =
            fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name} was fsynced: {error}"));
        assert!(
            there == bytes_of(name, *version, *length),
            "{name}: {} of {length} bytes, or other",
            there.len()
        );
    }
    for (name, length) in &ledger.grown {
        let there =
            fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name} was fsynced: {error}"));
        assert!(
            there.len() >= *length,
            "{name}: {} of {length} bytes",
            there.len()
        );
        let right = bytes_of(name, 0, there.len());
        assert!(there[..*length] == right[..*length], "{name}: other bytes");
        // Beyond the acknowledged length: right bytes, or holes; nobody else's.
        let beyond = there[*length..].iter().zip(&right[*length..]);
        assert!(
            beyond.clone().all(|(is, should)| is == should || *is == 0),
            "{name}: foreign bytes after {length}"
        );
    }
    for (name, version) in &ledger.replaced {
        let there =
            fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name} was fsynced: {error}"));
        let found = u64::from_le_bytes(there[..8].try_into().unwrap());
        assert!(
            found >= *version,
            "{name}: version {found} after {version} was acknowledged"
        );
        assert!(
            there[8..] == bytes_of(name, found, 3000),
            "{name}: a torn replacement"
        );
    }
}

#[test]
fn what_fsync_acknowledged_survives_kill_9_of_client_and_server() {
    let kills = std::env::var("SEALDRIVE_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(KILLS);
    let world = World::new();
    let (mut server, machine, mut mounted) = world.mounted();
    let load = Arc::new(Load {
        ledger: Mutex::default(),
        stop: AtomicBool::new(false),
        in_flight: AtomicU64::new(0),
        next: AtomicU64::new(0),
    });
    let mut noise = Noise::new(std::process::id().into());
    let mut acknowledged = 0;
    for round in 0..kills {
        load.stop.store(false, Ordering::SeqCst);
        let root = mounted.path().to_owned();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (load, root) = (load.clone(), root.clone());
                thread::spawn(move || write(&load, &root, writer))
            })
            .collect();
        thread::sleep(Duration::from_millis(300 + noise.below(2500)));
        if round % 3 == 1 {
            server.kill();
            thread::sleep(Duration::from_millis(noise.below(500)));
        }
        mounted.kill();
        load.stop.store(true, Ordering::SeqCst);
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        if round % 3 == 1 {
            server.restart();
        }
        mounted = machine.mount();
        let ledger = load.ledger.lock().unwrap();
        verify(&ledger, mounted.path());
        let now = ledger.whole.len() + ledger.grown.len() + ledger.replaced.len();
        println!("round {round}: {now} promises kept");
        acknowledged = now;
    }
    let in_flight = load.in_flight.load(Ordering::SeqCst);
    assert!(
        in_flight >= kills / 2,
        "{in_flight} operations in flight at {kills} kills: the kills hit nothing"
    );
    assert!(
        acknowledged > 20,
        "{acknowledged} acknowledged fsyncs prove little"
    );

    machine.sync();
    mounted.kill();
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    let there = fresh.mount();
    verify(&load.ledger.lock().unwrap(), there.path());
}
