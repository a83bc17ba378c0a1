//! Bit rot, systematically: every file of a client and of a server, damaged in every way, then the real programs.
//!
//! What is read is right, or an error with the file's name in `status`; what the other side has is healed; the mount
//! comes up and nothing panics. A few cases in the normal run; all of them, at many offsets, with `SEALDRIVE_ROT=full`
//! (scripts/rot).

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sealdrive_tests::made::{Noise, prose};
use sealdrive_tests::world::{Machine, Mounted, Server, World, run, wait_for};

/// Cases of each test in the normal run: the three together take a minute on two busy cores.
const CASES: usize = 12;
/// What is said when a program meets what it was not made for.
const DEFECTS: [&str; 2] = ["panicked", "a defect in the program"];

/// How safe a file was when the damage came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a commit on the server, and on this machine.
    Committed,
    /// Sealed in the outbox only.
    Outbox,
    /// In the journal only.
    Journal,
}

/// Every file of the drive: name, content, place.
fn files() -> Vec<(String, Vec<u8>, Place)> {
    let mut out = Vec::new();
    let sizes = [700usize, 40_000, 600_000];
    for (group, place) in [
        Place::Committed,
        Place::Committed,
        Place::Outbox,
        Place::Journal,
    ]
    .into_iter()
    .enumerate()
    {
        for (number, size) in sizes.into_iter().enumerate() {
            let seed = (group * 10 + number) as u64;
            let content = match number {
                0 => prose(seed, size),
                _ => Noise::new(seed).bytes(size + seed as usize),
            };
            out.push((format!("g{group}-{number}"), content, place));
        }
    }
    out
}

fn write_group(mounted: &Mounted, group: usize) {
    for (name, content, _) in files() {
        if name.starts_with(&format!("g{group}")) {
            let mut file = File::create(mounted.path().join(name)).unwrap();
            file.write_all(&content).unwrap();
            file.sync_all().unwrap();
        }
    }
}

/// A client with something in every one of its files, and its server; both as they lie on disk.
struct Template {
    world: World,
    server: Server,
    machine: Machine,
}

fn build() -> Template {
    let world = World::new();
    let (mut server, machine, mounted) = world.mounted();
    write_group(&mounted, 0);
    machine.umount(mounted);
    let mounted = machine.mount();
    write_group(&mounted, 1);
    machine.sync();
    // The pack of the first mount is in the cache by now. From here on nothing reaches the server.
    server.kill();
    write_group(&mounted, 2);
    let point = mounted.path().to_str().unwrap().to_owned();
    // Makes a checkpoint, so that content and tree are in the outbox and the journal is trimmed.
    machine
        .run(&["sync", "--timeout", "3s", &point])
        .code_is(23);
    write_group(&mounted, 3);
    mounted.kill();
    copy(&machine.home(), &world.path("good-home"));
    copy(server.data(), &world.path("good-server"));
    Template {
        world,
        server,
        machine,
    }
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    run(
        Command::new("cp").arg("-a").arg(from).arg(to),
        Duration::from_secs(60),
    )
    .ok();
}

/// What is done to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip(u64),
    Cut(u64),
    Remove,
}

impl Damage {
    fn apply(self, path: &Path) {
        match self {
            Self::Remove => fs::remove_file(path).unwrap(),
            Self::Cut(len) => File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(len)
                .unwrap(),
            Self::Flip(at) => {
                let file = File::options().read(true).write(true).open(path).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).unwrap();
            }
        }
    }
}

