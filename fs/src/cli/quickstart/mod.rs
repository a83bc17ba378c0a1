//! `sealdrive quickstart`: a server, an account and a mounted drive in one directory, to try things out.
//!
//! Invariant: everything lies in the directory named; run again it goes on with what is there. Never a way to run a
//! real server: its passphrase lies beside the data, and its output says so.

mod compare;
mod made;
mod roundtrip;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use sealdrive_core::passphrase::Argon2Cost;
use sealdrive_proto::connect::base32;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use super::{Session, mount};
use crate::account::{self, AccountError, NewAccount, Recovery};
use crate::clock;
use crate::embedded::Embedded;
use crate::home::{Home, write_private_new};
use crate::unlock::Where;
use roundtrip::RoundTrip;

/// Hidden subcommand: only the server, in a process that can be killed by itself.
pub(super) const SERVER_SUBCOMMAND: &str = "quickstart-server";
/// Any free port of this machine.
const ANY_PORT: &str = "127.0.0.1:0";
/// Where the port is remembered, so that the kit stays right.
const ADDRESS: &str = "server-address";
const PASSPHRASE: &str = "passphrase.txt";

const EXAMPLES: &str = "\
Examples:
  sealdrive quickstart ~/try                A drive at ~/try/drive until Ctrl-C; run again to go on.
  sealdrive quickstart /tmp/x --check       A whole round trip: copy in, sync, kill -9, lose everything local,
                                            recover on a fresh machine, copy out, compare. Exit code 0 or 1.";

/// Try everything out in one directory: server, account and mounted drive.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub(super) struct Quickstart {
    /// Directory for everything (made if needed).
    dir: PathBuf,
    /// Prove a whole round trip instead, in a new or empty directory.
    #[arg(long)]
    check: bool,
    /// With --check: also copy this directory (without `target` and `.git`).
    #[arg(long, value_name = "DIR", requires = "check")]
    tree: Option<PathBuf>,
}

/// Runs the server of the round trip.
#[derive(Debug, Parser)]
pub(super) struct QuickstartServer {
    dir: PathBuf,
    listen: Option<SocketAddr>,
}

fn wrong(what: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Error,
        what.to_string(),
        "choose another directory, or empty this one",
    )
}

impl Quickstart {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let dir = std::path::absolute(&self.dir).map_err(wrong)?;
        std::fs::create_dir_all(&dir)
            .map_err(|error| wrong(format_args!("{}: {error}", dir.display())))?;
        if self.check {
            if std::fs::read_dir(&dir).map_err(wrong)?.next().is_some() {
                return Err(wrong(format_args!("{} is not empty", dir.display())));
            }
            let program = std::env::current_exe().map_err(wrong)?;
            let passphrase = dir.join(PASSPHRASE);
            write_passphrase(&passphrase)?;
            return RoundTrip::new(session, program, dir, passphrase).run(self.tree.as_deref());
        }
        play(session, &dir)
    }
}

impl QuickstartServer {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let server = start(&self.dir, self.listen)?;
        println!("{}", server.invite().map_err(wrong)?);
        // Until killed: that is what it is for.
        loop {
            std::thread::park();
        }
    }
}

fn start(dir: &Path, listen: Option<SocketAddr>) -> Result<Embedded, Failure> {
    let any = || {
        ANY_PORT
            .parse()
            .expect("a constant that is a socket address")
    };
    Embedded::start(dir, listen.unwrap_or_else(any)).map_err(|error| {
        let what = format!("the server in {} does not start: {error}", dir.display());
        Failure::new(Exit::Error, what, "is another quickstart running there?")
    })
}

/// Server, account, mount, until unmounted.
fn play(session: &Session, dir: &Path) -> Result<Exit, Failure> {
    let known = std::fs::read_to_string(dir.join(ADDRESS))
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let server = start(&dir.join("server"), known)?;
    if known.is_none() {
        std::fs::write(dir.join(ADDRESS), server.connect().addr.as_bytes()).map_err(wrong)?;
    }
    let home = Home::locate(Some(dir.join("home")))?;
    let drive = dir.join("drive");
    std::fs::create_dir_all(&drive).map_err(wrong)?;
    if !home.is_enrolled() {
        found(session, dir, &home, &server)?;
    }
    session.out.news(&next_steps(dir));
    let mounted = Session {
        home,
        out: session.out,
    };
    let done = mount::here(&mounted, drive);
    if let Err(error) = server.stop() {
        session
            .out
            .news(&format!("the server did not stop cleanly: {error}"));
    }
    done
}

fn found(session: &Session, dir: &Path, home: &Home, server: &Embedded) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    let passphrase_file = dir.join(PASSPHRASE);
    let saved = || {
        let text = std::fs::read_to_string(&passphrase_file).map_err(wrong)?;
        Ok::<_, Failure>(Zeroizing::new(text.trim().to_owned()))
    };
    if runtime
        .block_on(account::finish_init(home, &Where::Here, saved))?
        .is_some()
    {
        return Ok(());
    }
    let kit = dir.join("kit.txt");
    if kit.exists() {
        // The home is gone and the kit is there: the machine was lost, which is what one wants to try.
        let wanted = Recovery {
            kit: &kit,
            server: Some(server.connect()),
            label: "again",
            ask_passphrase: false,
        };
        runtime.block_on(account::recover(home, &wanted, &Where::Here, saved))?;
        session.out.news(
            "this machine knew nothing any more: recovered the account with kit and passphrase",
        );
        return Ok(());
    }
    if !passphrase_file.exists() {
        write_passphrase(&passphrase_file)?;
    }
    let connect = server.invite().map_err(wrong)?;
    let wanted = NewAccount {
        connect: &connect,
        drive: "quickstart",
        compression: account::DEFAULT_COMPRESSION,
        passphrase: &saved()?,
        ask_passphrase: false,
        kit: &kit,
        cost: Argon2Cost::DEFAULT,
    };
    runtime.block_on(account::init(home, &wanted))?;
    session.out.news(
        "made an account; its recovery kit and passphrase lie beside it, which only a trial may do",
    );
    Ok(())
}

fn write_passphrase(path: &Path) -> Result<(), Failure> {
    let bytes: [u8; 15] = clock::entropy().map_err(AccountError::from)?;
    let text = Zeroizing::new(format!("{}\n", base32(&bytes)));
    Ok(write_private_new(path, text.as_bytes())?)
}

fn next_steps(dir: &Path) -> String {
    let (home, at) = (dir.join("home"), dir.display());
    format!(
        "\nYour drive is {at}/drive. In another terminal, try:\n\
         \n  cp -a /etc {at}/drive/                          write something\
         \n  sealdrive --home {home} status                  is it on the server?\
         \n  sealdrive --home {home} sync                    wait until it is\
         \n  grep -r hostname {at}/server | head -1          the server can read none of it\
         \n  sealdrive --home {home} umount {at}/drive       waits for the server; Ctrl-C here does the same\
         \n\nThen lose the machine: press Ctrl-C, delete {home}, and run this again. Everything comes back from the\
         \nserver with the kit and the passphrase.\n",
        home = home.display(),
    )
}
