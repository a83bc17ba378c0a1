//! `sealdrive status`: what is mounted and whether it is on the server.
//!
//! Invariant: reads only; a file is called committed only after the kernel's own pages were flushed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::exit::{Exit, Failure};
use super::output::{age, size};
use super::{Session, select};
use crate::clock;
use crate::control::{self, Answer, Request};

const EXAMPLES: &str = "\
Examples:
  sealdrive status                        All mounted drives.
  sealdrive status ~/Drive/thesis.tex     Exit code 0: that file is on the server; 23: not yet.
  sealdrive status --max-age 1h           Exit code 24 if the newest restore point is older.
  sealdrive status --json | jq .pending
  sealdrive status                        Exit code 21: something is damaged and lost; 22: rollback or tampering.

States, from weakest: dirty (in memory), journaled (survives a crash here), sent (on the server), committed
(part of a restore point on the server).";

/// Show what is mounted and whether everything is on the server.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {
    /// A drive, a mount point, or a file or directory inside one.
    path: Option<PathBuf>,
    /// Fail with code 24 if something is pending and the newest restore point is older, such as 90s, 15min, 2h.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
}

impl Status {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut answers = Vec::new();
        match &self.path {
            None => answers.extend(
                select::all(session)?
                    .into_iter()
                    .map(|mounted| mounted.status),
            ),
            Some(path) => {
                let (mounted, ino) = select::one(session, path)?;
                let root =
                    std::fs::canonicalize(path).is_ok_and(|p| p == mounted.status.mountpoint);
                let ino = ino.filter(|_| !root);
                if ino.is_some() {
                    select::flush_kernel(&mounted.status.mountpoint)?;
                }
                answers.push(ask(&mounted, ino)?);
            }
        }
        let now = clock::wall_ms();
        let mut exit = Exit::Ok;
        for status in &answers {
            session.out.result(status, || describe(status, now));
            if status
                .file_state
                .as_deref()
                .is_some_and(|state| state != "committed")
            {
                exit = Exit::Pending;
            }
            if status.verdict != 0 {
                exit = Exit::from_code(status.verdict);
            }
            if self.max_age.is_some_and(|max| is_older(status, max, now)) {
                exit = Exit::TooOld;
            }
        }
        Ok(exit)
    }
}

fn ask(mounted: &select::Mounted, ino: Option<u64>) -> Result<control::Status, Failure> {
    match control::ask(&mounted.socket, &Request::Status { ino }, &mut |_| ()) {
        Ok(Answer::Status(status)) => Ok(*status),
        Ok(Answer::Failed(refusal)) => Err(refusal.into()),
        Ok(_) => Err(Failure::new(
            Exit::Error,
            "the mount answered something else than its state",
            "",
        )),
        Err(error) => Err(super::sync::lost(&mounted.status, &error)),
    }
}

/// A drive is too old when something waits and the newest restore point is older than `max`: an idle drive is not.
fn is_older(status: &control::Status, max: Duration, now_ms: u64) -> bool {
    let idle = status.state == "committed" && status.online;
    let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    !idle
        && status
            .commit_ms
            .is_none_or(|at| now_ms.saturating_sub(at) > max_ms)
}

fn describe(status: &control::Status, now_ms: u64) -> String {
    let mut lines = vec![format!(
        "{}  at {}, {}",
        status.drive,
        status.mountpoint.display(),
        if status.writable {
            "read-write"
        } else {
            "read-only"
        }
    )];
    let reach = if status.online {
        "connected"
    } else {
        "not reachable now; work goes on"
    };
    lines.push(format!("  server   {}, {reach}", status.server));
    let commit = match (status.commit_seq, status.commit_ms) {
        (0, _) => "no restore point yet".to_owned(),
        (seq, Some(at)) => format!("restore point {seq} {} ago", age(now_ms.saturating_sub(at))),
        (seq, None) => format!("restore point {seq} from an earlier mount"),
    };
    let state = match status.state.as_str() {
        "committed" => format!("everything is on the server ({commit})"),
        _ if status.pending.pending_bytes == 0 => {
            format!("the last changes are being committed ({commit})")
        }
        _ => format!(
            "{} to go in {} objects ({commit})",
            size(status.pending.pending_bytes),
            status.pending.pending_objects
        ),
    };
    lines.push(format!("  state    {state}"));
    lines.push(format!(
        "  local    journal {}, outbox {}, cache {}",
        size(status.journal_bytes),
        size(status.outbox_bytes),
        size(status.cache_bytes)
    ));
    if let Some(state) = &status.file_state {
        lines.push(format!("  file     {state}"));
    }
    lines.extend(status.notes.iter().map(|note| format!("  note     {note}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_drive_is_never_too_old_and_a_waiting_one_is() {
        let hour = Duration::from_secs(3600);
        let mut status = control::Status {
            state: "committed".to_owned(),
            online: true,
            commit_ms: Some(1000),
            ..control::Status::default()
        };
        assert!(!is_older(&status, hour, 1_000_000_000));
        status.state = "journaled".to_owned();
        assert!(is_older(&status, hour, 1_000_000_000));
        assert!(!is_older(&status, hour, 2000));
        status.commit_ms = None;
        assert!(is_older(&status, hour, 2000));
        status.state = "committed".to_owned();
        status.online = false;
        assert!(is_older(&status, hour, 2000), "silence is not proof");
    }
}
