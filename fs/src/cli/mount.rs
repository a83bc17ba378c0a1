//! `sealdrive mount`, and `mount.fuse.sealdrive` as mount(8) calls it: unlock, open, serve until unmounted.
//!
//! Invariant: what is wrong is known before the command returns (the daemon reports to the command that started it);
//! the mount process never holds the memory that checking a passphrase takes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Failure};
use super::opening::{engine_config, open_engine};
use super::quantity::{parse_size, parse_time};
use super::{Session, passphrase};
use crate::account::Opened;
use crate::control;
use crate::engine::{EngineConfig, EventKind};
use crate::home::Home;
use crate::keystore::DriveKeys;
use crate::live::{Facts, Fsync, Handle, Live};
use crate::mount::daemon::{self, Started};
use crate::mount::options::{MountCall, MountOptions, OtherOption};
use crate::mount::{Ended, Spec, attach, place, serve};

/// How long the drain after unmount may go on in the background. Without a server it ends at once when the machine
/// goes down; what is left is safe and goes out at the next mount.
const DRAIN_LIMIT: Duration = Duration::from_secs(24 * 3600);

const EXAMPLES: &str = "\
Examples:
  sealdrive mount ~/Drive                      The only drive of this account.
  sealdrive mount work ~/Work -o ro
  sealdrive mount work /srv/work -o allow_other,cache=50G
  work  /srv/work  fuse.sealdrive  _netdev,nofail,allow_other  0 0        (/etc/fstab; see scripts/install-helpers)

Options for -o, besides those of mount(8) (ro, noexec, allow_other, sync, suid, dev, …):
  cache=SIZE     room for local copies of what the server has (default 10G)
  outbox=SIZE    room for what the server does not have yet; beyond it writes get ENOSPC (default 20G)
  fsync=POLICY   what fsync waits for: local, this machine's disk (default), or server, a restore point too; without
                 an answer for 30 s it is ETIMEDOUT, and what was written is safe here and still goes out
  home=DIR       as --home, for /etc/fstab
  take_over      as --take-over
  umount_wait=TIME   how long a plain umount waits for the server, such as 30s or 10min; then it ends with code 23 and
                 sending goes on in the background (default: as long as the server takes something)

The mount is there at once, also without a network: sending and fetching go on in the background.
A drive has one writer. While another machine writes it, it is mounted read-only; --take-over makes this machine the
writer, and the other one then keeps what it had not sent (see `sealdrive conflicts` there).";

/// Mount a drive.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES, override_usage = "sealdrive mount [OPTIONS] [DRIVE] <MOUNTPOINT>")]
pub(super) struct Mount {
    /// Which drive (may be left out if the account has one), and the directory to mount it on.
    #[arg(required = true, num_args = 1..=2, value_names = ["DRIVE", "MOUNTPOINT"])]
    words: Vec<OsString>,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground until unmounted; Ctrl-C unmounts.
    #[arg(long, short)]
    foreground: bool,
    /// Take the right to write from another device that holds it (a lost machine, for example).
    #[arg(long)]
    take_over: bool,
    /// Where local copies are kept [default: under --home].
    #[arg(long, env = "SEALDRIVE_CACHE_DIR", hide_env = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

/// What is to be mounted, understood.
#[derive(Debug)]
struct Plan {
    drive: Option<String>,
    mountpoint: PathBuf,
    lists: Vec<String>,
    kernel: MountOptions,
    home: Option<PathBuf>,
    take_over: bool,
    cache: Option<u64>,
    outbox: Option<u64>,
    umount_wait: Option<Duration>,
    cache_dir: Option<PathBuf>,
    fsync: Fsync,
}

impl Mount {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut words = self.words;
        let mountpoint = PathBuf::from(words.pop().expect("clap requires one word"));
        let mut plan = Plan::parse(words.pop(), mountpoint, self.options)?;
        plan.take_over |= self.take_over;
        plan.cache_dir = self.cache_dir;
        plan.carry_out(session, self.foreground)
    }
}

