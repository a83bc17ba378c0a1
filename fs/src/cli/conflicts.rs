//! `sealdrive conflicts`: what this machine had not sent when another took a drive over: list, bring back, drop.
//!
//! Invariant: listing and exporting change nothing of a conflict; it is deleted only when asked for by its id, after
//! it was shown, and after a yes.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::opening::engine_config;
use super::output::size;
use super::{Session, passphrase, select};
use crate::account::Opened;
use crate::engine::{self, Branch, Cause, Conflict, EngineConfig};

const EXAMPLES: &str = "\
Examples:
  sealdrive conflicts                               What is kept, and since when.
  sealdrive conflicts export 20261124T221405Z ~/mine
                                                    Bring the new and changed files back, into a directory of their own.
  sealdrive conflicts drop 20261124T221405Z         Show what would go, ask, and delete it for ever.

What was damaged on this machine before any server had it is kept here in the same way. Its export writes all that is
good, names the rest, and ends with 21; what is left of a damaged file is beside it as NAME.damaged, with holes.

A drive has one writer. When another machine takes over (mount --take-over), this one stops writing, and what it had
not sent is kept here, sealed: at the next mount it is set aside, the drive goes on from the server's state, and the
conflict waits until you drop it. Nothing else ever deletes it.";

/// Show what was set aside when another machine took a drive over; bring it back, or drop it.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Conflicts {
    #[command(subcommand)]
    action: Option<Action>,
    /// Where local copies are kept, as for mount [default: under --home].
    #[arg(
        long,
        global = true,
        env = "SEALDRIVE_CACHE_DIR",
        hide_env = true,
        value_name = "DIR"
    )]
    cache_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List what is kept (the default).
    List,
    /// Write the new and changed files of one into a new or empty directory, with all attributes.
    Export {
        /// Which, as listed.
        id: String,
        /// Where to.
        directory: PathBuf,
    },
    /// Delete one for ever, after showing it and asking.
    Drop {
        /// Which, as listed.
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// One as it is shown.
#[derive(Serialize)]
struct Shown<'a> {
    drive: &'a str,
    #[serde(flatten)]
    conflict: &'a Conflict,
}

impl Conflicts {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let place = super::helper_process()?;
        let opened = Opened::open(&session.home, &place, passphrase::existing)?;
        let mut drives = Vec::new();
        for drive in &opened.keystore.drives {
            let config = engine_config(&session.home, &opened, drive, self.cache_dir.as_deref())?;
            drives.push((drive.name.clone(), config));
        }
        match self.action.unwrap_or(Action::List) {
            Action::List => list(session, &drives),
            Action::Export { id, directory } => {
                let (_, config, conflict) = find(&drives, &id)?;
                export(session, config, &conflict, &directory)
            }
            Action::Drop { id, yes } => {
                let (drive, config, conflict) = find(&drives, &id)?;
                session.out.news(&describe(&Shown {
                    drive,
                    conflict: &conflict,
                }));
                if !yes && !agreed()? {
                    return Err(Failure::new(
                        Exit::Error,
                        "nothing was deleted",
                        "answer yes, or give --yes",
                    ));
                }
                engine::drop_branch(config, &conflict.id)?;
                session
                    .out
                    .result(&conflict, || format!("{} is deleted", conflict.id));
                Ok(Exit::Ok)
            }
        }
    }
}

fn list(session: &Session, drives: &[(String, EngineConfig)]) -> Result<Exit, Failure> {
    let mut any = false;
    for (drive, config) in drives {
        for conflict in &engine::list_conflicts(config)? {
            any = true;
            let shown = Shown { drive, conflict };
            session.out.result(&shown, || describe(&shown));
        }
    }
    // A mount that was fenced keeps its own until it is mounted again.
    for mounted in select::all(session).unwrap_or_default() {
        if let Some(fence) = &mounted.status.fenced {
            any = true;
            session.out.news(&format!(
                "drive {} at {}: machine {} has taken over; what was not sent is set aside at the next mount",
                mounted.status.drive,
                mounted.status.mountpoint.display(),
                fence.name
            ));
        }
    }
    if !any {
        session.out.news("no conflicts");
    }
    Ok(Exit::Ok)
}

