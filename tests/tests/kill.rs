//! kill -9 of client and server at random moments under load, with a ledger of what fsync and `sync` acknowledged.
//!
//! What fsync acknowledged must be there after the next mount; what `sealdrive sync` acknowledged must be there on
//! another machine with an empty cache, with the first one's daemon and the server killed in between. A run in which
//! nothing was in flight at the kills proves nothing and fails. The seed is printed; `SEALDRIVE_SEED` gives it back
//! (the kernel's timing it cannot). The slow form is scripts/kills.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sealdrive_tests::made::{Noise, bytes_of};
use sealdrive_tests::world::{Machine, World};

/// Kills of the client in this test, about a minute on two busy cores; `SEALDRIVE_KILLS` asks for more.
const KILLS: u64 = 3;
/// Rounds after which another machine reads everything through an empty cache.
const ELSEWHERE: u64 = 5;
/// Threads that write.
const WRITERS: u64 = 3;
/// Whole files kept: older ones are removed under the load, so that a long run checks as much in each round as a short
/// one.
const KEPT: usize = 120;
/// Operations after which a writer begins a new growing file: about 1.5 MB each.
const GENERATION: u64 = 3000;

/// What fsync promised: version of each replaced file, length of each growing one.
#[derive(Default, Clone)]
struct Ledger {
    /// Whole files, each written once: number → length.
    whole: BTreeMap<u64, usize>,
    /// Files that only grow: generation and writer → acknowledged length.
    grown: BTreeMap<(u64, u64), usize>,
    /// Files replaced by rename: name → acknowledged version.
    replaced: BTreeMap<String, u64>,
    /// Names whose removal was begun: they may be there or not.
    leaving: BTreeSet<String>,
    /// Names whose removal was acknowledged by an fsync of their directory.
    gone: BTreeSet<String>,
}

fn whole_name(number: u64) -> String {
    format!("whole-{number}")
}

fn grown_name((generation, writer): (u64, u64)) -> String {
    format!("grown-{writer}-{generation}")
}

impl Ledger {
    fn len(&self) -> usize {
        self.whole.len() + self.grown.len() + self.replaced.len() + self.gone.len()
    }

    /// Takes the oldest file out of the promises, to be removed, if there are enough without it.
    fn retire(&mut self, generation: u64) -> Option<String> {
        let name = if self.whole.len() > KEPT {
            whole_name(self.whole.pop_first()?.0)
        } else {
            // The former generation stays: another writer may still be at it.
            let oldest = self.grown.first_entry()?;
            if oldest.key().0 + 1 >= generation {
                return None;
            }
            grown_name(oldest.remove_entry().0)
        };
        self.leaving.insert(name.clone());
        Some(name)
    }

    /// What of an older ledger is still promised, now that these names are leaving.
    fn without(mut self, leaving: &BTreeSet<String>) -> Self {
        self.whole
            .retain(|&number, _| !leaving.contains(&whole_name(number)));
        self.grown
            .retain(|&which, _| !leaving.contains(&grown_name(which)));
        self
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
            1 => grow(load, root, (number / GENERATION, writer)),
            _ => replace(load, root, writer, number),
        }
        .and_then(|()| retire(load, root, number / GENERATION));
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
    let (name, length) = (whole_name(number), (number as usize * 7919) % 900_000);
    let mut file = File::create(root.join(&name))?;
    file.write_all(&bytes_of(&name, 0, length))?;
    file.sync_all()?;
    load.ledger.lock().unwrap().whole.insert(number, length);
    load.acknowledged.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

fn grow(load: &Load, root: &Path, which: (u64, u64)) -> std::io::Result<()> {
    let name = grown_name(which);
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(root.join(&name))?;
    let before = file.metadata()?.len() as usize;
    let all = bytes_of(&name, 0, before + 5000);
    file.write_all(&all[before..])?;
    file.sync_data()?;
    let mut ledger = load.ledger.lock().unwrap();
    ledger.grown.insert(which, before + 5000);
    load.acknowledged.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// Removes what is old; what was removed and acknowledged must not come back.
fn retire(load: &Load, root: &Path, generation: u64) -> std::io::Result<()> {
    let Some(name) = load.ledger.lock().unwrap().retire(generation) else {
        return Ok(());
    };
    fs::remove_file(root.join(&name))?;
    File::open(root)?.sync_all()?;
    load.ledger.lock().unwrap().gone.insert(name);
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
    let read = |name: &str| {
        fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name} was fsynced: {error}"))
    };
    for (&number, &length) in &ledger.whole {
        let name = whole_name(number);
        let there = read(&name);
        assert!(
            there == bytes_of(&name, 0, length),
            "{name}: {} of {length} bytes, or other",
            there.len()
        );
    }
    for (&which, &length) in &ledger.grown {
        let name = grown_name(which);
        let there = read(&name);
        assert!(
            there.len() >= length,
            "{name}: {} of {length} bytes",
            there.len()
        );
        let right = bytes_of(&name, 0, there.len());
        assert!(there[..length] == right[..length], "{name}: other bytes");
        // Beyond the acknowledged length: right bytes, or holes; nobody else's.
        let beyond = there[length..].iter().zip(&right[length..]);
        assert!(
            beyond.clone().all(|(is, should)| is == should || *is == 0),
            "{name}: foreign bytes after {length}"
        );
    }
    for (name, version) in &ledger.replaced {
        let there = read(name);
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
    let names: BTreeSet<String> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let back: Vec<_> = ledger.gone.intersection(&names).collect();
    assert!(back.is_empty(), "removed, fsynced and back: {back:?}");
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
            let leaving = load.ledger.lock().unwrap().leaving.clone();
            let promised = load.committed.lock().unwrap().clone().without(&leaving);
            verify_elsewhere(&world, &machine, &promised, &format!("fresh-{round}"));
            elsewhere += promised.len();
        }
        mounted = machine.mount();
        let ledger = load.ledger.lock().unwrap();
        verify(&ledger, mounted.path());
        checked += ledger.len();
        if round % ELSEWHERE == ELSEWHERE - 2 {
            // Without load, so that what waits for the server does not grow from round to round: the next ones have
            // syncs that come through, and the other machine has more to be asked for.
            machine.sync();
            *load.committed.lock().unwrap() = ledger.clone();
        }
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
