//! The command as people and scripts meet it: each thing one can get wrong gives one line that says what is wrong and
//! what to do, the documented exit code, and leaves everything as it was.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "account/double.rs"]
#[allow(dead_code, reason = "the account tests use more of it")]
mod double;

use std::path::PathBuf;
use std::process::{Command, Output};

use double::Double;
use sealdrive_proto::connect::ConnectString;
use sealdrive_proto::id::AccountId;
use sealdrive_proto::link::Compression;

const PASSPHRASE: &str = "correct horse battery";

struct World {
    dir: tempfile::TempDir,
    server: Double,
    // Keeps the server running.
    _runtime: tokio::runtime::Runtime,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(Double::start(dir.path()));
        std::fs::write(dir.path().join("pw"), format!("{PASSPHRASE}\n")).unwrap();
        std::fs::write(dir.path().join("wrong-pw"), "another passphrase\n").unwrap();
        Self {
            dir,
            server,
            _runtime: runtime,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, home: &str, words: &[&str]) -> Ran {
        self.run_with(home, "pw", words)
    }

    fn run_with(&self, home: &str, passphrase: &str, words: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_sealdrive"))
            .args(words)
            .env_clear()
            .env("SEALDRIVE_HOME", self.path(home))
            .env("SEALDRIVE_PASSWORD_FILE", self.path(passphrase))
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        Ran::of(&output)
    }

    fn init(&self, home: &str, connect: &ConnectString, kit: &str) -> Ran {
        self.run(
            home,
            &["init", "--server", &connect.to_string(), "--kit", kit],
        )
    }
}

impl Ran {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// Failed with this code and one line that has these words in it.
    #[track_caller]
    fn says(&self, code: i32, words: &[&str]) {
        let lines: Vec<&str> = self
            .err
            .lines()
            .filter(|line| line.starts_with("sealdrive: "))
            .collect();
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        assert_eq!(lines.len(), 1, "one line: {}", self.err);
        for word in words {
            assert!(lines[0].contains(word), "{word:?} in {:?}", lines[0]);
        }
        assert!(lines[0].contains("; "), "says what to do: {}", lines[0]);
        assert!(
            !self.err.contains("panicked") && !self.err.contains(PASSPHRASE),
            "{}",
            self.err
        );
    }
}

#[test]
fn nothing_here_yet() {
    let world = World::new();
    world
        .run("h", &["status"])
        .says(16, &["no drive is mounted"]);
    world.run("h", &["sync"]).says(16, &["no drive is mounted"]);
    world.run("h", &["umount", "/"]).says(16, &["/"]);
    std::fs::create_dir(world.path("m")).unwrap();
    world
        .run("h", &["init"])
        .says(2, &["no server", "--server"]);
    assert_eq!(world.run("h", &["frobnicate"]).code, 2);
    let json = world.run("h", &["--json", "status"]);
    let value: serde_json::Value = serde_json::from_str(json.err.trim()).unwrap();
    assert_eq!((json.code, value["exit"].as_u64()), (16, Some(16)));
}

#[test]
fn wrong_servers_and_wrong_words_at_init() {
    let world = World::new();
    let connect = world.server.invite();
    let init = |connect: &ConnectString| world.init("h", connect, "kit.txt");
    init(&ConnectString {
        tls_fingerprint: Some([1; 32]),
        ..connect.clone()
    })
    .says(22, &["certificate", "connect string"]);
    init(&ConnectString {
        server_pk: [1; 32],
        ..connect.clone()
    })
    .says(22, &["identity key"]);
    init(&ConnectString {
        addr: "127.0.0.1:1".to_owned(),
        ..connect.clone()
    })
    .says(15, &["127.0.0.1:1", "nothing was lost"]);
    init(&connect.without_invite()).says(2, &["invitation"]);
    world
        .run(
            "h",
            &["init", "--server", "sealdrive://x:1/#abc", "--kit", "k"],
        )
        .says(2, &["typing"]);
    let text = connect.to_string();
    world
        .run("h", &["init", "--server", &text])
        .says(2, &["kit"]);
    world
        .run(
            "h",
            &["init", "--server", &text, "--kit", "k", "--drive", "a/b"],
        )
        .says(2, &["name"]);
    world
        .run_with(
            "h",
            "no-such-file",
            &["init", "--server", &text, "--kit", "k"],
        )
        .says(2, &["no-such-file"]);
    std::fs::write(world.path("short"), "1234567").unwrap();
    world
        .run_with("h", "short", &["init", "--server", &text, "--kit", "k"])
        .says(2, &["fewer than 8"]);
    assert!(!world.path("kit.txt").exists() && !world.path("k").exists());
    assert_eq!(world.server.accounts(), 0);

    let made = init(&connect);
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(
        made.out.contains("PRINT IT") && made.out.contains("kit.txt"),
        "{}",
        made.out
    );
    init(&world.server.invite()).says(2, &["account in", "already"]);
    world
        .init("h2", &connect, "kit2.txt")
        .says(13, &["invitation", "new one"]);
    assert!(!world.path("kit2.txt").exists());
    world
        .init("h2", &world.server.invite(), "kit.txt")
        .says(2, &["kit.txt"]);
}