fn find<'a>(
    drives: &'a [(String, EngineConfig)],
    id: &str,
) -> Result<(&'a str, &'a EngineConfig, Conflict), Failure> {
    for (drive, config) in drives {
        let found = engine::list_conflicts(config)?;
        if let Some(conflict) = found.into_iter().find(|conflict| conflict.id == id) {
            return Ok((drive, config, conflict));
        }
    }
    Err(Failure::new(
        Exit::Usage,
        format!("there is no conflict {id:?}"),
        "see `sealdrive conflicts`",
    ))
}

fn export(
    session: &Session,
    config: &EngineConfig,
    conflict: &Conflict,
    directory: &Path,
) -> Result<Exit, Failure> {
    let exported = Branch::open(config, &conflict.id)?.export(directory)?;
    session.out.result(&exported, || {
        let mut lines = vec![format!(
            "{} files ({}) are in {}; the conflict itself stays until you drop it",
            exported.counts.files,
            size(exported.counts.bytes),
            directory.display()
        )];
        if exported.counts.removed > 0 {
            lines.push(format!(
                "  {} files or directories had been removed on this machine; that was not repeated anywhere",
                exported.counts.removed
            ));
        }
        if exported.refused > 0 {
            lines.push(format!(
                "  {} owners, attributes or special files could not be made without more rights",
                exported.refused
            ));
        }
        for missing in &exported.missing {
            lines.push(match (missing.bytes, &missing.kept) {
                (Some(bytes), Some(kept)) => format!(
                    "  damaged: {}: {bytes} bytes are lost; what is left is in {kept}, with holes",
                    missing.path
                ),
                _ => format!("  lost: {}", missing.path),
            });
        }
        lines.join("\n")
    });
    Ok(if exported.tampered && !exported.missing.is_empty() {
        Exit::Tampered
    } else if !exported.missing.is_empty() {
        Exit::Lost
    } else if exported.refused > 0 {
        Exit::Partly
    } else {
        Exit::Ok
    })
}

fn describe(shown: &Shown<'_>) -> String {
    let conflict = shown.conflict;
    let time = UNIX_EPOCH + Duration::from_millis(conflict.at_ms);
    let what = match conflict.counts {
        Some(counts) => format!(
            "{} files ({}) new or changed, {} directories, {} removed",
            counts.files,
            size(counts.bytes),
            counts.directories,
            counts.removed
        ),
        None => "not counted".to_owned(),
    };
    let why = match conflict.cause {
        Cause::TakenOver => format!(
            "when machine {} had written restore point {}",
            conflict.by_name, conflict.head_seq
        ),
        Cause::Damaged => "because part of it is damaged".to_owned(),
    };
    format!(
        "{}  drive {}\n  holds    {what}\n  since    {}, {why}\n  after    restore point {}, which both share",
        conflict.id,
        shown.drive,
        humantime::format_rfc3339_seconds(time),
        conflict.base_seq
    )
}

/// Asks on the terminal; without one the answer is no.
fn agreed() -> Result<bool, Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Ok(false);
    }
    let failed = |error: std::io::Error| Failure::new(Exit::Error, error.to_string(), "");
    let mut err = std::io::stderr();
    write!(err, "Delete it for ever? Type yes: ")
        .and_then(|()| err.flush())
        .map_err(failed)?;
    let mut line = String::new();
    input.lock().read_line(&mut line).map_err(failed)?;
    Ok(line.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_shown_with_all_that_helps_to_decide() {
        let json = r#"{"id":"20261124T221405Z","at_ms":1795558445000,"by":"ab","by_name":"laptop","base_seq":4,
            "head_seq":9,"counts":{"files":3,"bytes":2048,"directories":1,"removed":2},"base":null}"#;
        let conflict: Conflict = serde_json::from_str(json).unwrap();
        let said = describe(&Shown {
            drive: "work",
            conflict: &conflict,
        });
        for part in [
            "20261124T221405Z",
            "drive work",
            "3 files (2.00 KiB)",
            "2 removed",
            "laptop",
            "restore point 9",
            "2026-11-24T22:14:05Z",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
}
