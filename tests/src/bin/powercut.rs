//! Writes to a drive until the power goes, and checks what is there afterwards. Called by scripts/vm in its machine.
//!
//! Invariant: exit code 0 means that everything asked for was looked at and nothing was wrong.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use sealdrive_tests::powercut::check::{check, promises};
use sealdrive_tests::powercut::ledger::Ledger;
use sealdrive_tests::powercut::load::load;

/// Power cuts: the writers and the verifier.
#[derive(Parser)]
enum Task {
    /// Writes until something is refused, or for ever.
    Write {
        /// What was said so far.
        ledger: PathBuf,
        /// The drive.
        root: PathBuf,
        /// Where each line of the ledger goes.
        #[arg(long)]
        port: PathBuf,
        /// Other seeds write other things.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The command that waits for the server.
        #[arg(last = true)]
        sync: Vec<String>,
    },
    /// Checks a directory against the ledger.
    Check {
        /// What was said so far.
        ledger: PathBuf,
        /// The drive.
        root: PathBuf,
        /// Only what a sync promised: this is another machine.
        #[arg(long)]
        synced: bool,
    },
    /// Counts; fails if too little was in flight for the cuts to prove anything.
    Count {
        /// What was said.
        ledger: PathBuf,
    },
    /// Looks at a directory without end until a file appears elsewhere; fails if it was ever empty.
    Watch {
        /// The directory.
        root: PathBuf,
        /// The file.
        #[arg(long)]
        until: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let good = match Task::parse() {
        Task::Write {
            ledger,
            root,
            port,
            seed,
            sync,
        } => {
            let port = File::options().write(true).open(port).context("the port")?;
            load(&root, &read(&ledger)?, port, &sync, seed)?;
            true
        }
        Task::Check {
            ledger,
            root,
            synced,
        } => verify(&read(&ledger)?, &root, synced),
        Task::Count { ledger } => count(&read(&ledger)?),
        Task::Watch { root, until } => watch(&root, &until),
    };
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn read(path: &Path) -> anyhow::Result<Ledger> {
    let text = fs::read_to_string(path).context("the ledger")?;
    Ledger::parse(&text).map_err(|what| anyhow!(what))
}

fn verify(ledger: &Ledger, root: &Path, synced: bool) -> bool {
    let files = if synced {
        ledger.synced()
    } else {
        ledger.here()
    };
    let mut wrong = check(&files, root);
    wrong.extend_from_slice(ledger.refused());
    wrong.iter().for_each(|what| println!("{what}"));
    println!("{} promises, {} wrong", promises(&files), wrong.len());
    wrong.is_empty()
}

/// As the programs that use a drive: an error is one thing, a directory that shows nothing is another.
fn watch(root: &Path, until: &Path) -> bool {
    let (mut content, mut refused, mut empty) = (0u64, 0u64, 0u64);
    while !until.exists() {
        *match fs::read_dir(root).map(Iterator::count) {
            Ok(0) => &mut empty,
            Ok(_) => &mut content,
            Err(_) => &mut refused,
        } += 1;
    }
    println!("{content} looks with content, {refused} refused, {empty} empty");
    content > 0 && refused > 0 && empty == 0
}

fn count(ledger: &Ledger) -> bool {
    let ((fsyncs, syncs), (steps, hit)) = (ledger.promised(), ledger.in_flight());
    let cuts = ledger.sessions();
    println!(
        "{cuts} power cuts, {hit} of them with steps in flight ({steps}); {fsyncs} fsyncs and {syncs} syncs promised"
    );
    cuts > 0 && hit * 2 >= cuts && fsyncs >= 5 * cuts && syncs > 0
}
