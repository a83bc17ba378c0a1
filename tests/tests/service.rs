//! Running as a service: what the service manager is told, and that a crash never shows the empty directory beneath.
//!
//! The manager is a socket of the test; whether the unit files are sound is asked of `systemd-analyze`, which needs no
//! running systemd. Restarting is what the test does in the manager's place.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sealdrive_tests::made::Noise;
use sealdrive_tests::proxy::{Proxy, Weather};
use sealdrive_tests::world::{Daemon, PATIENCE, World, program, run, wait_for};

/// Exit code: data is not on the server yet.
const PENDING: i32 = 23;
/// Rounds of kill and mount again. `SEALDRIVE_TEST_CRASHES` sets another number.
const CRASHES: u64 = 6;

/// The service manager's end of sd_notify(3).
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self { socket, path }
    }

    /// Hands the socket to a command, and a watchdog interval.
    fn over(&self, command: &mut Command, watchdog: Duration) {
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    }

    /// The next message, as `KEY=VALUE` lines; empty if none came for a moment.
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => String::from_utf8(buffer[..length].to_vec()).unwrap(),
            Err(_) => String::new(),
        }
    }

    /// Waits for a message with this line; returns everything that came until then.
    #[track_caller]
    fn hears(&self, line: &str) -> String {
        let mut heard = String::new();
        let end = Instant::now() + PATIENCE;
        loop {
            let message = self.next();
            heard.push_str(&message);
            if message.lines().any(|said| said.starts_with(line)) {
                return heard;
            }
            assert!(Instant::now() < end, "{line} did not come, only:\n{heard}");
        }
    }
}

#[test]
fn the_client_tells_its_manager_what_is_true() {
    let world = World::new();
    let server = world.server();
    let proxy = Proxy::start(server.address()).unwrap();
    let machine = world.machine("machine");
    machine.init(&server.invite_at(proxy.address()));
    let manager = Manager::new(world.path("notify"));
    let point = machine.mountpoint();
    let words = ["mount", "--foreground", point.to_str().unwrap()];
    let mut command = machine.command(&words);
    manager.over(&mut command, Duration::from_millis(900));
    let mut daemon = Daemon::start(&mut command, &world.path("mount.log"));
    let before = manager.hears("READY=1");
    assert!(
        !before.contains("WATCHDOG=1"),
        "alive before it is ready: {before}"
    );
    // Ready is ready: what is asked now is answered by the drive.
    fs::write(point.join("first"), Noise::new(1).bytes(3_000_000)).unwrap();
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");

    // A daemon that hangs is not called alive by anybody.
    daemon.signal(Signal::STOP);
    while !manager.next().is_empty() {}
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(manager.next(), "", "a stopped process says it is alive");
    daemon.signal(Signal::CONT);
    manager.hears("WATCHDOG=1");

    // Stopped while the server does not answer: more time is asked for only while it takes something.
    proxy.set(Weather::BlackHole);
    fs::write(point.join("second"), Noise::new(2).bytes(3_000_000)).unwrap();
    daemon.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    // The first count is news; from then on nothing moves.
    manager.hears("EXTEND_TIMEOUT_USEC=");
    let quiet = Instant::now() + Duration::from_secs(5);
    let mut late = String::new();
    while Instant::now() < quiet {
        late.push_str(&manager.next());
    }
    let extensions = late.matches("EXTEND_TIMEOUT_USEC=").count();
    assert!(
        extensions <= 2,
        "{extensions} extensions for nothing: {late}"
    );
    assert!(
        late.contains("STATUS=unmounted; ") && late.contains("WATCHDOG=1"),
        "{late}"
    );
    proxy.set(Weather::Clear);
    let code = wait_for("the daemon ends", PATIENCE, || daemon.ended());
    assert_eq!(code, 0, "{}", daemon.said());
}

#[test]
fn the_server_tells_its_manager_what_is_true() {
    let world = World::new();
    let manager = Manager::new(world.path("notify"));
    let data = world.path("data");
    let mut command = Command::new(program("sealdrive-server"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data);
    manager.over(&mut command, Duration::from_millis(900));
    let mut daemon = Daemon::start(&mut command, &world.path("server.log"));
    let ready = manager.hears("READY=1");
    assert!(ready.contains("STATUS=listening on 127.0.0.1:"), "{ready}");
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    let code = wait_for("the server ends", PATIENCE, || daemon.ended());
    assert_eq!(code, 0, "{}", daemon.said());
}

/// What the watcher of a mount point saw.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    content: AtomicU64,
    refused: AtomicU64,
    written: AtomicU64,
}

