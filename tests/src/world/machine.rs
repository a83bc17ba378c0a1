//! A client machine: a home directory, a mount point, and the `sealdrive` command run in that home.
//!
//! Invariant: nothing of the real user's environment is used; two machines share no local state.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::{Daemon, Finished, PASSPHRASE, PATIENCE, program, run, wait_for};

/// A machine. Its home may be deleted under it; that is what some suites are for.
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// A machine with an empty home below `root`.
    pub fn new(root: &Path) -> Self {
        for name in ["home", "runtime", "drive"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        // The passphrase file stands outside the home: the canary search covers the home.
        std::fs::write(root.join("passphrase"), PASSPHRASE).unwrap();
        Self {
            root: root.to_owned(),
        }
    }

    /// Where the product keeps keys, journal, outbox and cache.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// Where the drive is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.root.join("drive")
    }

    /// The recovery kit that `init` wrote.
    pub fn kit(&self) -> PathBuf {
        self.root.join("kit.txt")
    }

    /// The `sealdrive` command in this home.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("sealdrive"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.join("user"))
            .env("XDG_RUNTIME_DIR", self.root.join("runtime"))
            .env("SEALDRIVE_HOME", self.home())
            .env("SEALDRIVE_PASSWORD_FILE", self.root.join("passphrase"))
            .env("RUST_BACKTRACE", "1");
        for passed in ["SEALDRIVE_LOG", "LD_PRELOAD"] {
            if let Some(value) = std::env::var_os(passed) {
                command.env(passed, value);
            }
        }
        command
    }

    /// Runs a command in this home to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments), PATIENCE)
    }

    /// Creates account and drive, keeping the recovery kit.
    #[track_caller]
    pub fn init(&self, connect: &str) {
        let kit = self.kit();
        self.run(&["init", "--server", connect, "--kit", kit.to_str().unwrap()])
            .ok();
    }

    /// Joins this machine to an account with nothing but its kit, which names the server, and the passphrase.
    #[track_caller]
    pub fn recover(&self, kit: &Path) {
        self.run(&["recover", "--kit", kit.to_str().unwrap()]).ok();
    }

    /// Mounts in the foreground of a process of its own and waits until the drive answers.
    #[track_caller]
    pub fn mount(&self) -> Mounted {
        self.mount_with(&[])
    }

    /// As `mount`, with further arguments.
    #[track_caller]
    pub fn mount_with(&self, arguments: &[&str]) -> Mounted {
        self.try_mount(arguments)
            .unwrap_or_else(|(code, said)| panic!("mount ended with {code}:\n{said}"))
    }

    /// As `mount_with`; a mount that does not come up answers its exit code and what it said.
    #[track_caller]
    pub fn try_mount(&self, arguments: &[&str]) -> Result<Mounted, (i32, String)> {
        let point = self.mountpoint();
        let mut all = vec!["mount", "--foreground", point.to_str().unwrap()];
        all.extend(arguments);
        let mut daemon = Daemon::start(&mut self.command(&all), &self.root.join("mount.log"));
        let failed = wait_for("the drive is mounted", PATIENCE, || match daemon.ended() {
            Some(code) => Some(Some(code)),
            None => is_mounted(&point).then_some(None),
        });
        match failed {
            Some(code) => Err((code, daemon.said())),
            None => Ok(Mounted { point, daemon }),
        }
    }

    /// Mounts as a user does, and how long it took until the command returned: the daemon goes on by itself.
    #[track_caller]
    pub fn mount_in_background(&self) -> (InBackground, Duration) {
        let point = self.mountpoint();
        let mut mount = self.command(&["mount", "--json", point.to_str().unwrap()]);
        let done = run(&mut mount, Duration::from_secs(1800)).ok();
        let said: Value = serde_json::from_str(&done.stdout).unwrap();
        let id = i32::try_from(said["pid"].as_i64().unwrap()).unwrap();
        let daemon = pidfd_open(Pid::from_raw(id).unwrap(), PidfdFlags::empty()).unwrap();
        (InBackground { point, daemon }, done.took)
    }

    /// The drive's status as the JSON that programs read, whether everything is on the server or not yet.
    #[track_caller]
    pub fn status(&self) -> Value {
        let point = self.mountpoint();
        let done = self.run(&["status", "--json", point.to_str().unwrap()]);
        // 21 and 22 tell of damage, which is what some suites are about; the state is told all the same.
        assert!([0, 11, 21, 22, 23].contains(&done.code), "{done:?}");
        let said = done.stdout;
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error} in {said}"))
    }

    /// Waits until everything is on the server.
    #[track_caller]
    pub fn sync(&self) -> Finished {
        let point = self.mountpoint();
        run(
            &mut self.command(&["sync", point.to_str().unwrap()]),
            Duration::from_secs(1800),
        )
        .ok()
    }

    /// Unmounts, waiting until everything is on the server.
    #[track_caller]
    pub fn umount(&self, mounted: Mounted) {
        let point = self.mountpoint();
        run(
            &mut self.command(&["umount", point.to_str().unwrap()]),
            Duration::from_secs(1800),
        )
        .ok();
        let mut mounted = mounted;
        wait_for("the daemon ends after umount", PATIENCE, || {
            mounted.daemon.ended()
        });
        assert!(!is_mounted(&point));
    }
}

/// A mounted drive and its daemon; detached and killed when dropped.
pub struct Mounted {
    point: PathBuf,
    /// The process that serves the mount.
    pub daemon: Daemon,
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// `kill -9` of the daemon, and the dead mount taken away, as after a crash of the machine.
    pub fn kill(mut self) {
        self.daemon.kill();
        detach(&self.point);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.daemon.kill();
        detach(&self.point);
    }
}

/// A mounted drive whose daemon is no child of this process; detached and killed when dropped.
pub struct InBackground {
    point: PathBuf,
    daemon: OwnedFd,
}

impl InBackground {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// `kill -9` of the daemon, and the dead mount taken away.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for InBackground {
    fn drop(&mut self) {
        // A descriptor, not a number: nobody else's process can have become this one. It polls readable at the end.
        let _ = pidfd_send_signal(&self.daemon, Signal::KILL);
        let _ = poll(&mut [PollFd::new(&self.daemon, PollFlags::IN)], None);
        detach(&self.point);
    }
}

/// Is something mounted here, and does it answer?
pub(super) fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = point.to_str().unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(wanted))
        // Opening it, because the kernel remembers what stat would ask, also of a mount whose daemon has died.
        && std::fs::read_dir(point).is_ok()
}

/// Takes a mount away, busy or dead; none there is fine.
fn detach(point: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = point.to_str().unwrap();
    for _ in table
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(wanted))
    {
        if rustix::process::geteuid().is_root() {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        } else {
            drop(Command::new("fusermount3").arg("-uz").arg(point).output());
        }
    }
}
