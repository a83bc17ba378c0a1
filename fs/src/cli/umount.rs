//! `sealdrive umount`, and `umount.fuse.sealdrive` as umount(8) calls it: unmount, then wait for the server.
//!
//! Invariant: a busy mount is refused and nothing changes; code 23 means that the mount is gone and data is still on
//! this machine only, where the next mount finds it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;

use super::Session;
use super::exit::{Exit, Failure};
use super::output::size;
use super::progress::Meter;
use crate::clock;
use crate::control::Progress;
use crate::umount::{Outcome, Request, umount};

const EXAMPLES: &str = "\
Examples:
  sealdrive umount ~/Drive                   Returns when the server has everything.
  sealdrive umount --timeout 1min ~/Drive    Exit code 23 if it takes longer. The drive is unmounted all the same, and
                                             sending goes on in the background while the machine is up.
  umount ~/Drive                             The same for root, once scripts/install-helpers has run.

Without --timeout (or umount_wait=TIME among the mount options) it gives up when the server took nothing for two
minutes.";

/// Unmount a drive and wait until everything is on the server.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Umount {
    /// Where the drive is mounted.
    mountpoint: PathBuf,
    /// Wait for the server at most this long, such as 30s or 10min; 0s: not at all (exit code 23 if data is left).
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Take the name away at once even if files are open; they stay usable, and nothing is waited for.
    #[arg(long, short)]
    lazy: bool,
}

impl Umount {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        finish(
            session,
            &Request {
                mountpoint: self.mountpoint,
                lazy: self.lazy,
                wait: self.timeout,
                quiet: false,
            },
        )
    }
}

/// The helper's way in: arguments as umount(8) passes them.
pub(super) fn from_helper(session: &Session, args: Vec<OsString>) -> Result<Exit, Failure> {
    finish(session, &Request::from_helper(args)?)
}

#[derive(Serialize)]
struct Unmounted<'a> {
    unmounted: &'a std::path::Path,
    /// Bytes the server lacks; none if there was nobody to ask.
    pending_bytes: Option<u64>,
}

fn finish(session: &Session, request: &Request) -> Result<Exit, Failure> {
    let place = request.mountpoint.display().to_string();
    let mut meter = Meter::new(session.out.progress(), &format!("sending {place}"));
    let outcome = umount(request, &mut |pending_bytes| {
        let progress = Progress {
            pending_bytes,
            online: true,
            ..Progress::default()
        };
        meter.show(&progress, clock::now());
    });
    drop(meter);
    let outcome = outcome?;
    let pending_bytes = match outcome {
        Outcome::Drained => Some(0),
        Outcome::Pending { bytes } => Some(bytes),
        Outcome::Unknown | Outcome::Crashed => None,
    };
    let result = Unmounted {
        unmounted: &request.mountpoint,
        pending_bytes,
    };
    if outcome == Outcome::Crashed {
        return Err(Failure::new(
            Exit::Pending,
            format!(
                "{place} is unmounted, but its mount process had died before everything was sent, perhaps"
            ),
            "what was not sent is safe on this machine and goes out at the next mount",
        ));
    }
    if let Outcome::Pending { bytes } = outcome {
        let what = match bytes {
            0 => "not everything is".to_owned(),
            bytes => format!("{} are not", size(bytes)),
        };
        return Err(Failure::new(
            Exit::Pending,
            format!("{place} is unmounted, but {what} on the server yet"),
            "they are safe on this machine; sending goes on in the background, or at the next mount",
        ));
    }
    if !request.quiet {
        session.out.result(&result, || match outcome {
            Outcome::Drained => format!("{place}: unmounted, everything is on the server"),
            _ => format!("{place}: unmounted"),
        });
    }
    Ok(Exit::Ok)
}