/// Looks at the drive and writes to it as fast as it can, as a backup of it or a program in it would. Returns what no
/// program may see.
fn watch(root: &Path, seen: &Seen) -> Result<(), String> {
    let mut number = 0u64;
    while !seen.stop.load(Ordering::Relaxed) {
        match fs::read_dir(root).map(Iterator::count) {
            Ok(0) => return Err(format!("an empty directory after {number} looks")),
            Ok(_) => seen.content.fetch_add(1, Ordering::Relaxed),
            Err(_) => seen.refused.fetch_add(1, Ordering::Relaxed),
        };
        number += 1;
        if fs::write(root.join(format!("w{}", number % 50)), b"w").is_ok() {
            seen.written.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A dead mount used to be taken away first, and the new one came when the passphrase had been stretched and the
/// journal replayed: for a second every program saw an empty directory, and what it wrote there was lost beneath.
#[test]
fn a_crashed_daemon_is_replaced_without_showing_what_is_beneath() {
    let crashes = std::env::var("SEALDRIVE_TEST_CRASHES").map_or(CRASHES, |n| n.parse().unwrap());
    let world = World::new();
    let (_server, machine, mounted) = world.mounted();
    let root = mounted.path().to_owned();
    fs::write(root.join("kept"), b"kept").unwrap();
    machine.sync();
    let seen = Arc::new(Seen::default());
    let watcher = {
        let (root, seen) = (root.clone(), Arc::clone(&seen));
        std::thread::spawn(move || watch(&root, &seen))
    };
    let mut mounted = mounted;
    for crash in 0..crashes {
        let before = seen.content.load(Ordering::Relaxed);
        wait_for("the drive is looked at", PATIENCE, || {
            (seen.content.load(Ordering::Relaxed) > before + 20).then_some(())
        });
        let refused = seen.refused.load(Ordering::Relaxed);
        mounted.daemon.kill();
        wait_for("the watcher meets the dead mount", PATIENCE, || {
            (seen.refused.load(Ordering::Relaxed) > refused).then_some(())
        });
        // In the order of dropping: the old guard would take the new mount away.
        let next = machine.mount();
        std::mem::forget(std::mem::replace(&mut mounted, next));
        assert_eq!(
            fs::read(root.join("kept")).unwrap(),
            b"kept",
            "crash {crash}"
        );
    }
    seen.stop.store(true, Ordering::Relaxed);
    watcher.join().unwrap().unwrap();
    assert!(
        seen.written.load(Ordering::Relaxed) > crashes,
        "the watcher hardly wrote"
    );
    machine.umount(mounted);
    let beneath: Vec<_> = fs::read_dir(&root).unwrap().flatten().collect();
    assert!(beneath.is_empty(), "written beneath the drive: {beneath:?}");
}

/// Unmounting a drive whose daemon had died said nothing and ended with 0, as if everything were on the server.
#[test]
fn unmounting_after_a_crash_does_not_claim_that_everything_was_sent() {
    let world = World::new();
    let (_server, machine, mut mounted) = world.mounted();
    mounted.daemon.kill();
    let point = mounted.path().to_str().unwrap().to_owned();
    let said = machine.run(&["umount", &point]).code_is(PENDING).stderr;
    assert!(said.contains("had died"), "{said}");
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0, "and it is gone");
}

#[test]
fn the_units_are_sound_and_installed_where_systemd_looks() {
    let world = World::new();
    let root = world.path("root");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let install = |words: &[&std::ffi::OsStr]| {
        let mut command = Command::new(scripts.join("install-helpers"));
        command.args(words).env("DESTDIR", &root);
        run(&mut command, PATIENCE).ok()
    };
    install(&[program("sealdrive").as_os_str()]);
    let lib = root.join("usr/lib");
    let units = [
        lib.join("systemd/system/sealdrive@.service"),
        lib.join("systemd/user/sealdrive@.service"),
        lib.join("systemd/system/sealdrive-server.service"),
    ];
    for unit in &units {
        let text = fs::read_to_string(unit).unwrap();
        assert!(!text.contains("@SE"), "a command was not filled in: {text}");
        for must in ["Type=notify", "WatchdogSec=", "Restart=on-failure"] {
            assert!(text.contains(must), "{must} in {}", unit.display());
        }
        // On a machine where nobody had made the directory, the drive did not start, sixty times.
        let makes = text.contains("ExecStartPre=-mkdir -p -- ${MOUNTPOINT}");
        assert_eq!(makes, text.contains("mount --foreground"), "{text}");
        // What would uncover the empty directory after a crash.
        assert!(!text.contains("ExecStop"), "{text}");
        verify(unit, &world.path("runtime"));
    }
    install(&["--remove".as_ref()]);
    assert!(units.iter().all(|unit| !unit.exists()), "not removed");
}

/// Asks `systemd-analyze` about one unit file: what it does not know, it says on standard error.
fn verify(unit: &Path, runtime: &Path) {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        println!(
            "SKIPPED: systemd-analyze is missing (Debian package systemd), units were not verified"
        );
        return;
    }
    fs::create_dir_all(runtime).unwrap();
    let name = unit.to_str().unwrap().replace("@.", "@work.");
    let mut command = Command::new("systemd-analyze");
    if name.contains("/user/") {
        command.arg("--user");
    }
    command
        .args(["verify", "--man=no", &name])
        .env("XDG_RUNTIME_DIR", runtime);
    let said = run(&mut command, PATIENCE).ok().stderr;
    let about_us: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("sealdrive"))
        .collect();
    assert!(about_us.is_empty(), "{about_us:#?}");
}