/// Mounts the only drive of the session's home here, until unmounted.
pub(super) fn here(session: &Session, mountpoint: PathBuf) -> Result<Exit, Failure> {
    Plan::parse(None, mountpoint, Vec::new())?.carry_out(session, true)
}

/// The helper's way in: arguments as mount(8) passes them.
pub(super) fn from_helper(session: &Session, args: Vec<OsString>) -> Result<Exit, Failure> {
    let call = MountCall::parse(args).map_err(|error| {
        Failure::new(
            Exit::Usage,
            error.to_string(),
            "see mount(8), EXTERNAL HELPERS",
        )
    })?;
    let remount = call.remount;
    let plan = Plan::parse(Some(call.source), call.mountpoint, call.lists)?;
    if call.fake {
        return Ok(Exit::Ok);
    }
    if remount {
        attach::remount(&plan.mountpoint, &plan.kernel).map_err(|error| {
            let what = format!("{}: {error}", plan.mountpoint.display());
            Failure::new(
                Exit::MountFailed,
                what,
                "is a drive mounted there, and are you root?",
            )
        })?;
        return Ok(Exit::Ok);
    }
    plan.carry_out(session, false)
}

impl Plan {
    fn parse(
        source: Option<OsString>,
        mountpoint: PathBuf,
        lists: Vec<String>,
    ) -> Result<Self, Failure> {
        let (kernel, others) = MountOptions::parse(&lists);
        let drive = match source {
            None => None,
            Some(source) => {
                let text = source.into_string().map_err(|_| {
                    Failure::new(
                        Exit::NoDrive,
                        "the drive's name is not text",
                        "see `sealdrive drives`",
                    )
                })?;
                let name = text.strip_prefix("sealdrive:").unwrap_or(&text).to_owned();
                (!["none", "sealdrive"].contains(&name.as_str())).then_some(name)
            }
        };
        let (home, cache_dir) = (None, None);
        let mut plan = Self {
            drive,
            mountpoint,
            lists,
            kernel,
            home,
            take_over: false,
            cache: None,
            outbox: None,
            umount_wait: None,
            cache_dir,
            fsync: Fsync::default(),
        };
        for option in others {
            plan.set(option)?;
        }
        Ok(plan)
    }

    fn set(&mut self, OtherOption { name, value }: OtherOption) -> Result<(), Failure> {
        match (name.as_str(), value) {
            ("home", Some(dir)) => self.home = Some(dir.into()),
            ("cache", Some(size)) => self.cache = Some(parse_size(&size)?),
            ("outbox", Some(size)) => self.outbox = Some(parse_size(&size)?),
            ("umount_wait", Some(time)) => self.umount_wait = Some(parse_time(&time)?),
            ("take_over", None) => self.take_over = true,
            ("fsync", Some(policy)) => {
                self.fsync = Fsync::parse(&policy).ok_or_else(|| {
                    let what = format!("fsync={policy} is not a policy");
                    Failure::new(Exit::Usage, what, "write fsync=local or fsync=server")
                })?;
            }
            _ => {
                return Err(Failure::new(
                    Exit::Usage,
                    format!(
                        "mount option {name} is not known, or its value is missing or too much"
                    ),
                    "see `sealdrive mount --help`",
                ));
            }
        }
        Ok(())
    }

