//! What is measured: the native file system, gocryptfs over it, and this product over it with a server beside it.
//!
//! Invariant: all three keep their bytes under one directory, on one disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::seconds;
use super::table::{Better, Samples};
use crate::world::{Machine, Mounted, Server, run};

/// Long enough for anything a bench does at once.
const LONG: Duration = Duration::from_secs(3600);

/// One file system under test.
pub enum Subject {
    /// The directory itself.
    Native {
        /// Where.
        root: PathBuf,
    },
    /// gocryptfs, as an encrypted mount without a server.
    Gocryptfs {
        /// Ciphertext.
        cipher: PathBuf,
        /// Where it is mounted.
        root: PathBuf,
        /// Password file.
        password: PathBuf,
    },
    /// This product, with its server on the same disk.
    Sealdrive(Box<Ours>),
}

/// The parts of our subject.
pub struct Ours {
    server: Server,
    machine: Machine,
    mounted: Option<Mounted>,
    memory: u64,
}

impl Subject {
    /// The native file system at `place`.
    pub fn native(place: &Path) -> Self {
        let root = place.join("native");
        std::fs::create_dir_all(&root).unwrap();
        Self::Native { root }
    }

    /// gocryptfs at `place`; none where it is not installed.
    pub fn gocryptfs(place: &Path) -> Option<Self> {
        Command::new("gocryptfs").arg("-version").output().ok()?;
        let (cipher, root) = (place.join("gocryptfs.cipher"), place.join("gocryptfs"));
        let password = place.join("gocryptfs.password");
        std::fs::create_dir_all(&cipher).unwrap();
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(&password, "bench").unwrap();
        let mut init = Command::new("gocryptfs");
        init.args(["-init", "-q", "-scryptn", "10", "-passfile"])
            .args([&password, &cipher]);
        run(&mut init, LONG).ok();
        let subject = Self::Gocryptfs {
            cipher,
            root,
            password,
        };
        subject.mount_gocryptfs();
        Some(subject)
    }

    /// This product at `place`, over TLS to a server process of its own.
    pub fn sealdrive(place: &Path) -> Self {
        let server = Server::start(&place.join("server"), &[]);
        let machine = Machine::new(&place.join("machine"));
        machine.init(&server.invite());
        let mounted = Some(machine.mount());
        Self::Sealdrive(Box::new(Ours {
            server,
            machine,
            mounted,
            memory: 0,
        }))
    }

