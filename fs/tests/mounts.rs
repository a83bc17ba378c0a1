//! The whole command on real mounts and a real server in a process of its own: what happens when the server, a mount
//! or a whole machine goes away, and what is said about it. Needs /dev/fuse; without it there is nothing to test.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PASSPHRASE: &str = "correct horse battery";

struct World {
    dir: tempfile::TempDir,
    server: Option<Child>,
    connect: String,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl World {
    fn new() -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pw"), PASSPHRASE).unwrap();
        std::fs::write(dir.path().join("wrong"), "not the passphrase").unwrap();
        for name in ["m1", "m2"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut world = Self {
            dir,
            server: None,
            connect: String::new(),
        };
        world.start_server();
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_server(&mut self) {
        let known = self
            .connect
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once("/#"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealdrive"));
        command
            .arg("quickstart-server")
            .arg(self.path("server"))
            .args(known.map(|(addr, _)| addr));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("sealdrive://"), "{line}");
        self.connect = line.trim().to_owned();
        self.server = Some(child);
    }

    fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn run(&self, home: &str, words: &[&str]) -> Ran {
        self.run_with("pw", home, words)
    }

    fn run_with(&self, passphrase: &str, home: &str, words: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_sealdrive"))
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env("SEALDRIVE_HOME", self.path(home))
            .env("SEALDRIVE_PASSWORD_FILE", self.path(passphrase))
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        Ran {
            code: output.status.code().expect("ended by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn must(&self, home: &str, words: &[&str]) -> String {
        let ran = self.run(home, words);
        assert_eq!(ran.code, 0, "{words:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    fn init(&self, home: &str, more: &[&str]) {
        let kit = format!("{home}.kit");
        let words = [
            "init",
            "--server",
            &self.connect,
            "--drive",
            "work",
            "--kit",
            &kit,
        ];
        self.must(home, &[&words[..], more].concat());
    }

    fn status(&self, home: &str) -> serde_json::Value {
        let done = self.run(home, &["--json", "status"]);
        assert!([0, 23].contains(&done.code), "{}", done.err);
        serde_json::from_str(&done.out).unwrap()
    }

    fn daemon(&self, home: &str) -> rustix::process::Pid {
        let pid = self.status(home)["pid"].as_i64().unwrap();
        rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (home, point) in [("a", "m1"), ("b", "m2"), ("a", "m2")] {
            if std::fs::read_to_string("/proc/self/mountinfo")
                .is_ok_and(|table| table.contains(self.path(point).to_str().unwrap()))
            {
                drop(self.run(home, &["umount", "--lazy", point]));
            }
        }
        // Daemons that still have something to send would outlive the test.
        for home in ["a", "b"] {
            let Ok(dir) = std::fs::read_dir(self.path(home).join("run")) else {
                continue;
            };
            for socket in dir.flatten() {
                let ask = sealdrive::control::Request::Leave;
                drop(sealdrive::control::ask(&socket.path(), &ask, &mut |_| ()));
            }
        }
        if self.server.is_some() {
            self.kill_server();
        }
    }
}

impl Ran {
    #[track_caller]
    fn says(&self, code: i32, words: &[&str]) {
        let line = self
            .err
            .lines()
            .find(|line| line.starts_with("sealdrive: "))
            .unwrap_or_default();
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for word in words {
            assert!(line.contains(word), "{word:?} in {:?}", self.err);
        }
    }
}

#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn wrong_places_and_names() {
    let Some(world) = World::new() else { return };
    world
        .run("a", &["mount", "m1"])
        .says(10, &["no account", "init"]);
    world.init("a", &["--ask-passphrase"]);
    world
        .run("a", &["mount", "nowhere"])
        .says(30, &["nowhere", "make the directory"]);
    world
        .run("a", &["mount", "pw"])
        .says(30, &["pw", "directory"]);
    world
        .run("a", &["mount", "other", "m1"])
        .says(10, &["other", "work"]);
    world
        .run("a", &["mount", "m1", "-o", "frob"])
        .says(2, &["frob"]);
    world
        .run_with("wrong", "a", &["mount", "m1"])
        .says(12, &["wrong passphrase"]);
    world.must("a", &["mount", "work", "m1"]);
    world
        .run("a", &["mount", "m1"])
        .says(30, &["already mounted"]);
    world
        .run("a", &["mount", "m2"])
        .says(30, &["mounted already"]);
    world.must("a", &["umount", "m1"]);
    world.run("a", &["umount", "m1"]).says(16, &["m1"]);
}

#[test]
fn a_server_that_goes_away_is_waited_for_and_nothing_is_lost() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.init("a", &[]);
    world.must("a", &["mount", "m1"]);
    let file = |name: &str| world.dir.path().join("m1").join(name);
    std::fs::write(file("before"), "on the server").unwrap();
    world.must("a", &["sync"]);
    assert_eq!(world.run("a", &["status", "m1/before"]).code, 0);
    assert_eq!(world.status("a")["state"], "committed");

    let server = world.server.take();
    let mut server = server.unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    std::fs::write(file("after"), "not yet").unwrap();
    world
        .run("a", &["sync", "--timeout", "500ms"])
        .says(23, &["safe on this machine"]);
    assert_eq!(world.run("a", &["status", "m1/after"]).code, 23);
    assert_eq!(world.run("a", &["status", "--max-age", "0s"]).code, 24);
    world
        .run("a", &["umount", "--timeout", "500ms", "m1"])
        .says(23, &["unmounted", "safe"]);
    // Mounted again at once, offline, although the first process was still trying to send.
    world.must("a", &["mount", "m1"]);
    assert_eq!(std::fs::read_to_string(file("after")).unwrap(), "not yet");
    assert_eq!(world.status("a")["online"], false);

    world.start_server();
    world.must("a", &["sync", "--timeout", "60s"]);
    assert_eq!(world.run("a", &["status", "m1/after"]).code, 0);
    world.must("a", &["umount", "m1"]);
    world
        .run("a", &["status"])
        .says(16, &["no drive is mounted"]);
}

#[test]
fn what_was_fsynced_survives_a_kill_of_the_mount() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.init("a", &[]);
    world.must("a", &["mount", "m1"]);
    world.kill_server();
    let path = world.path("m1").join("precious");
    std::fs::write(&path, vec![7; 300_000]).unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let daemon = world.daemon("a");
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    eventually("the daemon is gone", || {
        std::fs::metadata(world.path("m1").join("x")).is_err()
    });
    world.must("a", &["umount", "--lazy", "m1"]);
    world.must("a", &["mount", "m1"]);
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 300_000]);
    world.start_server();
    world.must("a", &["umount", "--timeout", "60s", "m1"]);
}