    fn carry_out(self, session: &Session, foreground: bool) -> Result<Exit, Failure> {
        let home = match &self.home {
            Some(dir) => Home::locate(Some(dir.clone()))?,
            None => session.home.clone(),
        };
        // What can be known without keys is said at once.
        self.place()?;
        if foreground {
            return self.serve(session, &home);
        }
        home.profile()?;
        match daemon::start(self.daemon_args(&home)?) {
            Ok(Started::Up(pid)) => {
                let result = Mounted {
                    mountpoint: &self.mountpoint,
                    pid,
                };
                session.out.result(&result, || {
                    format!("mounted at {}", self.mountpoint.display())
                });
                Ok(Exit::Ok)
            }
            // The daemon has said why, in its one line.
            Ok(Started::Ended(status)) => {
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                match code.map(Exit::from_code) {
                    Some(Exit::Ok) | None => Err(Failure::new(
                        Exit::MountFailed,
                        format!("the mount process ended before it was up ({status})"),
                        "try with --foreground and SEALDRIVE_LOG=info",
                    )),
                    Some(exit) => Ok(exit),
                }
            }
            Err(error) => Err(Failure::new(
                Exit::MountFailed,
                format!("cannot start the mount process: {error}"),
                "try with --foreground",
            )),
        }
    }

    /// Where it is to be mounted. A dead mount there is left in place: unlocking takes a while, and the new one must
    /// follow it at once.
    fn place(&self) -> Result<PathBuf, Failure> {
        place::look(&self.mountpoint)
            .map(|place| place.path)
            .map_err(|error| Failure::mount_point(&self.mountpoint, &error))
    }

    /// The same mount, for the process that stays.
    fn daemon_args(&self, home: &Home) -> Result<Vec<OsString>, Failure> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| {
                Failure::new(
                    Exit::MountFailed,
                    format!("{}: {error}", path.display()),
                    "",
                )
            })
        };
        let mut args: Vec<OsString> = vec!["mount".into(), "--foreground".into()];
        args.extend(["--home".into(), home.dir().into()]);
        if self.take_over {
            args.push("--take-over".into());
        }
        if let Some(dir) = &self.cache_dir {
            args.extend(["--cache-dir".into(), absolute(dir)?.into()]);
        }
        for list in &self.lists {
            args.extend(["-o".into(), list.into()]);
        }
        args.push("--".into());
        args.extend(self.drive.iter().map(OsString::from));
        args.push(absolute(&self.mountpoint)?.into());
        Ok(args)
    }

    fn serve(self, session: &Session, home: &Home) -> Result<Exit, Failure> {
        let place = super::helper_process()?;
        // Before the terminal is left: it may be needed for the passphrase.
        let opened = Opened::open(home, &place, passphrase::existing)?;
        let mountpoint = self.place()?;
        daemon::detach_from_terminal();
        let drive = choose(&opened, self.drive.as_deref())?;
        let config = self.config(home, &opened, drive)?;
        let facts = Facts {
            name: drive.name.clone(),
            drive_id: drive.drive.to_hex(),
            mountpoint: mountpoint.clone(),
            server: opened.server.addr.clone(),
            read_only: self.kernel.read_only,
            fsync: self.fsync,
            dir: config.dir.clone(),
        };
        let socket = home.socket(&drive.drive)?;
        let name = drive.name.clone();
        // Keys that only opening takes are gone before the first request.
        drop(opened);
        let engine = open_engine(config, &socket)?;
        for event in engine.status().events {
            if event.kind == EventKind::SetAside {
                session.out.warn(&event.detail);
            }
        }
        let mut kernel = self.kernel;
        if engine.is_read_only() && !kernel.read_only {
            // The kernel refuses changes by itself then; why is for the person who mounts.
            kernel.read_only = true;
            session
                .out
                .warn(&engine.status().stopped.unwrap_or_default());
        }
        let live = Arc::new(Live::new(engine, facts));
        let served =
            control::serve(&socket, Arc::new(Handle(Arc::clone(&live)))).map_err(|error| {
                let what = format!("control socket {}: {error}", socket.display());
                Failure::new(Exit::MountFailed, what, "is the drive mounted already?")
            })?;
        end_drain_on_signal(&live);
        let spec = Spec {
            label: name,
            mountpoint,
            options: kernel,
            drain_limit: DRAIN_LIMIT,
            umount_wait: self.umount_wait,
        };
        let watched = Arc::clone(&live);
        let ended = serve(live, &spec, || {
            daemon::announce_ready();
            session.out.news(&format!(
                "mounted at {}; Ctrl-C unmounts",
                spec.mountpoint.display()
            ));
        });
        drop(served);
        let fenced = watched.is_fenced();
        match ended? {
            Ended::Drained => Ok(Exit::Ok),
            Ended::Pending { .. } if fenced => Err(Failure::new(
                Exit::Pending,
                "unmounted; another machine writes this drive, and what this one had not sent is kept here",
                "mount again to go on from the server's state, then see `sealdrive conflicts`",
            )),
            Ended::Pending { bytes } => Err(Failure::new(
                Exit::Pending,
                format!(
                    "unmounted, but {} are not on the server yet",
                    super::output::size(bytes)
                ),
                "they are safe on this machine and go out at the next mount",
            )),
        }
    }

    fn config(
        &self,
        home: &Home,
        opened: &Opened,
        drive: &DriveKeys,
    ) -> Result<EngineConfig, Failure> {
        let mut config = engine_config(home, opened, drive, self.cache_dir.as_deref())?;
        config.take_over = self.take_over;
        config.read_only = self.kernel.read_only;
        config.cache_budget = self.cache.unwrap_or(config.cache_budget);
        config.outbox_budget = self.outbox.unwrap_or(config.outbox_budget);
        Ok(config)
    }
}

