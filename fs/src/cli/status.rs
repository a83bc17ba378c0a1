//! `sealdrive status`: what is mounted and whether it is on the server.
//!
//! Invariant: changes nothing; nothing is called committed before the kernel's own pages were called in.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::exit::{Exit, Failure};
use super::output::{age, size};
use super::{Session, select};
use crate::clock;
use crate::control::{self, Answer, Ask};

const EXAMPLES: &str = "\
Examples:
  sealdrive status                        All mounted drives. Exit code 0: all of it is on the server; 23: not yet.
  sealdrive status ~/Drive/thesis.tex     The same of one file; of a directory: the weakest state below it, and how
                                          many are in each. Several paths may be given.
  sealdrive status --max-age 1h           For a monitor: exit code 24 when something needs a person, else 0.
  sealdrive status --json | jq .pending
  sealdrive status                        Exit code 21: something was damaged and is lost; 22: rollback or tampering.

States, from weakest: dirty (in memory), journaled (survives a crash here), sent (on the server), committed
(part of a restore point on the server). A file that is open for writing is never called committed: its next byte
may be on the way. Also: getfattr -n user.sealdrive.state FILE (of a directory: its own names and attributes).
A mount point means the whole drive, where a file that is only open does not count.

With --max-age AGE the exit code is 24 when
  - the oldest change that is in no restore point has waited longer than AGE, or
  - the server has not answered for longer than AGE (it is asked now, for at most 5 s, before that is said).
It is 0 while younger changes are on their way, and for a drive at rest however old its newest restore point is: a
check every few minutes with AGE of an hour is quiet in daily work, and speaks up an hour after backups stop for
whatever reason. Time is counted while the machine is awake, so setting a clock alarms nobody. Code 16, nothing
mounted, 11, another machine has taken the drive over, and 21 and 22 are alarms too. Several drives are as the worst
of them.";

/// Show what is mounted and whether everything is on the server.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {
    /// Drives, mount points, or files and directories inside them [default: all mounted drives].
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// For monitors: exit code 24 if something has waited longer for a restore point, or the server was silent for
    /// longer, than this, such as 90s, 15min, 2h.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
}

impl Status {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut verdict = Verdict::default();
        let mut tell = |status: &control::Status| {
            session.out.result(status, || describe(status));
            verdict.add(status, self.max_age);
        };
        let whole = Ask {
            ino: None,
            heard_within: self.max_age,
            flush: true,
        };
        if self.paths.is_empty() {
            for mounted in select::all(session)? {
                tell(&ask(&mounted, whole)?);
            }
        }
        for path in &self.paths {
            let (mounted, ino) = select::one(session, path)?;
            let root = std::fs::canonicalize(path).is_ok_and(|p| p == mounted.status.mountpoint);
            let ino = ino.filter(|_| !root);
            let mut status = ask(&mounted, Ask { ino, ..whole })?;
            status.path = ino.map(|_| path.clone());
            tell(&status);
        }
        Ok(verdict.exit())
    }
}

/// What the exit code says, of all that was asked about.
#[derive(Default)]
struct Verdict {
    pending: bool,
    too_old: bool,
    fenced: bool,
    /// What happened to the drive itself: 0, 21 or 22.
    damage: u8,
}

impl Verdict {
    fn add(&mut self, status: &control::Status, max_age: Option<Duration>) {
        // A monitor asks about age; that something young is on its way is daily work.
        self.pending |= match &status.file_state {
            Some(state) => state != "committed",
            None => status.state != "committed" && max_age.is_none(),
        };
        self.fenced |= status.fenced.is_some();
        self.damage = self.damage.max(status.verdict);
        self.too_old |= max_age.is_some_and(|max| is_older(status, max));
    }

    fn exit(&self) -> Exit {
        if self.too_old {
            Exit::TooOld
        } else if self.damage != 0 {
            Exit::from_code(self.damage)
        } else if self.pending {
            Exit::Pending
        } else if self.fenced {
            Exit::LeaseElsewhere
        } else {
            Exit::Ok
        }
    }
}

