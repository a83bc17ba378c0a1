//! Foreign conformance suites: pjdfstest and fsx, installed at fixed versions and run over any directory.
//!
//! Invariant: the judge is the machine's own file system: what fails there too is no failure of ours, and what fails
//! only on ours must stand in SEMANTICS.md with its reason. Called by `tests/posix.rs` and `scripts/posix`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::tidy::source::repository;
use crate::world::run;

/// Long enough for a build of the tool from source on a busy machine.
const BUILD: Duration = Duration::from_secs(1200);
/// Longest run of one suite; a hang is a failure.
const LONGEST: Duration = Duration::from_secs(900);

/// A tool from crates.io at one version, built once under `SEALDRIVE_TOOLS` or `target/tools`.
fn tool(name: &str, version: &str) -> PathBuf {
    let root = std::env::var_os("SEALDRIVE_TOOLS")
        .map_or_else(|| repository().join("target/tools"), PathBuf::from);
    let program = root.join("bin").join(name);
    if !program.exists() {
        let mut install = Command::new(env!("CARGO"));
        install
            .args([
                "install",
                "--quiet",
                "--locked",
                "--version",
                version,
                "--root",
            ])
            .arg(&root)
            .arg(name);
        run(&mut install, BUILD).ok();
    }
    program
}

/// What pjdfstest said of each case.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Names of cases that passed.
    pub passed: BTreeSet<String>,
    /// Names of cases that failed.
    pub failed: BTreeSet<String>,
    /// Names of cases that could not run.
    pub skipped: BTreeSet<String>,
}

impl Verdict {
    /// Three counts, as the suite's own summary orders them for people.
    pub fn counts(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed.len(),
            self.failed.len(),
            self.skipped.len()
        )
    }

    fn parse(said: &str) -> Self {
        let mut verdict = Self::default();
        for line in said.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(word), None) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let set = match word {
                "ok" => &mut verdict.passed,
                "FAILED" | "failed" => &mut verdict.failed,
                "skipped" => &mut verdict.skipped,
                _ => continue,
            };
            if name.contains("::") || line.starts_with(name) {
                set.insert(name.to_owned());
            }
        }
        verdict
    }
}

/// Runs all of pjdfstest in a fresh directory below `place`. Needs root.
pub fn pjdfstest(place: &Path) -> Verdict {
    ensure_users();
    // A short name: paths of sockets end at 107 bytes.
    let directory = place.join("p");
    std::fs::create_dir_all(&directory).unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = "[features]\nposix_fallocate = {}\nutime_now = {}\nutimensat = {}\nrename_ctime = {}\n\
        stat_st_birthtime = {}\n[settings]\nnaptime = 0.01\n[dummy_auth]\n\
        entries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]\n";
    std::fs::write(config.path(), text).unwrap();
    let mut suite = Command::new(tool("pjdfstest", "0.2.2"));
    suite.arg("-c").arg(config.path()).arg("-p").arg(&directory);
    let said = run(&mut suite, LONGEST);
    let verdict = Verdict::parse(&said.stdout);
    let all = verdict.passed.len() + verdict.failed.len() + verdict.skipped.len();
    assert!(
        all > 300,
        "pjdfstest ran {all} cases only:\n{}\n{}",
        said.stdout,
        said.stderr
    );
    drop(std::fs::remove_dir_all(&directory));
    verdict
}

/// pjdfstest switches to two ordinary users; the second does not exist on Debian.
fn ensure_users() {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if !passwd.lines().any(|line| line.starts_with("tests:")) {
        run(
            Command::new("useradd").args(["-M", "-U", "-s", "/usr/sbin/nologin", "tests"]),
            LONGEST,
        )
        .ok();
    }
}

/// A mode of fsx: a name and its configuration.
const MODES: &[(&str, &str)] = &[
    ("plain", ""),
    (
        "all operations",
        "[weights]\nclose_open = 1\ninvalidate = 1\nfsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 5\n\
         sendfile = 5\nposix_fadvise = 1\ncopy_file_range = 5\n",
    ),
    (
        "holes and copies",
        "flen = 1048576\n[weights]\nmapread = 0\nmapwrite = 0\npunch_hole = 20\ncopy_file_range = 20\n",
    ),
    (
        "pages",
        "[opsize]\nalign = 4096\nmax = 65536\n[weights]\npunch_hole = 5\nclose_open = 2\n",
    ),
    (
        "one byte at a time",
        "flen = 40000\n[opsize]\nmax = 16\n[weights]\nfsync = 2\ninvalidate = 1\n",
    ),
    (
        "fixed size",
        "blockmode = true\n[weights]\npunch_hole = 0\ntruncate = 0\nfsync = 3\ninvalidate = 2\n",
    ),
];

/// Runs fsx in every mode over a file below `place`; one line for each mode that failed.
pub fn fsx(place: &Path, operations: u32, seeds: &[u32]) -> Vec<String> {
    let program = tool("fsx", "0.3.2");
    let artifacts = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (mode, config) in MODES {
        for seed in seeds {
            let file = artifacts.path().join("fsx.toml");
            std::fs::write(&file, config).unwrap();
            let target = place.join(format!("fsx-{seed}"));
            // In block mode the size never changes: the file must be there.
            std::fs::write(
                &target,
                vec![
                    0;
                    if config.contains("blockmode") {
                        262_144
                    } else {
                        0
                    }
                ],
            )
            .unwrap();
            let mut suite = Command::new(&program);
            suite.arg("-f").arg(&file).arg("-P").arg(artifacts.path());
            suite
                .args(["-N", &operations.to_string(), "-S", &seed.to_string()])
                .arg(&target);
            let said = run(&mut suite, LONGEST);
            if said.code != 0 {
                let last: Vec<_> = said
                    .stderr
                    .lines()
                    .chain(said.stdout.lines())
                    .rev()
                    .take(6)
                    .collect();
                failures.push(format!(
                    "fsx, {mode}, seed {seed}: exit {} {}",
                    said.code,
                    last.join(" / ")
                ));
            }
            drop(std::fs::remove_file(&target));
        }
    }
    failures
}

/// The cases that SEMANTICS.md excepts: rows of the table that begin with a case's name in code marks.
pub fn exceptions() -> BTreeSet<String> {
    let text = std::fs::read_to_string(repository().join("SEMANTICS.md")).unwrap_or_default();
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned())
        .filter(|name| name.contains("::"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_pjdfstest_are_understood() {
        let said = "chmod::a::dir      ok\nunlink::erofs   skipped\n\tRemounts are not allowed\nopen::b   FAILED\n\
            thread panicked at x\n\nSummary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total\n";
        let verdict = Verdict::parse(said);
        assert_eq!(verdict.counts(), "1 passed, 1 failed, 1 skipped");
        assert!(verdict.failed.contains("open::b"));
    }
}