/// Signals unmount; one that comes when that is done already ends the sending, as the machine is going down.
fn end_drain_on_signal(live: &Arc<Live>) {
    let live = Arc::downgrade(live);
    let waiting =
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let Ok(runtime) = super::runtime() else {
                    return;
                };
                runtime.block_on(async {
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
            let [Ok(mut a), Ok(mut b), Ok(mut c)] = kinds.map(signal) else { return };
            loop {
                tokio::select! { _ = a.recv() => {}, _ = b.recv() => {}, _ = c.recv() => {} }
                match live.upgrade() {
                    Some(live) => drop(control::Control::leave(&Handle(live))),
                    None => return,
                }
            }
        });
            });
    if let Err(error) = waiting {
        tracing::warn!(%error, "a signal will not end the sending after the unmount");
    }
}

#[derive(Serialize)]
struct Mounted<'a> {
    mountpoint: &'a Path,
    pid: u32,
}

fn choose<'a>(opened: &'a Opened, name: Option<&str>) -> Result<&'a DriveKeys, Failure> {
    opened.keystore.drive(name).ok_or_else(|| {
        let drives = &opened.keystore.drives;
        let names: Vec<&str> = drives.iter().map(|drive| drive.name.as_str()).collect();
        let what = match name {
            Some(name) => format!("this account has no drive {name:?}"),
            None => "this account has not exactly one drive, so one must be named".to_owned(),
        };
        Failure::new(Exit::NoDrive, what, format!("it has: {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_ours() {
        let plan = Plan::parse(
            Some("sealdrive:work".into()),
            "/mnt".into(),
            vec![
                "ro,cache=1G,take_over,umount_wait=90s".to_owned(),
                "_netdev,home=/h".to_owned(),
            ],
        )
        .unwrap();
        assert_eq!(plan.drive.as_deref(), Some("work"));
        assert!(plan.kernel.read_only && plan.take_over);
        assert_eq!(plan.umount_wait, Some(Duration::from_secs(90)));
        assert_eq!(
            (plan.cache, plan.home),
            (Some(1 << 30), Some(PathBuf::from("/h")))
        );
        for list in [
            "cash=1G",
            "cache",
            "take_over=1",
            "umount_wait=soon",
            "fsync",
            "fsync=never",
        ] {
            let failure = Plan::parse(None, "/mnt".into(), vec![list.to_owned()]).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{list}");
        }
        assert_eq!(
            Plan::parse(Some("none".into()), "/m".into(), vec![])
                .unwrap()
                .drive,
            None
        );
    }
}