fn ask(mounted: &select::Mounted, ask: Ask) -> Result<control::Status, Failure> {
    // One that is unmounted and only still sends has no kernel to flush.
    let flush = ask.flush && mounted.status.mounted;
    let refused = match flush {
        true => select::start_flush(&mounted.status.mountpoint),
        false => None,
    };
    match control::ask(&mounted.socket, &Ask { flush, ..ask }.into(), &mut |_| ()) {
        Ok(Answer::Status(mut status)) => {
            status.notes.extend(refused.map(|why| why.to_string()));
            Ok(*status)
        }
        Ok(Answer::Failed(refusal)) => Err(refusal.into()),
        Ok(_) => Err(Failure::new(
            Exit::Error,
            "the mount answered something else than its state",
            "",
        )),
        Err(error) => Err(super::sync::lost(&mounted.status, &error)),
    }
}

/// A drive is too old when a change has waited longer than `max`, or nothing was heard of the server for longer.
fn is_older(status: &control::Status, max: Duration) -> bool {
    let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    status.waiting_ms.is_some_and(|waiting| waiting > max_ms) || status.heard_ms > max_ms
}

fn describe(status: &control::Status) -> String {
    let now_ms = clock::wall_ms();
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
        (seq, None) => format!("restore point {seq}"),
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
    if let Some(waiting) = status.waiting_ms.filter(|ms| *ms >= 1000) {
        lines.push(format!("  waiting  the oldest change for {}", age(waiting)));
    }
    if let Some(state) = &status.file_state {
        lines.push(format!("  {}", file_line(status, state)));
    }
    if status.conflicts > 0 {
        lines.push(format!(
            "  kept     {} set aside; see `sealdrive conflicts`",
            status.conflicts
        ));
    }
    lines.extend(status.notes.iter().map(|note| format!("  note     {note}")));
    lines.join("\n")
}

/// The line about the file or directory that was asked about.
fn file_line(status: &control::Status, state: &str) -> String {
    let path = status
        .path
        .as_deref()
        .map(|path| path.display().to_string());
    let mut line = format!("{}  {state}", path.as_deref().unwrap_or("file"));
    if let Some(below) = &status.below {
        let counts = [
            (below.dirty, "dirty"),
            (below.journaled, "journaled"),
            (below.sent, "sent"),
            (below.committed, "committed"),
        ];
        let counts: Vec<String> = counts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        line.push_str(&format!(" ({})", counts.join(", ")));
        if !below.complete {
            line.push_str(" and more that were not looked at");
        }
    }
    match status.open_for_write {
        0 => {}
        1 if status.below.is_none() => line.push_str(", open for writing"),
        open => line.push_str(&format!(", {open} open for writing")),
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_rest() -> control::Status {
        control::Status {
            state: "committed".to_owned(),
            online: true,
            commit_ms: Some(1000),
            ..control::Status::default()
        }
    }

    #[test]
    fn an_idle_drive_is_never_too_old_a_waiting_one_and_a_silent_server_are() {
        let hour = Duration::from_secs(3600);
        assert!(
            !is_older(&at_rest(), hour),
            "its restore point is old, and that is fine"
        );
        let mut status = at_rest();
        status.waiting_ms = Some(3_600_000);
        assert!(!is_older(&status, hour));
        status.waiting_ms = Some(3_600_001);
        assert!(is_older(&status, hour));
        let mut status = at_rest();
        status.heard_ms = 3_600_001;
        assert!(is_older(&status, hour), "silence is not proof");
    }

    #[test]
    fn what_is_young_is_pending_to_a_person_and_fine_to_a_monitor() {
        let mut waiting = at_rest();
        waiting.state = "journaled".to_owned();
        waiting.waiting_ms = Some(10);
        let exit = |status: &control::Status, max_age| {
            let mut verdict = Verdict::default();
            verdict.add(&at_rest(), max_age);
            verdict.add(status, max_age);
            verdict.exit()
        };
        assert_eq!(exit(&at_rest(), None), Exit::Ok);
        assert_eq!(exit(&waiting, None), Exit::Pending);
        assert_eq!(exit(&waiting, Some(Duration::from_secs(1))), Exit::Ok);
        assert_eq!(exit(&waiting, Some(Duration::from_millis(9))), Exit::TooOld);
        for state in ["dirty", "journaled", "sent", "unknown"] {
            let mut file = at_rest();
            file.file_state = Some(state.to_owned());
            assert_eq!(exit(&file, None), Exit::Pending, "{state}");
        }
    }
}
