//! What a program waits for that makes every step durable: fsync after each small write, and SQLite.
//!
//! Invariant: every operation is durable before the next begins; nothing is gathered. Called once a round for every
//! subject.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use super::subject::Subject;
use super::table::{Better, Samples, median};
use super::{Plan, seconds};
use crate::made::Noise;

/// Bytes of one write.
const SMALL: usize = 4096;
/// Bytes of noise in one row; hexadecimal, so twice as many characters.
const ROW: usize = 50;

/// Appends to one file, each write followed by fsync(2), not fdatasync. The median operation of this round, write and
/// fsync together, ms.
pub fn fsyncs(plan: &Plan, round: usize, subject: &mut Subject, samples: &mut Samples) {
    let mut noise = Noise::new(0xf5 + round as u64);
    let file = File::create(subject.root().join("fsynced")).unwrap();
    let took: Vec<f64> = (0..plan.fsyncs)
        .map(|number| {
            let content = noise.bytes(SMALL);
            seconds(|| {
                file.write_all_at(&content, (number * SMALL) as u64)
                    .unwrap();
                file.sync_all().unwrap();
            })
        })
        .collect();
    samples.add(
        "4 KiB write and fsync",
        "ms",
        Better::Lower,
        subject.name(),
        median(&took) * 1e3,
    );
}

/// Rows inserted one a transaction with `synchronous=FULL`, by one process of the `sqlite3` command for each journal
/// mode; its start, the making of the table and its end are in the time. Nothing where the command is not installed.
pub fn transactions(plan: &Plan, round: usize, subject: &mut Subject, samples: &mut Samples) {
    if Command::new("sqlite3").arg("-version").output().is_err() {
        return;
    }
    for (mode, log) in [("delete", "rollback journal"), ("wal", "write-ahead log")] {
        let database = subject.root().join(format!("{mode}.db"));
        let script = subject.root().with_extension("sql");
        fs::write(&script, statements(mode, round, plan.transactions)).unwrap();
        let mut sqlite = Command::new("sqlite3");
        // No file of the user's is read, and the first error is the last statement.
        sqlite.args(["-batch", "-bail", "-init", "/dev/null"]);
        sqlite.arg(&database).stdin(File::open(&script).unwrap());
        sqlite.stderr(Stdio::inherit());
        let mut said = None;
        let took = seconds(|| said = Some(sqlite.output().unwrap()));
        let said = said.unwrap();
        assert!(said.status.success(), "{sqlite:?}: {}", said.status);
        // It falls back silently where a file system cannot do a mode; 2 is FULL.
        assert_eq!(
            String::from_utf8_lossy(&said.stdout),
            format!("{mode}\n2\n{}\n", plan.transactions)
        );
        fs::remove_file(&script).unwrap();
        samples.add(
            &format!("SQLite transactions, synchronous=full, {log}"),
            "1/s",
            Better::Higher,
            subject.name(),
            plan.transactions as f64 / took,
        );
    }
}

/// What SQLite is told: it answers the mode, the synchronous setting and how many rows there are.
fn statements(mode: &str, round: usize, count: usize) -> String {
    let mut noise = Noise::new(0x541 + round as u64);
    let mut script = format!(
        "PRAGMA journal_mode={mode};\nPRAGMA synchronous=FULL;\nPRAGMA synchronous;\n\
         CREATE TABLE t (id INTEGER PRIMARY KEY, content TEXT);\n"
    );
    for _ in 0..count {
        let content: String = noise
            .bytes(ROW)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        script += &format!("INSERT INTO t (content) VALUES ('{content}');\n");
    }
    script + "SELECT count(*) FROM t;\n"
}
