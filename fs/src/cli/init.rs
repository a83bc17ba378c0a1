//! `sealdrive init`: an account, its first drive and the recovery kit.
//!
//! Invariant: says where the kit is before it says that all is well.

use std::path::PathBuf;

use clap::Parser;
use sealdrive_core::passphrase::Argon2Cost;
use sealdrive_proto::connect::ConnectString;
use sealdrive_proto::link::{Compression, MAX_ZSTD_LEVEL};
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::{Session, passphrase};
use crate::account::{self, Founded, NewAccount};

const EXAMPLES: &str = "\
Examples:
  sealdrive init --server 'sealdrive://backup.example:7443/#…' --kit ~/kit.txt
  SEALDRIVE_PASSWORD_FILE=pw sealdrive init --server \"$CONNECT\" --drive work --kit kit.txt

The connect string comes from whoever runs the server (`sealdrive-server invite`); it names the server, proves it, and
carries a one-time invitation. The kit is the one thing to print: kit and passphrase together bring everything back on
any machine (`sealdrive recover`), and nothing else does once all your machines are gone.";

/// Make an account and its first drive on a server.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Init {
    /// Connect string with an invitation.
    #[arg(
        long,
        env = "SEALDRIVE_SERVER",
        hide_env_values = true,
        value_name = "CONNECT"
    )]
    server: Option<String>,
    /// Name of the drive.
    #[arg(long, default_value = "drive", value_name = "NAME")]
    drive: String,
    /// How file content is compressed: a zstd level from 1 to 19, or 'off'.
    ///
    /// Fixed for the life of the drive, and honoured by every machine that mounts it. 1 is the fastest; a higher level
    /// stores and sends less, and takes more processor time when something is written.
    /// What does not get smaller is stored as it is at any level. 'off' spends no time on it and stores more; it also
    /// keeps the server from seeing, in the sizes of what it stores, how well content compresses. Names and attributes
    /// are compressed in any case.
    #[arg(long, default_value = "1", value_parser = compression, value_name = "LEVEL")]
    compression: Compression,
    /// Where to write the recovery kit (a new file).
    #[arg(long, value_name = "FILE")]
    kit: Option<PathBuf>,
    /// Ask for the passphrase at every mount, instead of opening with what is on this machine.
    #[arg(long)]
    ask_passphrase: bool,
}

impl Init {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let runtime = super::runtime()?;
        let place = super::helper_process()?;
        // An earlier init may have been cut off between its two halves; then there is nothing to ask.
        let finished = runtime.block_on(account::finish_init(
            &session.home,
            &place,
            passphrase::existing,
        ))?;
        if let Some(founded) = finished {
            session
                .out
                .news("finished the account that an earlier `init` began");
            return Ok(tell(session, &founded, &self.drive));
        }
        if session.home.is_enrolled() {
            return Err(crate::home::HomeError::Occupied(session.home.dir().to_path_buf()).into());
        }
        let connect = connect_string(self.server.as_deref())?;
        let kit = self.kit.ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "no place for the recovery kit was given",
                "add --kit FILE; you will print that file and keep it safe",
            )
        })?;
        let new_passphrase = passphrase::fresh()?;
        session.out.news("making keys and registering…");
        let wanted = NewAccount {
            connect: &connect,
            drive: &self.drive,
            compression: self.compression,
            passphrase: &new_passphrase,
            ask_passphrase: self.ask_passphrase,
            kit: &kit,
            cost: Argon2Cost::DEFAULT,
        };
        let founded = runtime.block_on(account::init(&session.home, &wanted))?;
        Ok(tell(session, &founded, &self.drive))
    }
}

/// Parses what `--compression` gave.
fn compression(text: &str) -> Result<Compression, String> {
    if text == "off" {
        return Ok(Compression::Off);
    }
    match text.parse() {
        Ok(level @ 1..=MAX_ZSTD_LEVEL) => Ok(Compression::Zstd(level)),
        _ => Err(format!(
            "give a level from 1 (fastest) to {MAX_ZSTD_LEVEL} (smallest), or 'off'"
        )),
    }
}

/// Parses what `--server` or the environment gave.
pub(super) fn connect_string(text: Option<&str>) -> Result<ConnectString, Failure> {
    let text = text.ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            "no server was given",
            "add --server CONNECT (or SEALDRIVE_SERVER) with the line that `sealdrive-server invite` prints",
        )
    })?;
    Ok(text.parse().map_err(account::AccountError::from)?)
}

#[derive(Serialize)]
struct Made<'a> {
    account: String,
    device: String,
    drive: &'a str,
    drive_id: String,
    kit: &'a std::path::Path,
}

fn tell(session: &Session, founded: &Founded, drive: &str) -> Exit {
    let made = Made {
        account: founded.account.to_hex(),
        device: founded.device.to_hex(),
        drive,
        drive_id: founded.drive.to_hex(),
        kit: &founded.kit,
    };
    session.out.result(&made, || {
        format!(
            "Your recovery kit is in {kit}. PRINT IT NOW, keep it with your papers, then delete the file.\n\
             Kit and passphrase together bring everything back; neither does alone.\n\
             Next: sealdrive mount ~/Drive",
            kit = founded.kit.display()
        )
    });
    Exit::Ok
}
