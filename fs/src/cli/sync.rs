//! `sealdrive sync`: returns 0 when everything written before is on the server.
//!
//! Invariant: the kernel's own pages are flushed first, so "everything" includes what no fsync was called for.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::exit::{Exit, Failure};
use super::progress::Meter;
use super::{Session, select};
use crate::clock;
use crate::control::{self, Answer, Ask, Request};

const EXAMPLES: &str = "\
Examples:
  sealdrive sync                       Wait for all mounted drives.
  sealdrive sync ~/Drive               Wait for this one.
  sealdrive sync --timeout 10min       Exit code 23 if it takes longer; nothing is lost, it goes on in the background.";

/// Wait until everything written so far is on the server.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Sync {
    /// A drive, a mount point, or any path inside one [default: all mounted drives].
    path: Option<PathBuf>,
    /// Give up waiting after this long, such as 30s or 10min (exit code 23).
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

impl Sync {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let drives = match &self.path {
            None => select::all(session)?,
            Some(path) => vec![select::one(session, path)?.0],
        };
        let started = clock::now();
        for drive in &drives {
            let left = self
                .timeout
                .map(|timeout| timeout.saturating_sub(started.elapsed()));
            wait(session, drive, left)?;
        }
        Ok(Exit::Ok)
    }
}

/// Flushes the kernel, then waits for the daemon.
pub(super) fn wait(
    session: &Session,
    mounted: &select::Mounted,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    if mounted.status.mounted {
        if mounted.status.over_quota {
            ask_for_room(mounted);
        }
        // The kernel tells of a refusal once, also of one before this: the pages are gone, so it is no success then.
        select::flush_kernel(&mounted.status.mountpoint)?;
    }
    let timeout_ms = timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
    let mut meter = Meter::new(
        session.out.progress(),
        &format!("sending {}", mounted.status.drive),
    );
    let request = Request::Sync { timeout_ms };
    let answer = control::ask(&mounted.socket, &request, &mut |progress| {
        meter.show(progress, clock::now());
    });
    drop(meter);
    match answer {
        Ok(done @ Answer::Done(_)) => {
            let name = &mounted.status.drive;
            session
                .out
                .result(&done, || format!("{name}: everything is on the server"));
            Ok(())
        }
        Ok(Answer::Failed(refusal)) => Err(refusal.into()),
        Ok(_) => Err(Failure::new(
            Exit::Error,
            "the mount answered something else than `done`",
            "",
        )),
        Err(error) => Err(lost(&mounted.status, &error)),
    }
}

/// Has the daemon ask the server whether the account has room by now: before that, writes would still be refused.
fn ask_for_room(mounted: &select::Mounted) {
    let ask = Ask {
        heard_within: Some(Duration::from_secs(1)),
        ..Ask::default()
    };
    // What comes of it is met by the flush.
    let _ = control::ask(&mounted.socket, &ask.into(), &mut |_| ());
}

/// The daemon went away while being asked.
pub(super) fn lost(status: &control::Status, error: &std::io::Error) -> Failure {
    let advice = "what was fsynced is in the local journal; mount again and it goes on";
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::new(
            Exit::NotMounted,
            format!("drive {} is not mounted any more", status.drive),
            advice,
        ),
        _ => Failure::new(
            Exit::Error,
            format!("the mount of {} went away: {error}", status.drive),
            advice,
        ),
    }
}
