//! A machine on a simulated disk, a model of what its drive holds, and a ledger of what was promised.
//!
//! Invariant: a state is in the ledger before the request that makes it is sent, and a promise only after it was given:
//! so at every moment what a power cut leaves must be a state no older than the last promise. Called by the tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sealdrive::drive::{Answer, Handle, NewNode, PlanPiece, RenameRule};
use sealdrive::engine::{CrashPoints, EngineConfig, EngineError};
use sealdrive_core::record::FileKind;
use sealdrive_tests::sim::disk::Disk;

use crate::engine_support::{ME, Machine, MemoryServer, NOW, World, noise, soon};

/// The tree at one moment: directories end with a slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Open for writing: unsynced ranges of it may be holes.
    pub open: Option<String>,
}

/// What was done and what was promised, as numbers of states.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Shared with every copy of the ledger: each power cut keeps one.
    pub states: Vec<Arc<State>>,
    /// An fsync has returned for this state.
    pub synced: usize,
    /// A sync with the server has returned for this state.
    pub committed: usize,
    /// An fsync of this state is under way.
    asked: usize,
    /// The log that is being written holds at least this state.
    pub taken: usize,
    pub phase: u64,
}

impl Ledger {
    fn new() -> Self {
        Self {
            states: vec![Arc::default()],
            synced: 0,
            committed: 0,
            asked: 0,
            taken: 0,
            phase: 0,
        }
    }
}

pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a machine on a disk; without a server if there is none.
pub fn mount(
    world: &World,
    disk: &Disk,
    server: Option<&Arc<MemoryServer>>,
    device: u8,
    points: Option<CrashPoints>,
) -> Result<Machine, EngineError> {
    let mut config = config_on(world, disk, server, device);
    config.crash = points.unwrap_or_default();
    world.try_mount(config)
}

/// What a machine on a disk is opened with.
pub fn config_on(
    world: &World,
    disk: &Disk,
    server: Option<&Arc<MemoryServer>>,
    device: u8,
) -> EngineConfig {
    let mut config = world.config("nowhere", device);
    config.medium = Some(disk.root());
    config.remote = server.map(|server| server.connect(crate::engine_support::device(device)));
    config.commit_interval = Duration::from_millis(100);
    config
}

/// Everything on the drive, or what could not be read.
pub fn read_tree(machine: &Machine) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut out = BTreeMap::new();
    walk(machine, "", &mut out)?;
    Ok(out)
}

fn walk(machine: &Machine, dir: &str, out: &mut BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let told = |e| format!("{dir}: {e:?}");
    let ino = machine.ino(dir).map_err(told)?;
    let handle = machine.op(|d| d.opendir(ino)).map_err(told)?;
    let mut names = Vec::new();
    machine
        .op(|d| {
            names.clear();
            d.readdir(handle, 0, |entry| {
                names.push((String::from_utf8_lossy(entry.name).into_owned(), entry.kind));
                true
            })
        })
        .map_err(told)?;
    machine.drive().releasedir(handle);
    for (name, kind) in names
        .into_iter()
        .filter(|(name, _)| name != "." && name != "..")
    {
        let path = format!("{dir}/{name}");
        if kind == FileKind::Directory {
            out.insert(format!("{path}/"), Vec::new());
            walk(machine, &path, out)?;
        } else {
            let content = read(machine, &path)?;
            out.insert(path, content);
        }
    }
    Ok(())
}

fn read(machine: &Machine, path: &str) -> Result<Vec<u8>, String> {
    let told = |e| format!("{path}: {e:?}");
    let ino = machine.ino(path).map_err(told)?;
    let plan = machine
        .op(|d| d.read_plan(ino, 0, u64::MAX))
        .map_err(told)?;
    let mut out = Vec::new();
    for piece in plan.pieces {
        match piece {
            PlanPiece::Memory(bytes) => out.extend_from_slice(&bytes),
            PlanPiece::Zero(len) => out.resize(out.len() + len as usize, 0),
            PlanPiece::Chunk {
                reference,
                skip,
                len,
            } => {
                let chunk = machine.engine.chunk(&reference, soon(5));
                let chunk = chunk.map_err(|e| format!("{path} at {}: {e}", out.len()))?;
                out.extend_from_slice(&chunk[skip as usize..][..len as usize]);
            }
        }
    }
    Ok(out)
}

/// Which of the states from `least` on this tree is, if any.
pub fn which(ledger: &Ledger, least: usize, tree: &BTreeMap<String, Vec<u8>>) -> Option<usize> {
    (least..ledger.states.len())
        .rev()
        .find(|k| fits(&ledger.states[*k], tree))
}

fn fits(state: &State, tree: &BTreeMap<String, Vec<u8>>) -> bool {
    state.files.len() == tree.len()
        && state
            .files
            .iter()
            .zip(tree)
            .all(|((path, want), (name, got))| {
                let hole = state.open.as_ref() == Some(path);
                let same = |(a, b): (&u8, &u8)| a == b || (hole && *b == 0);
                path == name && want.len() == got.len() && want.iter().zip(got).all(same)
            })
}

/// What a failed comparison shows: names and lengths.
pub fn outline(tree: &BTreeMap<String, Vec<u8>>) -> Vec<(String, usize)> {
    tree.iter()
        .map(|(path, content)| (path.clone(), content.len()))
        .collect()
}

/// The machine at work.
pub struct Rig {
    pub world: World,
    pub disk: Disk,
    pub ledger: Arc<Mutex<Ledger>>,
    pub machine: Option<Machine>,
}

impl Rig {
    pub fn new(disk: Disk) -> Self {
        Self {
            world: World::new(),
            disk,
            ledger: Arc::new(Mutex::new(Ledger::new())),
            machine: None,
        }
    }

