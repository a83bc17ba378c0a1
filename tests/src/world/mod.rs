//! Real processes on one machine: a server, and as many client machines as a suite wants, each with a home of its own.
//!
//! Invariant: whatever is started here is gone when its guard is dropped, also when a test panics: processes are
//! killed, mounts detached, directories removed. Called by every suite that needs the real programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

mod machine;
mod process;
mod server;

pub use machine::{InBackground, Machine, Mounted};
pub use process::{Daemon, Finished, run};
pub use server::Server;

/// How long anything that should take a moment may take before the suite calls it a hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The passphrase of every account of the suites; also a canary.
pub const PASSPHRASE: &str = "correct horse battery staple 7c1f";

/// A directory for servers, homes and mount points, removed at the end.
pub struct World {
    // Order of the fields is the order of dropping: nothing here holds a process, machines and servers do.
    directory: tempfile::TempDir,
}

impl World {
    /// An empty world. `SEALDRIVE_TEST_DIR` says where, otherwise the system's temporary directory.
    pub fn new() -> Self {
        let place =
            std::env::var_os("SEALDRIVE_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let directory = tempfile::Builder::new()
            .prefix("sd-")
            .tempdir_in(place)
            .unwrap();
        // Other users must be able to walk in: conformance tests switch to them.
        let walkable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), walkable).unwrap();
        Self { directory }
    }

    /// A path in this world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server with an empty data directory, over TLS, running.
    pub fn server(&self) -> Server {
        Server::start(&self.path("server"), &[])
    }

    /// A machine that knows nothing yet.
    pub fn machine(&self, name: &str) -> Machine {
        Machine::new(&self.path(name))
    }

    /// A server and a machine with an account, a drive and a mount of it: where most tests begin.
    pub fn mounted(&self) -> (Server, Machine, Mounted) {
        let server = self.server();
        let machine = self.machine("machine");
        machine.init(&server.invite());
        let mounted = machine.mount();
        (server, machine, mounted)
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// The directory of the programs under test, built from these sources if `SEALDRIVE_BIN_DIR` does not name others.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(given) = std::env::var_os("SEALDRIVE_BIN_DIR") {
            return PathBuf::from(given);
        }
        // target/PROFILE/deps/suite-HASH or target/PROFILE/bench → target/PROFILE
        let own = std::env::current_exe().unwrap();
        let parent = own.parent().unwrap();
        let profile = if parent.ends_with("deps") {
            parent.parent().unwrap()
        } else {
            parent
        };
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--offline",
            "--package",
            "sealdrive",
            "--package",
            "sealdrive-server",
            "--bins",
        ]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        build.env("CARGO_TARGET_DIR", profile.parent().unwrap());
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(
            build.status().unwrap().success(),
            "the programs under test do not build"
        );
        profile.to_owned()
    })
}

/// Path of one program under test.
pub fn program(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(
        path.exists(),
        "{} is missing: cargo build --workspace --bins",
        path.display()
    );
    path
}

/// Waits until `ready` answers something, or panics with what was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, patience: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(
            Instant::now() < end,
            "{what}: still not so after {patience:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `cp -a FROM/. TO`.
#[track_caller]
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let mut source = from.as_os_str().to_owned();
    source.push("/.");
    let mut copy = Command::new("cp");
    copy.args([
        OsStr::new("-a"),
        OsStr::new("--reflink=never"),
        &source,
        to.as_os_str(),
    ]);
    run(&mut copy, Duration::from_secs(3600)).ok();
}