#[test]
fn compression_is_asked_for_at_init_and_stands_in_the_drive() {
    let world = World::new();
    let init = |home: &str, more: &[&str]| {
        let connect = world.server.invite().to_string();
        let kit = format!("{home}.txt");
        let words = ["--json", "init", "--server", &connect, "--kit", &kit];
        world.run(home, &[&words, more].concat())
    };
    for wrong in ["0", "20", "256", "-1", "fast", "OFF", ""] {
        let ran = init("wrong", &[&format!("--compression={wrong}")]);
        assert_eq!(ran.code, 2, "{wrong}: {}", ran.err);
        for word in ["--compression", "from 1 (fastest) to 19", "'off'"] {
            assert!(ran.err.contains(word), "{wrong}: {}", ran.err);
        }
    }
    assert!(!world.path("wrong.txt").exists());
    assert_eq!(world.server.accounts(), 0);
    for (home, more, expected) in [
        ("plain", &[][..], Compression::Zstd(1)),
        ("off", &["--compression", "off"], Compression::Off),
        ("small", &["--compression", "19"], Compression::Zstd(19)),
    ] {
        let ran = init(home, more);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let made: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let account = AccountId::from_hex(made["account"].as_str().unwrap()).unwrap();
        let chain = world.server.chain(&account);
        let configured: Vec<_> = chain
            .drives()
            .values()
            .map(|drive| drive.config.compression)
            .collect();
        assert_eq!(configured, [expected]);
    }
    let help = world.run("h", &["init", "--help"]).out;
    for word in ["--compression <LEVEL>", "life of the drive", "[default: 1]"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn wrong_kits_and_passphrases_at_recovery() {
    let world = World::new();
    assert_eq!(world.init("h", &world.server.invite(), "kit.txt").code, 0);
    world
        .run("h2", &["recover", "--kit", "nowhere.txt"])
        .says(2, &["nowhere.txt"]);
    world
        .run_with("h2", "wrong-pw", &["recover", "--kit", "kit.txt"])
        .says(12, &["wrong passphrase"]);
    let kit = std::fs::read_to_string(world.path("kit.txt")).unwrap();
    let at = kit.find("\n@").unwrap() - 4;
    let mut typo = kit.into_bytes();
    typo[at] = if typo[at] == b'3' { b'4' } else { b'3' };
    std::fs::write(world.path("typo.txt"), typo).unwrap();
    world
        .run("h2", &["recover", "--kit", "typo.txt"])
        .says(12, &["typing mistake"]);
    let other = ConnectString {
        server_pk: [1; 32],
        ..world.server.invite()
    }
    .to_string();
    world
        .run("h2", &["recover", "--kit", "kit.txt", "--server", &other])
        .says(2, &["different servers"]);
    world
        .run("h", &["recover", "--kit", "kit.txt"])
        .says(2, &["already"]);

    let back = world.run("h2", &["--json", "recover", "--kit", "kit.txt"]);
    assert_eq!(back.code, 0, "{}", back.err);
    let value: serde_json::Value = serde_json::from_str(&back.out).unwrap();
    assert_eq!(value["drives"][0]["name"], "drive");
    assert_eq!(value["active_devices"], 2);
}

#[test]
fn completions_manual_and_help_come_without_a_home() {
    let world = World::new();
    for words in [
        &["completions", "bash"][..],
        &["man"],
        &["help"],
        &["mount", "--help"],
    ] {
        let ran = Command::new(env!("CARGO_BIN_EXE_sealdrive"))
            .args(words)
            .env_clear()
            .output()
            .unwrap();
        let ran = Ran::of(&ran);
        assert!(
            ran.code == 0 && ran.out.len() > 500,
            "{words:?}: {} {}",
            ran.code,
            ran.err
        );
    }
    drop(world);
}

#[test]
fn a_full_disk_at_init_leaves_nothing_and_says_so() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let small = world.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k,nr_inodes=20", "tmpfs"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return;
    }
    std::fs::write(small.join("ballast"), vec![0; 12 << 10]).unwrap();
    let ran = world.init("small/h", &world.server.invite(), "kit.txt");
    let left = std::fs::read_dir(small.join("h"))
        .map(|dir| dir.count())
        .unwrap_or(0);
    let unmounted = Command::new("umount").arg(&small).status().unwrap();
    assert!(unmounted.success());
    ran.says(14, &["space"]);
    assert!(left <= 1, "only the lock may be left");
    assert!(!world.path("kit.txt").exists());
    assert_eq!(world.server.accounts(), 0, "the invitation is still good");
}