    pub fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    pub fn open(
        &mut self,
        with_server: bool,
        points: Option<CrashPoints>,
    ) -> Result<(), EngineError> {
        let server = with_server.then_some(&self.world.server);
        self.machine = Some(mount(&self.world, &self.disk, server, 1, points)?);
        Ok(())
    }

    /// Sends a request that leads to the next state; a refused one leads nowhere.
    fn step<T>(
        &self,
        change: impl FnOnce(&mut State),
        request: impl FnOnce(&Machine) -> Answer<T>,
    ) -> Answer<T> {
        {
            let mut ledger = locked(&self.ledger);
            let mut next = State::clone(ledger.states.last().unwrap());
            change(&mut next);
            ledger.states.push(Arc::new(next));
        }
        let done = request(self.machine());
        if done.is_err() {
            locked(&self.ledger).states.pop();
        }
        done
    }

    pub fn mkdir(&self, path: &str) -> Answer<()> {
        let (parent, name) = path.rsplit_once('/').unwrap();
        self.step(
            |s| drop(s.files.insert(format!("{path}/"), Vec::new())),
            |m| {
                let parent = m.ino(parent)?;
                m.op(|d| d.mkdir(parent, name.as_bytes(), 0o755, 0o022, ME, NOW))
                    .map(drop)
            },
        )
    }

    pub fn create(&self, path: &str) -> Answer<Handle> {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let new = NewNode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0o022,
            rdev: 0,
        };
        self.step(
            |s| {
                s.files.insert(path.into(), Vec::new());
                s.open = Some(path.into());
            },
            |m| {
                let parent = m.ino(parent)?;
                let (_, handle) = m.op(|d| d.create(parent, name.as_bytes(), new, ME, NOW))?;
                Ok(handle)
            },
        )
    }

    pub fn write(&self, path: &str, off: usize, data: &[u8]) -> Answer<()> {
        self.step(
            |s| {
                let file = s.files.entry(path.into()).or_default();
                if file.len() < off + data.len() {
                    file.resize(off + data.len(), 0);
                }
                file[off..off + data.len()].copy_from_slice(data);
            },
            |m| {
                let ino = m.ino(path)?;
                m.op(|d| d.write(ino, off as u64, data, false, NOW))
                    .map(drop)
            },
        )
    }

    pub fn close(&self, handle: Handle) {
        let closed = self.step(
            |s| s.open = None,
            |m| {
                m.drive().release(handle);
                Ok(())
            },
        );
        closed.unwrap();
    }

    /// A whole new file of bytes that do not repeat.
    pub fn put(&self, path: &str, seed: u64, len: usize) -> Answer<()> {
        let handle = self.create(path)?;
        let content = noise(seed, len);
        let mut parts = content.chunks(1 << 20).enumerate();
        let done = parts.try_for_each(|(n, part)| self.write(path, n << 20, part));
        self.close(handle);
        done
    }

    pub fn rename(&self, from: &str, to: &str) -> Answer<()> {
        let ((from_dir, old), (to_dir, new)) =
            (from.rsplit_once('/').unwrap(), to.rsplit_once('/').unwrap());
        self.step(
            |s| {
                let content = s.files.remove(from).unwrap_or_default();
                s.files.insert(to.into(), content);
            },
            |m| {
                let (from, to) = (m.ino(from_dir)?, m.ino(to_dir)?);
                let (old, new) = (old.as_bytes(), new.as_bytes());
                m.op(|d| d.rename(from, old, to, new, RenameRule::Replace, NOW))
            },
        )
    }

    pub fn unlink(&self, path: &str) -> Answer<()> {
        let (parent, name) = path.rsplit_once('/').unwrap();
        self.step(
            |s| drop(s.files.remove(path)),
            |m| {
                let parent = m.ino(parent)?;
                m.op(|d| d.unlink(parent, name.as_bytes(), NOW))
            },
        )
    }

    /// Waits until what is closed and long enough is sealed: its extents, not its bytes, then go into the journal.
    pub fn settle(&self) {
        for _ in 0..500 {
            let failed = self.machine().engine.status().failed.is_some();
            if failed || self.machine().drive().dirty_bytes() < 64 << 10 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// fsync: whether it was promised.
    pub fn sync(&self) -> bool {
        let now = {
            let mut ledger = locked(&self.ledger);
            ledger.asked = ledger.states.len() - 1;
            ledger.asked
        };
        let done = self.machine().engine.sync_local().is_ok();
        if done {
            locked(&self.ledger).synced = now;
        }
        done
    }

    pub fn sync_server(&self) {
        let now = locked(&self.ledger).states.len() - 1;
        self.machine().sync();
        let mut ledger = locked(&self.ledger);
        ledger.synced = now;
        ledger.committed = now;
    }

    /// After a kill: the tree is one of the states from the last promise on, and the ledger goes on from there.
    pub fn revived(&self, at: &str) {
        let tree = read_tree(self.machine()).unwrap_or_else(|e| panic!("{at}: {e}"));
        let mut ledger = locked(&self.ledger);
        let found = which(&ledger, ledger.synced, &tree);
        let found = found.unwrap_or_else(|| panic!("{at}: {:?} is no state", outline(&tree)));
        ledger.states.truncate(found + 1);
        if let Some(state) = ledger.states.last_mut() {
            Arc::make_mut(state).open = None;
        }
    }

    pub fn next_phase(&self) {
        locked(&self.ledger).phase += 1;
    }
}

/// Follows the engine's own log: what is taken after an fsync was asked for holds what was asked.
pub fn note(ledger: &mut Ledger, point: &str) {
    if point == "log-taken" {
        ledger.taken = ledger.asked;
    }
}
