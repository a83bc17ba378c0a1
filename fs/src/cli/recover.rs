//! `sealdrive recover`: everything back on a fresh machine, from kit and passphrase.
//!
//! Invariant: asks for the passphrase only after the server has proven the identity named on the kit.

use std::path::PathBuf;

use clap::Parser;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::{Session, init, passphrase};
use crate::account::{self, Recovered, Recovery};

const EXAMPLES: &str = "\
Examples:
  sealdrive recover --kit kit.txt
  sealdrive recover --kit kit.txt --server 'sealdrive://new-address:7443/#…'

The kit file may be the one `init` wrote, or typed from paper: only the code matters, in any case and spacing.";

/// Bring an account back on this machine, with the recovery kit and the passphrase.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Recover {
    /// The recovery kit.
    #[arg(long, value_name = "FILE")]
    kit: PathBuf,
    /// Connect string, if the server is not where the kit says.
    #[arg(
        long,
        env = "SEALDRIVE_SERVER",
        hide_env_values = true,
        value_name = "CONNECT"
    )]
    server: Option<String>,
    /// What this machine is called in your list of devices [default: its host name].
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Ask for the passphrase at every mount, instead of opening with what is on this machine.
    #[arg(long)]
    ask_passphrase: bool,
}

#[derive(Serialize)]
struct Back {
    account: String,
    device: String,
    active_devices: usize,
    drives: Vec<BackDrive>,
}

#[derive(Serialize)]
struct BackDrive {
    name: String,
    id: String,
}

impl Recover {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let server = match &self.server {
            None => None,
            text => Some(init::connect_string(text.as_deref())?),
        };
        let label = self.label.unwrap_or_else(host_name);
        let wanted = Recovery {
            kit: &self.kit,
            server: server.as_ref(),
            label: &label,
            ask_passphrase: self.ask_passphrase,
        };
        let place = super::helper_process()?;
        let recovered = super::runtime()?.block_on(account::recover(
            &session.home,
            &wanted,
            &place,
            passphrase::existing,
        ))?;
        tell(session, recovered);
        Ok(Exit::Ok)
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().chars().take(64).collect()
}

fn tell(session: &Session, recovered: Recovered) {
    let back = Back {
        account: recovered.account.to_hex(),
        device: recovered.device.to_hex(),
        active_devices: recovered.devices,
        drives: recovered
            .drives
            .into_iter()
            .map(|(name, id)| BackDrive {
                name,
                id: id.to_hex(),
            })
            .collect(),
    };
    session.out.result(&back, || {
        let names: Vec<&str> = back
            .drives
            .iter()
            .map(|drive| drive.name.as_str())
            .collect();
        format!(
            "This machine is now device {} of {} in use, with {}.\n\
             If that is one more than you know of, a machine you lost may still be enrolled.\n\
             Next: sealdrive mount {} ~/Drive",
            &back.device[..8],
            back.active_devices,
            match names.as_slice() {
                [] => "no drive yet".to_owned(),
                [one] => format!("drive {one}"),
                many => format!("drives {}", many.join(", ")),
            },
            names.first().unwrap_or(&"DRIVE")
        )
    });
}
