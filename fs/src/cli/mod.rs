//! The command line: what may be typed, one file per command, and how a command ends.
//!
//! Invariant: a command prints its result on stdout, and its failure as one line on stderr with an exit code of
//! `exit.rs`; secrets never stand in arguments. Called by `main`.

mod completions;
mod conflicts;
pub mod exit;
mod failures;
mod init;
mod mount;
mod opening;
mod output;
mod passphrase;
mod progress;
mod quantity;
mod quickstart;
mod recover;
mod select;
mod status;
mod sync;
mod umount;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::home::Home;
use crate::unlock;
use exit::{Exit, Failure};
use output::Output;

const EXAMPLES: &str = "\
Examples:
  sealdrive init --server CONNECT --kit ~/kit.txt
                                            Make an account; then print the kit.
  sealdrive recover --kit kit.txt           On a new machine: bring everything back.
  sealdrive mount ~/Drive                   Then use it like any directory.
  sealdrive status                          Is everything on the server?
  sealdrive sync && echo safe               Wait until it is.
  sealdrive umount ~/Drive                  Unmount; waits as well.
  sealdrive conflicts                       What was kept when another machine took over.

Secrets are never arguments. A passphrase is read from, in this order:
  SEALDRIVE_PASSWORD_FD, SEALDRIVE_PASSWORD_FILE, SEALDRIVE_PASSWORD_COMMAND,
  the systemd credential 'sealdrive-passphrase', the terminal.

Other environment:
  SEALDRIVE_SERVER      connect string, as --server
  SEALDRIVE_HOME        where this machine keeps its keys and local state, as --home
  SEALDRIVE_CACHE_DIR   where the local copies of drives are kept, if not under the home
  NO_COLOR              no colours
  SEALDRIVE_LOG         what to log on stderr, such as 'info' or 'sealdrive=debug'

Exit codes:
  0 done    1 error    2 usage    3 partly done    10 no such drive    11 writer lease held elsewhere
  12 wrong passphrase or key    13 refused by role    14 quota or space    15 server unreachable
  16 not mounted    20 damage, repairable    21 damage, data lost    22 rollback or tampering
  23 data not yet on the server    24 older than --max-age    30 mount failed    130 interrupted";

/// A drive that is always backed up and that its host cannot read.
#[derive(Debug, Parser)]
#[command(name = "sealdrive", version, after_help = EXAMPLES, disable_help_subcommand = false)]
#[command(propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Where this machine keeps its keys and local state [default: ~/.local/state/sealdrive].
    #[arg(
        long,
        global = true,
        env = "SEALDRIVE_HOME",
        hide_env = true,
        value_name = "DIR"
    )]
    home: Option<PathBuf>,
    /// Print results and failures as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but results and failures.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(quickstart::Quickstart),
    Init(init::Init),
    Recover(recover::Recover),
    Mount(mount::Mount),
    Status(status::Status),
    Sync(sync::Sync),
    Umount(umount::Umount),
    Conflicts(conflicts::Conflicts),
    Completions(completions::Completions),
    #[command(hide = true)]
    QuickstartServer(quickstart::QuickstartServer),
    #[command(hide = true)]
    Man(completions::Man),
    /// Opens one slot for another process of ours.
    #[command(hide = true)]
    UnlockHelper,
}

/// What a command works with: its home and its way of speaking.
struct Session {
    home: Home,
    out: Output,
}

/// A command under the name that mount(8) or umount(8) calls it by.
type Helper = fn(&Session, Vec<OsString>) -> Result<Exit, Failure>;

/// Runs the command line and returns its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    start_log();
    let args: Vec<OsString> = args.into_iter().collect();
    let program = args.first().map(PathBuf::from);
    let name = program
        .as_deref()
        .and_then(Path::file_name)
        .and_then(OsStr::to_str);
    let helper = match name {
        Some("mount.fuse.sealdrive") => Some(mount::from_helper as Helper),
        Some("umount.fuse.sealdrive") => Some(umount::from_helper as Helper),
        _ => None,
    };
    if let Some(helper) = helper {
        let out = Output::new(false, false);
        let rest = args[1..].to_vec();
        return end(
            out,
            open(None, out).and_then(|session| helper(&session, rest)),
        );
    }
    let matches = match Cli::command().try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version go to stdout and are no failure; clap knows which is which.
            let code = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            drop(error.print());
            return ExitCode::from(code.code());
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(Exit::Usage.code());
        }
    };
    let out = Output::new(cli.common.json, cli.common.quiet);
    end(out, dispatch(cli, out))
}

fn dispatch(cli: Cli, out: Output) -> Result<Exit, Failure> {
    let session = || open(cli.common.home, out);
    match cli.command {
        Command::Quickstart(command) => command.run(&session()?),
        Command::QuickstartServer(command) => command.run(),
        Command::Init(command) => command.run(&session()?),
        Command::Recover(command) => command.run(&session()?),
        Command::Mount(command) => command.run(&session()?),
        Command::Status(command) => command.run(&session()?),
        Command::Sync(command) => command.run(&session()?),
        Command::Umount(command) => command.run(&session()?),
        Command::Conflicts(command) => command.run(&session()?),
        // These need no home.
        Command::Completions(command) => command.run(&mut Cli::command()),
        Command::Man(command) => command.run(Cli::command()),
        Command::UnlockHelper => match unlock::serve(std::io::stdin(), std::io::stdout()) {
            Ok(()) => Ok(Exit::Ok),
            Err(error) => Err(Failure::new(Exit::Error, error.to_string(), "")),
        },
    }
}

fn open(home: Option<PathBuf>, out: Output) -> Result<Session, Failure> {
    Ok(Session {
        home: Home::locate(home)?,
        out,
    })
}

fn end(out: Output, done: Result<Exit, Failure>) -> ExitCode {
    let exit = done.unwrap_or_else(|failure| {
        out.failure(&failure);
        failure.exit
    });
    ExitCode::from(exit.code())
}

/// For commands that speak with the server and end: one thread is enough.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Error, format!("cannot start: {error}"), "try again"))
}

/// Where passphrases are checked: not in this process.
fn helper_process() -> Result<unlock::Where, Failure> {
    unlock::Where::own_process().map_err(|error| {
        Failure::new(
            Exit::Error,
            format!("cannot find my own program file: {error}"),
            "is /proc mounted?",
        )
    })
}

/// Logs go to stderr and only when asked for: a command's own lines are its interface.
fn start_log() {
    let wanted = std::env::var("SEALDRIVE_LOG").unwrap_or_else(|_| "error".to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(wanted)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    // A second start (tests in one process) is no failure.
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(true)
            .try_init(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_takes_no_secret() {
        let command = Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            for argument in sub.get_arguments() {
                let name = argument.get_long().unwrap_or_default();
                assert!(
                    !["password", "passphrase", "key", "secret"].contains(&name),
                    "{} --{name} would put a secret on argv",
                    sub.get_name()
                );
            }
        }
    }
}