/// Every regular file below `root` that holds state, by its path from there.
fn state_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let (kind, name) = (entry.file_type().unwrap(), entry.file_name());
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file()
                && !name.to_string_lossy().contains("lock")
                && name != "reserve"
            {
                found.push(entry.path().strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// All cases of the slow form, or a few of them, other ones each day: the seed is printed.
fn cases(root: &Path) -> Vec<(PathBuf, Damage)> {
    let full = std::env::var("SEALDRIVE_ROT").is_ok_and(|value| value == "full");
    let mut all = Vec::new();
    for path in state_files(root) {
        let len = fs::metadata(root.join(&path)).unwrap().len();
        let structure = [0, 4, 8, 12, 16, 33, 40, 64, 80, 100, 150, 220, 400];
        let spread = (0..16).map(|part| len * part / 16);
        let tail = (1..=64).step_by(9).map(|back| len.saturating_sub(back));
        let mut offsets: Vec<u64> = structure.into_iter().chain(spread).chain(tail).collect();
        offsets.retain(|at| *at < len);
        offsets.sort_unstable();
        offsets.dedup();
        all.extend(offsets.iter().map(|at| (path.clone(), Damage::Flip(*at))));
        all.extend(
            offsets
                .iter()
                .step_by(5)
                .map(|at| (path.clone(), Damage::Cut(*at))),
        );
        all.push((path, Damage::Remove));
    }
    if full {
        return all;
    }
    let seed = std::env::var("SEALDRIVE_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("SEALDRIVE_SEED={seed}");
    let mut noise = Noise::new(seed);
    let count = all.len() as u64;
    // One case in each stretch, so that every kind of file has its share.
    let step = count / CASES as u64;
    (0..CASES as u64)
        .map(|case| all[(case * step + noise.below(step)) as usize].clone())
        .collect()
}

/// What became of the drive in one case.
struct Seen {
    /// Files that were not read right.
    bad: Vec<(String, Place, std::io::ErrorKind)>,
    status: serde_json::Value,
}

fn look(machine: &Machine, mounted: &Mounted, case: &str) -> Seen {
    let mut bad = Vec::new();
    for (name, content, place) in files() {
        match fs::read(mounted.path().join(&name)) {
            Ok(found) => assert!(found == content, "{case}: {name} was read with other bytes"),
            Err(error) => bad.push((name, place, error.kind())),
        }
    }
    let status = machine.status();
    for (name, _, kind) in &bad {
        if *kind == std::io::ErrorKind::NotFound {
            continue;
        }
        let path = mounted.path().join(name);
        let listed = status["damaged"].as_array().unwrap();
        assert!(
            listed
                .iter()
                .any(|file| file["path"] == path.to_str().unwrap()),
            "{case}: {name} fails ({kind:?}) and status does not name it: {status}"
        );
    }
    if bad
        .iter()
        .any(|(_, _, kind)| *kind != std::io::ErrorKind::NotFound)
    {
        assert_ne!(status["verdict"], 0, "{case}: {status}");
    }
    for word in DEFECTS {
        assert!(
            !mounted.daemon.said().contains(word),
            "{case}:\n{}",
            mounted.daemon.said()
        );
    }
    Seen { bad, status }
}

#[test]
fn any_damage_to_any_file_of_a_client_is_healed_or_told() {
    let Template {
        world,
        mut server,
        machine,
    } = build();
    let (mut healed, mut told, mut silent) = (0, 0, 0);
    let cases = cases(&world.path("good-home"));
    for (path, damage) in &cases {
        let case = format!("{} {damage:?}", path.display());
        let text = path.to_string_lossy().into_owned();
        copy(&world.path("good-home"), &machine.home());
        copy(&world.path("good-server"), server.data());
        damage.apply(&machine.home().join(path));
        server.restart();
        let mounted = match machine.try_mount(&[]) {
            Ok(mounted) => mounted,
            Err((code, said)) => panic!("{case}: no mount ({code}): {said}"),
        };
        let seen = look(&machine, &mounted, &case);
        for (name, place, kind) in &seen.bad {
            // Only what the damaged file alone held may be lost.
            let excused = match place {
                Place::Committed => false,
                Place::Outbox => text.contains("outbox"),
                // A lost tree node sets everything since the last commit aside, and says so.
                Place::Journal => {
                    let is_aside = seen.status["conflicts"] == 1
                        && *kind == std::io::ErrorKind::NotFound
                        && seen.status["verdict"] == 21;
                    text.contains("journal") || text.contains("outbox") && is_aside
                }
            };
            assert!(
                excused,
                "{case}: {name} is lost ({kind:?}): {}",
                seen.status
            );
        }
        let untold = seen.status["verdict"] == 0;
        match (seen.bad.is_empty(), untold) {
            (true, _) => healed += 1,
            (false, false) => told += 1,
            (false, true) => {
                // FORMAT.md: of the last flush of the newest segment there is no witness.
                assert!(
                    text.ends_with(".sdj"),
                    "{case}: lost in silence: {}",
                    seen.status
                );
                assert_eq!(seen.bad.len(), 1, "{case}: more than the last flush");
                silent += 1;
            }
        }
        if seen.bad.is_empty() {
            machine.sync();
        }
        mounted.kill();
        server.kill();
    }
    println!(
        "{} cases: {healed} healed, {told} told, {silent} the last flush",
        cases.len()
    );
    assert!(healed > 0, "nothing was healed");
}

#[test]
fn any_damage_to_any_file_of_a_server_is_healed_or_told() {
    let Template {
        world,
        mut server,
        machine,
    } = build();
    // A machine with nothing but the kit: what it reads, the server has.
    copy(&world.path("good-server"), server.data());
    server.restart();
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    server.stop();
    copy(server.data(), &world.path("good-server"));
    copy(&fresh.home(), &world.path("good-fresh"));
    let (mut healed, mut told) = (0, 0);
    let packs = fs::read_dir(world.path("good-server").join("packs")).unwrap();
    let packs: Vec<PathBuf> = packs.map(|entry| entry.unwrap().path()).collect();
    let only_pack = packs.len() == 1;
    let mut cases = cases(&world.path("good-server"));
    // Half of the objects gone: that cannot be healed, whichever cases the short form takes besides.
    let half = fs::metadata(&packs[0]).unwrap().len() / 2;
    let pack = Path::new("packs").join(packs[0].file_name().unwrap());
    cases.push((pack, Damage::Cut(half)));
    for (path, damage) in &cases {
        let case = format!("{} {damage:?}", path.display());
        copy(&world.path("good-fresh"), &fresh.home());
        copy(&world.path("good-server"), server.data());
        damage.apply(&server.data().join(path));
        if only_pack && path.starts_with("packs") && matches!(damage, Damage::Remove) {
            // An empty directory may be a disk that is not mounted: nobody is told that everything is gone before the
            // operator has said so.
            let said = server.refuses();
            assert!(said.contains("is the disk mounted?"), "{case}: {said}");
            server.rebuild_index();
        }
        server.restart();
        match fresh.try_mount(&[]) {
            Ok(mounted) => {
                let seen = look(&fresh, &mounted, &case);
                let lost = seen
                    .bad
                    .iter()
                    .any(|(_, place, _)| *place == Place::Committed);
                if lost {
                    assert!(path.starts_with("packs"), "{case}: {}", seen.status);
                    told += 1;
                } else {
                    healed += 1;
                }
                mounted.kill();
            }
            // The damage took the account, the head or the root: then a machine that knows nothing is told so.
            Err((code, said)) => {
                assert!(path.starts_with("packs"), "{case}: {code} {said}");
                assert!(
                    [10, 12, 20, 21, 22].contains(&code),
                    "{case}: {code} {said}"
                );
                told += 1;
            }
        }
        let said = server.said();
        for word in DEFECTS {
            // redb may panic over a damaged page; that is caught, and said in a line of its own.
            let caught = said.contains("is made anew from the packs");
            assert!(!said.contains(word) || caught, "{case}:\n{said}");
        }
        server.kill();
    }
    println!("{} cases: {healed} healed, {told} told", cases.len());
    assert!(healed > 0 && told > 0);
}

/// Where the longest record of a server's pack begins, and the length of what it holds. FORMAT.md, "Packs".
fn largest_record(pack: &[u8]) -> (usize, usize) {
    let starts = (0..pack.len() - 12).filter(|at| pack[*at..].starts_with(b"SDR1"));
    let length = |at| u32::from_le_bytes(pack[at + 8..at + 12].try_into().unwrap()) as usize;
    let records = starts.map(|at| (at, length(at)));
    let whole = records.filter(|(at, len)| at + len <= pack.len());
    whole.max_by_key(|(_, len)| *len).unwrap()
}

/// The suspect path: a reader finds an object damaged on the server; the machine that wrote it, mounted all the while,
/// is told at its next lease renewal and sends it again.
#[test]
fn damage_on_the_server_is_healed_by_a_machine_that_has_the_object() {
    let world = World::new();
    let (mut server, machine, mounted) = world.mounted();
    write_group(&mounted, 0);
    write_group(&mounted, 1);
    machine.sync();
    server.stop();
    let pack = server.data().join("packs");
    let pack = fs::read_dir(pack).unwrap().next().unwrap().unwrap().path();
    // The largest object belongs to one file alone; small files share one.
    let (at, len) = largest_record(&fs::read(&pack).unwrap());
    Damage::Flip((at + len / 2) as u64).apply(&pack);
    server.restart();
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    let reader = fresh.mount();
    let committed = |seen: &Seen| {
        let lost = seen.bad.iter().filter(|(name, ..)| name < &"g2".to_owned());
        lost.count()
    };
    let first = look(&fresh, &reader, "before");
    assert_eq!(committed(&first), 1, "{}", first.status);
    assert_eq!(first.status["verdict"], 21, "{}", first.status);
    wait_for("the object is whole again", Duration::from_secs(90), || {
        (committed(&look(&fresh, &reader, "after")) == 0).then_some(())
    });
    let healed = machine.status()["notes"].to_string();
    assert!(healed.contains("sent again"), "{healed}");
    let now = fresh.status();
    assert_eq!(now["damaged"].as_array().unwrap().len(), 0, "{now}");
}
