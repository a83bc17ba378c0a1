//! A world for engine tests: keys, a server in memory, machines that come and go, and a small file API over the drive.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod packs;
pub mod server;
pub mod short;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use sealdrive::drive::{Answer, Cred, Drive, DriveError, Errno, NewNode, PlanPiece, SetAttr};
use sealdrive::engine::{CrashPoints, Engine, EngineConfig, EngineError, Event, EventKind};
use sealdrive_core::keys::{DomainKeys, DomainSecrets};
use sealdrive_core::local::LocalKeys;
use sealdrive_core::record::{FileKind, Ino, ROOT, Time};
use sealdrive_proto::id::{DeviceId, DomainId, DriveId};
use sealdrive_proto::link::{
    AccountChain, Compression, DeviceKeys, DriveConfig, Genesis, LinkBody, LinkFields, Signer,
};

pub use server::MemoryServer;

/// Devices of the account: 1 founds it.
const DEVICES: u8 = 4;
pub const NOW: Time = Time {
    secs: 1_800_000_000,
    nanos: 5,
};
pub const ME: Cred = Cred {
    uid: 1000,
    gid: 1000,
    pid: 1,
};

/// One account, one drive, one server.
pub struct World {
    pub server: Arc<MemoryServer>,
    pub account: AccountChain,
    pub drive: DriveId,
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self::compressing(Compression::Zstd(1))
    }

    /// A drive that was made with this compression.
    pub fn compressing(compression: Compression) -> Self {
        let (account, drive) = account(compression);
        Self {
            server: MemoryServer::new(),
            account,
            drive,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, machine: &str) -> PathBuf {
        self.dir.path().join(machine)
    }

    /// What device `n` on `machine` mounts with. All devices of the account are known to each.
    pub fn config(&self, machine: &str, n: u8) -> EngineConfig {
        let secrets = DomainSecrets::from_entropy(&[0x44; 128]);
        let keys = Arc::new(DomainKeys::derive(DomainId([0x22; 32]), &secrets));
        let local = Arc::new(LocalKeys::derive(&[n; 32], &[n + 1; 32]));
        let signing = Arc::new(signing(n));
        let account = self.account.clone();
        let mut config = EngineConfig::new(
            self.path(machine),
            self.drive,
            device(n),
            keys,
            local,
            signing,
            account,
        );
        config.remote = Some(self.server.connect(device(n)));
        config.commit_interval = Duration::from_millis(200);
        config.join_patience = Duration::from_secs(5);
        config.reserve = 1 << 20;
        config.workers = 2;
        config
    }

    pub fn mount(&self, machine: &str, n: u8) -> Machine {
        self.try_mount(self.config(machine, n)).unwrap()
    }

    pub fn try_mount(&self, config: EngineConfig) -> Result<Machine, EngineError> {
        Ok(Machine {
            engine: Engine::open(config)?,
        })
    }

    pub fn mount_with_points(&self, machine: &str, n: u8, crash: CrashPoints) -> Machine {
        let mut config = self.config(machine, n);
        config.crash = crash;
        self.try_mount(config).unwrap()
    }
}