#[test]
fn a_second_machine_reads_everything_and_writes_only_after_taking_over() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.init("a", &[]);
    world.must("a", &["mount", "m1"]);
    std::fs::write(world.path("m1").join("from-a"), vec![1; 200_000]).unwrap();
    world.must("a", &["sync"]);

    world.must("b", &["recover", "--kit", "a.kit"]);
    world.kill_server();
    world
        .run("b", &["mount", "m2"])
        .says(15, &["does not know the drive yet"]);
    world.start_server();
    world.must("b", &["mount", "m2"]);
    assert_eq!(
        std::fs::read(world.path("m2").join("from-a")).unwrap(),
        vec![1; 200_000]
    );
    world.must("b", &["umount", "--timeout", "10s", "m2"]);

    // The first machine is gone for good.
    rustix::process::kill_process(world.daemon("a"), rustix::process::Signal::KILL).unwrap();
    drop(world.run("a", &["umount", "--lazy", "m1"]));
    world.must("b", &["mount", "m2", "--take-over"]);
    std::fs::write(world.path("m2").join("from-b"), "b").unwrap();
    world.must("b", &["sync", "--timeout", "60s"]);
    world.must("b", &["umount", "m2"]);
}

#[test]
fn a_signal_unmounts_and_sends_what_is_left() {
    let Some(world) = World::new() else { return };
    world.init("a", &[]);
    world.must("a", &["mount", "m1"]);
    std::fs::write(world.path("m1").join("late"), "late").unwrap();
    let daemon = world.daemon("a");
    rustix::process::kill_process(daemon, rustix::process::Signal::TERM).unwrap();
    eventually("it is unmounted", || {
        !world.path("m1").join("late").exists()
    });
    eventually("the daemon ends", || world.run("a", &["status"]).code == 16);
    world.must("b", &["recover", "--kit", "a.kit"]);
    world.must("b", &["mount", "m2"]);
    assert_eq!(
        std::fs::read(world.path("m2").join("late")).unwrap(),
        b"late"
    );
    world.must("b", &["umount", "m2"]);
}
