//! kill -9 of client and server at random moments under load, with a ledger of what fsync and `sync` acknowledged.
//!
//! What fsync acknowledged must be there after the next mount; what `sealdrive sync` acknowledged must be there on
//! another machine with an empty cache, with the first one's daemon and the server killed in between. A run in which
//! nothing was in flight at the kills proves nothing and fails. The seed is printed; `SEALDRIVE_SEED` gives it back
//! (the kernel's timing it cannot). The slow form is scripts/kills.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sealdrive_tests::made::Noise;
use sealdrive_tests::world::{Machine, World};

/// Kills of the client in this test, about a minute on two busy cores; `SEALDRIVE_KILLS` asks for more.
const KILLS: u64 = 3;
/// Rounds after which another machine reads everything through an empty cache.
const ELSEWHERE: u64 = 5;
/// Threads that write.
const WRITERS: u64 = 3;

/// What fsync promised: version of each replaced file, length of each growing one.
#[derive(Default, Clone)]
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

impl Ledger {
    fn len(&self) -> usize {
        self.whole.len() + self.grown.len() + self.replaced.len()
    }
}

struct Load {
    ledger: Mutex<Ledger>,
    /// What a `sealdrive sync` that answered 0 promised: the ledger as it was before.
    committed: Mutex<Ledger>,
    /// Fsyncs and syncs acknowledged.
    acknowledged: AtomicU64,
    syncs: AtomicU64,
    stop: AtomicBool,
    /// Operations begun and not yet answered when the daemon died.
    in_flight: AtomicU64,
    next: AtomicU64,
}

/// A path that leads into this mount also when it is taken away, where it answers only with errors. A writer that goes
/// by the mountpoint may be late: its next step then succeeds in the empty directory beneath, which is no promise of
/// ours.
fn held(mountpoint: &Path) -> (PathBuf, File) {
    let root = File::open(mountpoint).unwrap();
    (
        PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())),
        root,
    )
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

/// Asks for commits under the load; the other half of the ledger is written only after `sync` answered 0.
fn sync(load: &Load, machine: &Machine, pause: Duration) {
    while !load.stop.load(Ordering::SeqCst) {
        thread::sleep(pause);
        let before = load.ledger.lock().unwrap().clone();
        let point = machine.mountpoint();
        let said = machine.run(&["sync", "--timeout", "20s", point.to_str().unwrap()]);
        if said.code == 0 {
            *load.committed.lock().unwrap() = before;
            load.syncs.fetch_add(1, Ordering::SeqCst);
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
    load.acknowledged.fetch_add(1, Ordering::SeqCst);
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
    load.acknowledged.fetch_add(1, Ordering::SeqCst);
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
    load.acknowledged.fetch_add(1, Ordering::SeqCst);
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

/// Another machine that knows nothing reads what a sync promised, with the writer dead.
fn verify_elsewhere(world: &World, machine: &Machine, promised: &Ledger, name: &str) {
    let fresh = world.machine(name);
    fresh.recover(&machine.kit());
    let there = fresh.mount();
    verify(promised, there.path());
    there.kill();
    fs::remove_dir_all(fresh.home()).unwrap();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_fsync_and_sync_acknowledged_survives_kill_9_of_client_and_server() {
    let kills = number("SEALDRIVE_KILLS").unwrap_or(KILLS);
    let seed = number("SEALDRIVE_SEED").unwrap_or_else(|| std::process::id().into());
    println!("SEALDRIVE_SEED={seed}");
    let world = World::new();
    let (mut server, machine, mut mounted) = world.mounted();
    let machine = Arc::new(machine);
    let load = Arc::new(Load {
        ledger: Mutex::default(),
        committed: Mutex::default(),
        acknowledged: AtomicU64::new(0),
        syncs: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        in_flight: AtomicU64::new(0),
        next: AtomicU64::new(0),
    });
    let mut noise = Noise::new(seed);
    let (mut server_kills, mut elsewhere, mut checked) = (0, 0, 0);
    // A short run in which no sync came through under the load goes on until one did.
    let syncs_so_far = || load.syncs.load(Ordering::SeqCst);
    let rounds = (0..2 * kills).take_while(|round| *round < kills || syncs_so_far() == 0);
    for round in rounds {
        load.stop.store(false, Ordering::SeqCst);
        let (root, handle) = held(mounted.path());
        let mut writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (load, root) = (load.clone(), root.clone());
                thread::spawn(move || write(&load, &root, writer))
            })
            .collect();
        let pause = Duration::from_millis(100 + noise.below(900));
        let (syncing, here) = (load.clone(), machine.clone());
        writers.push(thread::spawn(move || sync(&syncing, &here, pause)));
        thread::sleep(Duration::from_millis(300 + noise.below(2500)));
        // Server first, client first, server killed and back under the client's load, or the client alone.
        let way = noise.below(4);
        if way < 2 {
            server.kill();
            server_kills += 1;
            thread::sleep(Duration::from_millis(noise.below(600)));
        }
        if way == 1 {
            server.restart();
            thread::sleep(Duration::from_millis(noise.below(1500)));
        }
        mounted.kill();
        load.stop.store(true, Ordering::SeqCst);
        if way == 2 {
            server.kill();
            server_kills += 1;
        }
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        drop(handle);
        if way == 0 || way == 2 {
            server.restart();
        }
        if round % ELSEWHERE == ELSEWHERE - 1 || round + 1 >= kills {
            let promised = load.committed.lock().unwrap().clone();
            verify_elsewhere(&world, &machine, &promised, &format!("fresh-{round}"));
            elsewhere += promised.len();
        }
        mounted = machine.mount();
        let ledger = load.ledger.lock().unwrap();
        verify(&ledger, mounted.path());
        checked += ledger.len();
        let syncs = load.syncs.load(Ordering::SeqCst);
        println!(
            "round {round}: {} promises of fsync kept, {syncs} syncs so far",
            ledger.len()
        );
    }
    let in_flight = load.in_flight.load(Ordering::SeqCst);
    let acknowledged = load.acknowledged.load(Ordering::SeqCst);
    let syncs = load.syncs.load(Ordering::SeqCst);
    println!(
        "{kills} kills of the client, {server_kills} of the server, {in_flight} operations in flight; {acknowledged} \
         acknowledged fsyncs and {syncs} syncs; {checked} checks here, {elsewhere} on another machine"
    );
    assert!(
        in_flight >= kills / 2,
        "{in_flight} operations in flight at {kills} kills: the kills hit nothing"
    );
    assert!(
        acknowledged > 20,
        "{acknowledged} acknowledged fsyncs prove little"
    );
    assert!(
        syncs > 0 && elsewhere > 0,
        "no sync was acknowledged under load"
    );
    machine.sync();
    mounted.kill();
    verify_elsewhere(&world, &machine, &load.ledger.lock().unwrap(), "fresh");
}