fn signing(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn device_keys(n: u8) -> DeviceKeys {
    DeviceKeys {
        sign: signing(n).verifying_key(),
        box_pk: Vec::new(),
    }
}

pub fn device(n: u8) -> DeviceId {
    device_keys(n).id()
}

fn account(compression: Compression) -> (AccountChain, DriveId) {
    let genesis = Genesis {
        salt: [9; 32],
        device: device_keys(1),
        slot_fetch: signing(107).verifying_key(),
        enrol: signing(108).verifying_key(),
        domain_commitment: [0; 32],
    };
    let mut chain =
        AccountChain::found(&LinkFields::genesis(genesis).sign(&signing(1)).unwrap()).unwrap();
    let mut append = |body| {
        let link = chain
            .next_link(Signer::Device(device(1)), body)
            .sign(&signing(1))
            .unwrap();
        chain.append(&link).unwrap();
    };
    for n in 2..=DEVICES {
        append(LinkBody::AddDevice {
            device: device_keys(n),
            label: Vec::new(),
        });
    }
    let config = DriveConfig {
        min_chunk: 128 << 10,
        avg_chunk: 320 << 10,
        max_chunk: 1 << 20,
        compression,
    };
    append(LinkBody::CreateDrive {
        nonce: [1; 16],
        config,
        label: Vec::new(),
    });
    let drive = *chain.drives().keys().next().unwrap();
    (chain, drive)
}

pub fn soon(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Bytes that do not repeat, different for every seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// A mounted drive with paths instead of inodes.
pub struct Machine {
    pub engine: Engine,
}

impl Machine {
    pub fn drive(&self) -> &Drive {
        self.engine.drive()
    }

    /// As the kernel's border does: loads the nodes an operation misses.
    pub fn op<T>(&self, mut f: impl FnMut(&Drive) -> Answer<T>) -> Answer<T> {
        loop {
            match f(self.drive()) {
                Err(DriveError::Missing(r)) => {
                    if self.engine.node(&r, soon(10)).is_err() {
                        return Err(Errno::EIO.into());
                    }
                }
                done => return done,
            }
        }
    }

    pub fn ino(&self, path: &str) -> Answer<Ino> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(ROOT, |at, name| {
                self.op(|d| d.lookup(at, name.as_bytes()))
                    .map(|attr| attr.ino)
            })
    }

    fn split<'p>(&self, path: &'p str) -> (Ino, &'p [u8]) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.ino(dir).unwrap(), name.as_bytes())
    }

    pub fn mkdir(&self, path: &str) {
        let (parent, name) = self.split(path);
        self.op(|d| d.mkdir(parent, name, 0o755, 0o022, ME, NOW))
            .unwrap();
    }

    /// Creates or rewrites a file and closes it.
    pub fn write(&self, path: &str, content: &[u8]) {
        let (parent, name) = self.split(path);
        let new = NewNode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0o022,
            rdev: 0,
        };
        let (ino, handle) = match self.ino(path) {
            Ok(ino) => {
                let empty = SetAttr {
                    size: Some(0),
                    ..SetAttr::default()
                };
                self.op(|d| d.setattr(ino, empty, NOW)).unwrap();
                (ino, self.op(|d| d.open(ino, true)).unwrap())
            }
            Err(_) => {
                let (attr, handle) = self.op(|d| d.create(parent, name, new, ME, NOW)).unwrap();
                (attr.ino, handle)
            }
        };
        for (n, part) in content.chunks(1 << 20).enumerate() {
            self.op(|d| d.write(ino, (n as u64) << 20, part, false, NOW))
                .unwrap();
        }
        self.drive().release(handle);
    }

    pub fn write_at(&self, path: &str, off: u64, data: &[u8]) {
        let ino = self.ino(path).unwrap();
        self.op(|d| d.write(ino, off, data, false, NOW)).unwrap();
    }

    pub fn unlink(&self, path: &str) {
        let (parent, name) = self.split(path);
        self.op(|d| d.unlink(parent, name, NOW)).unwrap();
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        let ino = self.ino(path).unwrap();
        let plan = self.op(|d| d.read_plan(ino, 0, u64::MAX)).unwrap();
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
                    let chunk = self.engine.chunk(&reference, soon(10)).expect("chunk");
                    out.extend_from_slice(&chunk[skip as usize..][..len as usize]);
                }
            }
        }
        out
    }

    /// Every file under the root, with its content; directories end with a slash.
    pub fn tree(&self) -> BTreeMap<String, Vec<u8>> {
        let mut out = BTreeMap::new();
        self.walk("", &mut out);
        out
    }

    fn walk(&self, dir: &str, out: &mut BTreeMap<String, Vec<u8>>) {
        let ino = self.ino(dir).unwrap();
        let handle = self.op(|d| d.opendir(ino)).unwrap();
        let mut names = Vec::new();
        self.op(|d| {
            names.clear();
            d.readdir(handle, 0, |entry| {
                names.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.kind));
                true
            })
        })
        .unwrap();
        self.drive().releasedir(handle);
        for (name, kind) in names
            .into_iter()
            .filter(|(name, _)| name != "." && name != "..")
        {
            let path = format!("{dir}/{name}");
            if kind == FileKind::Directory {
                out.insert(format!("{path}/"), Vec::new());
                self.walk(&path, out);
            } else {
                let content = self.read(&path);
                out.insert(path, content);
            }
        }
    }

    pub fn sync(&self) {
        // Only that it does not hang: two cores may be busy with ten of these.
        let done = self.engine.sync_server(soon(90), |_| true);
        assert_eq!(done, Ok(()), "{:#?}", self.engine.status());
    }

    /// Such an event was reported.
    #[track_caller]
    pub fn told(&self, kind: EventKind) {
        let events = self.engine.status().events;
        let is_it = |event: &Event| event.kind == kind;
        assert!(events.iter().any(is_it), "{kind:?} in {events:#?}");
    }

    /// Such an event is reported now or soon: what was left unread when the drive was opened is looked at behind it.
    #[track_caller]
    pub fn tells(&self, kind: EventKind) {
        let patience = soon(60);
        let is_told = || self.engine.status().events.iter().any(|e| e.kind == kind);
        while !is_told() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.told(kind);
    }

    pub fn unmount(self) {
        assert_eq!(
            self.engine.shutdown(soon(20)),
            Ok(()),
            "{:#?}",
            self.engine.status()
        );
    }
}

/// Copies a state directory, as a power cut would leave it if everything written had reached the disk.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            // A file may be renamed or deleted while we copy: as in a real crash, then it is there or not.
            let _ = std::fs::copy(entry.path(), &target);
        }
    }
}
