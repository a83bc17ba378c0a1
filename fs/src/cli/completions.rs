//! `sealdrive completions SHELL` and `sealdrive man`: for packagers and for `eval`.
//!
//! Invariant: generated from the same definition the parser uses, so they cannot disagree with it.

use clap::{Command, Parser};
use clap_complete::Shell;

use super::exit::{Exit, Failure};

const EXAMPLES: &str = "\
Examples:
  source <(sealdrive completions bash)
  sealdrive completions zsh > ~/.zfunc/_sealdrive
  sealdrive completions fish > ~/.config/fish/completions/sealdrive.fish";

/// Print shell completions.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Completions {
    /// Which shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, command: &mut Command) -> Result<Exit, Failure> {
        clap_complete::generate(self.shell, command, "sealdrive", &mut std::io::stdout());
        Ok(Exit::Ok)
    }
}

/// Print the manual page.
#[derive(Debug, Parser)]
pub(super) struct Man {}

impl Man {
    pub(super) fn run(self, command: Command) -> Result<Exit, Failure> {
        clap_mangen::Man::new(command)
            .render(&mut std::io::stdout())
            .map_err(|error| {
                Failure::new(
                    Exit::Error,
                    format!("cannot write the manual page: {error}"),
                    "",
                )
            })?;
        Ok(Exit::Ok)
    }
}