    /// Its column in the table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Native { .. } => "native",
            Self::Gocryptfs { .. } => "gocryptfs",
            Self::Sealdrive(_) => "sealdrive",
        }
    }

    /// Where files go.
    pub fn root(&self) -> PathBuf {
        match self {
            Self::Native { root } | Self::Gocryptfs { root, .. } => root.clone(),
            Self::Sealdrive(ours) => ours.machine.mountpoint(),
        }
    }

    /// Makes everything written durable on this machine (`syncfs`).
    pub fn sync_local(&self) {
        let root = std::fs::File::open(self.root()).unwrap();
        rustix::fs::syncfs(&root).unwrap();
        // The kernel sends its pages, but does not tell a FUSE daemon of syncfs.
        match self {
            Self::Native { .. } => {}
            // What it wrote lies in the file system below.
            Self::Gocryptfs { cipher, .. } => {
                rustix::fs::syncfs(std::fs::File::open(cipher).unwrap()).unwrap();
            }
            // Any fsync takes along everything that was done before it.
            Self::Sealdrive(_) => root.sync_all().unwrap(),
        }
    }

    /// Makes everything written survive the loss of what can be lost: for ours, of this machine.
    pub fn commit(&self) {
        self.sync_local();
        if let Self::Sealdrive(ours) = self {
            ours.machine.sync();
        }
    }

    /// Is there a server, so that "committed" is more than "synced"?
    pub fn has_server(&self) -> bool {
        matches!(self, Self::Sealdrive(_))
    }

    /// Empties every cache in memory: unmounts, drops the kernel's pages, mounts again. Local files stay.
    pub fn cold(&mut self) {
        self.commit();
        match self {
            Self::Native { .. } => drop_pages(),
            Self::Gocryptfs { root, .. } => {
                umount(root);
                drop_pages();
                self.mount_gocryptfs();
            }
            Self::Sealdrive(ours) => {
                ours.unmount();
                drop_pages();
                ours.mounted = Some(ours.machine.mount());
            }
        }
    }

    /// As another machine would see it: for ours, all local state is gone and the account is recovered from its kit.
    pub fn cold_from_server(&mut self) {
        let Self::Sealdrive(ours) = self else {
            return self.cold();
        };
        ours.machine.sync();
        ours.unmount();
        std::fs::remove_dir_all(ours.machine.home()).unwrap();
        std::fs::create_dir_all(ours.machine.home()).unwrap();
        ours.machine.recover(&ours.machine.kit());
        drop_pages();
        ours.mounted = Some(ours.machine.mount());
    }

    /// Bytes on disk that hold what was written (for ours: the server's).
    pub fn stored(&self) -> u64 {
        match self {
            Self::Native { root } => disk_use(root),
            Self::Gocryptfs { cipher, .. } => disk_use(cipher),
            Self::Sealdrive(ours) => disk_use(ours.server.data()),
        }
    }

    /// Bytes the client's sockets have sent to the server since the mount, TLS and HTTP/2 included.
    pub fn sent(&self) -> Option<u64> {
        let Self::Sealdrive(ours) = self else {
            return None;
        };
        let port = ours.server.address().port();
        let mut ss = Command::new("ss");
        ss.args([
            "-tinH",
            "state",
            "established",
            "dport",
            "=",
            &format!(":{port}"),
        ]);
        let said = run(&mut ss, LONG).ok().stdout;
        let counts = said
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("bytes_sent:"));
        Some(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
    }

    /// Removes every file, and makes that durable.
    pub fn clear(&mut self) {
        for entry in std::fs::read_dir(self.root()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
        self.commit();
    }

    /// Reports the peak memory of our processes.
    pub fn memory(&mut self, samples: &mut Samples) {
        let Self::Sealdrive(ours) = self else { return };
        ours.note_memory();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (client, server) = (mib(ours.memory), mib(ours.server.daemon().peak_memory()));
        samples.add(
            "peak memory of the client daemon",
            "MiB",
            Better::Lower,
            "sealdrive",
            client,
        );
        samples.add(
            "peak memory of the server",
            "MiB",
            Better::Lower,
            "sealdrive",
            server,
        );
    }

    fn mount_gocryptfs(&self) {
        let Self::Gocryptfs {
            cipher,
            root,
            password,
        } = self
        else {
            return;
        };
        let mut mount = Command::new("gocryptfs");
        mount
            .args(["-q", "-passfile"])
            .args([password, cipher, root]);
        run(&mut mount, LONG).ok();
    }
}

impl Ours {
    fn note_memory(&mut self) {
        if let Some(mounted) = &self.mounted {
            self.memory = self.memory.max(mounted.daemon.peak_memory());
        }
    }

    fn unmount(&mut self) {
        self.note_memory();
        if let Some(mounted) = self.mounted.take() {
            self.machine.umount(mounted);
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Self::Gocryptfs { root, .. } = self {
            umount(root);
        }
    }
}

fn umount(root: &Path) {
    drop(Command::new("umount").arg(root).output());
}

/// Empties the kernel's page, dentry and inode caches; without root the figures are warm, and the table says so.
fn drop_pages() {
    rustix::fs::sync();
    drop(std::fs::write("/proc/sys/vm/drop_caches", "3"));
}

/// Disk use of a tree in bytes, as `du` counts it.
pub fn disk_use(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = root.symlink_metadata() else {
        return 0;
    };
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            sum += disk_use(&entry.path());
        }
    }
    sum
}

/// Runs `work` and then makes it durable and committed; seconds until done, until durable here, until on the server.
pub fn three_times(subject: &Subject, work: impl FnOnce()) -> [f64; 3] {
    let done = seconds(work);
    let synced = done + seconds(|| subject.sync_local());
    let committed = synced
        + if subject.has_server() {
            seconds(|| subject.commit())
        } else {
            0.0
        };
    [done, synced, committed]
}