/// What an administrator does with a line in fstab, by the real mount(8) and umount(8), in a mount namespace where the
/// helpers are installed and where /run is its own. Each step says what it found; a wrong one ends the script.
const FSTAB: &str = r#"
set -eu
fail() { echo "WRONG: $*"; exit 1; }
for place in /usr/sbin /run; do
    mkdir -p "$W/over$place/up" "$W/over$place/work"
    mount -t overlay overlay -o "lowerdir=$place,upperdir=$W/over$place/up,workdir=$W/over$place/work" "$place"
done
rm -f /run/mount/utab
ln -sf "$SEALDRIVE" /usr/sbin/mount.fuse.sealdrive
ln -sf "$SEALDRIVE" /usr/sbin/umount.fuse.sealdrive
echo "drive $POINT fuse.sealdrive _netdev,nofail,allow_other,home=$SEALDRIVE_HOME,umount_wait=2s 0 0" >"$W/fstab"
trap 'umount -l -i "$POINT" 2>/dev/null || true' EXIT
# As at boot: next to no environment.
clean() { env -i PATH="$PATH" "$@"; }

clean mount -a -T "$W/fstab"
grep -q " $POINT .* fuse.sealdrive sealdrive:drive " /proc/self/mountinfo || fail 'not mounted by its line'
head -c 3000000 /dev/urandom >"$POINT/a"
code=0; (cd "$POINT" && clean umount "$POINT" 2>"$W/busy") || code=$?
[ "$code" != 0 ] && [ -s "$POINT/a" ] && grep -q busy "$W/busy" || fail "busy: $code $(cat "$W/busy")"
clean umount "$POINT" || fail "plain umount: $?"
[ -z "$(ls "$POINT")" ] || fail 'still there'
! grep -q "$POINT" /run/mount/utab || fail "utab: $(cat /run/mount/utab)"

clean mount -T "$W/fstab" "$POINT"
[ -s "$POINT/a" ] || fail 'not what was written'
kill -STOP "$SERVER"
head -c 3000000 /dev/urandom >"$POINT/b"
code=0; clean umount "$POINT" 2>"$W/late" || code=$?
kill -CONT "$SERVER"
[ "$code" = 23 ] && grep -q 'safe on this machine' "$W/late" || fail "server away: $code $(cat "$W/late")"

clean mount -T "$W/fstab" "$POINT"
[ -s "$POINT/b" ] || fail 'what was not sent is gone'
clean umount "$POINT" || fail "the last umount: $?"
"#;

#[test]
fn a_line_in_fstab_and_a_plain_umount() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: needs root for a mount namespace, nothing was tested");
        return;
    }
    let world = World::new();
    let mut server = world.server();
    let machine = world.machine("machine");
    machine.init(&server.invite());
    let mut script = Command::new("unshare");
    script
        .args(["--mount", "--propagation", "private", "bash", "-c", FSTAB])
        .env("W", world.path("machine"))
        .env("POINT", machine.mountpoint())
        .env("SEALDRIVE_HOME", machine.home())
        .env("SEALDRIVE", program("sealdrive"))
        .env("SERVER", server.daemon().id().to_string());
    let ended = run(&mut script, PATIENCE);
    server.daemon().signal(Signal::CONT);
    ended.ok();
}
