//! `quickstart --check`: proof on this machine that what is copied in comes back after everything local is lost.
//!
//! Invariant: works in one directory and through the real programs and the real kernel; whatever happens, no process
//! and no mount of it is left behind. Called by `quickstart`.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::Session;
use super::super::exit::{Exit, Failure};
use super::super::output::size;
use super::{SERVER_SUBCOMMAND, compare, made};
use crate::clock;
use crate::mount::attach::{Detach, detach};
use crate::mount::table;

/// Longest wait for a mount to come up.
const MOUNT_WAIT: Duration = Duration::from_secs(60);
/// Names of the tree that are not worth copying: what a build makes can be made again.
const SKIPPED: [&str; 2] = ["target", ".git"];

/// One run.
pub(super) struct RoundTrip<'a> {
    session: &'a Session,
    program: PathBuf,
    dir: PathBuf,
    passphrase: PathBuf,
}

/// A process that does not outlive its step.
struct Running(Child);

impl Running {
    /// kill -9: no goodbye, as a power cut would have it.
    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Already gone is as good.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A mount point that is free again at the end.
struct Covered(PathBuf);

impl Drop for Covered {
    fn drop(&mut self) {
        if is_mounted(&self.0) {
            drop(detach(&self.0, Detach::Lazily));
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    table::at(path)
        .ok()
        .flatten()
        .is_some_and(|row| row.fs_type == table::FS_TYPE)
}

fn broken(what: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Error,
        format!("the round trip failed: {what}"),
        "the directory is left as it is",
    )
}

impl<'a> RoundTrip<'a> {
    pub(super) fn new(
        session: &'a Session,
        program: PathBuf,
        dir: PathBuf,
        passphrase: PathBuf,
    ) -> Self {
        Self {
            session,
            program,
            dir,
            passphrase,
        }
    }

    /// Goes all the way round; differences are a failure.
    pub(super) fn run(&self, tree: Option<&Path>) -> Result<Exit, Failure> {
        let began = clock::now();
        let (source, drive, back) = (
            self.dir.join("source"),
            self.dir.join("drive"),
            self.dir.join("back"),
        );
        for dir in [&source, &drive] {
            std::fs::create_dir(dir).map_err(broken)?;
        }
        self.say("making a tree with holes, links, attributes and odd names");
        let made = source.join("made");
        std::fs::create_dir(&made)
            .and_then(|()| made::make(&made))
            .map_err(broken)?;
        if let Some(tree) = tree {
            self.copy_tree(tree, &source.join("tree"))?;
        }

        let (server, connect) = self.server(None)?;
        let (kit, home) = (self.dir.join("kit.txt"), self.dir.join("home-1"));
        self.say("making an account");
        self.sealdrive(
            &home,
            ["init", "--server", &connect, "--drive", "check", "--kit"],
            &[&kit],
        )?;
        let covered = Covered(drive.clone());
        let client = self.mount(&home, &drive)?;
        self.say("copying in");
        self.copy(&source, &drive)?;
        self.say("waiting until the server has it");
        self.sealdrive(&home, ["sync"], &[&drive])?;

        self.say("killing client and server, deleting everything this machine knew");
        client.kill();
        server.kill();
        drop(covered);
        std::fs::remove_dir_all(&home).map_err(broken)?;

        let listen = connect
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once("/#"));
        let (server, _) = self.server(listen.map(|(addr, _)| addr))?;
        self.say("a fresh machine: recovering with kit and passphrase");
        let home = self.dir.join("home-2");
        self.sealdrive(&home, ["recover", "--kit"], &[&kit])?;
        let covered = Covered(drive.clone());
        let client = self.mount(&home, &drive)?;
        self.say("copying out and comparing");
        self.copy(&drive.join("source"), &back)?;
        let verdict = compare::compare(&source, &back).map_err(broken)?;
        self.sealdrive(&home, ["umount", "--timeout", "60s"], &[&drive])?;
        drop((client, covered, server));
        self.report(&verdict, began.elapsed())
    }

    fn report(&self, verdict: &compare::Verdict, took: Duration) -> Result<Exit, Failure> {
        for difference in &verdict.differences {
            self.session.out.news(&format!("  DIFFERS {difference}"));
        }
        if let Some(first) = verdict.differences.first() {
            return Err(broken(format_args!("what came back differs: {first}")));
        }
        let outcome = serde_json::json!({
            "round_trip": "ok", "entries": verdict.entries, "bytes": verdict.bytes,
            "seconds": took.as_secs_f64(),
        });
        self.session.out.result(&outcome, || {
            format!(
                "ROUND TRIP OK: {} entries, {} came back the same in {:.0} s",
                verdict.entries,
                size(verdict.bytes),
                took.as_secs_f64()
            )
        });
        Ok(Exit::Ok)
    }

    fn say(&self, step: &str) {
        self.session.out.news(&format!("* {step}"));
    }

    fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--home")
            .arg(home)
            .env("SEALDRIVE_PASSWORD_FILE", &self.passphrase);
        // Settings of the person who runs the check must not reach its own little world.
        for name in [
            "SEALDRIVE_SERVER",
            "SEALDRIVE_CACHE_DIR",
            "SEALDRIVE_PASSWORD_FD",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn sealdrive<const N: usize>(
        &self,
        home: &Path,
        words: [&str; N],
        paths: &[&Path],
    ) -> Result<(), Failure> {
        let status = self
            .command(home)
            .arg("--quiet")
            .args(words)
            .args(paths)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(broken)?;
        if status.success() {
            Ok(())
        } else {
            Err(broken(format_args!("sealdrive {}: {status}", words[0])))
        }
    }

    /// Starts a server in a process of its own, and waits for its connect string.
    fn server(&self, listen: Option<&str>) -> Result<(Running, String), Failure> {
        let mut command = self.command(&self.dir.join("no-home"));
        command.arg(SERVER_SUBCOMMAND).arg(self.dir.join("server"));
        command.args(listen);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(broken)?;
        let mut server = Running(child);
        let mut line = String::new();
        let out = server
            .0
            .stdout
            .take()
            .expect("stdout was asked for as a pipe");
        BufReader::new(out).read_line(&mut line).map_err(broken)?;
        if line.starts_with("sealdrive://") {
            Ok((server, line.trim().to_owned()))
        } else {
            Err(broken("the server did not start"))
        }
    }

    fn mount(&self, home: &Path, drive: &Path) -> Result<Running, Failure> {
        let mut command = self.command(home);
        command
            .arg("--quiet")
            .args(["mount", "--foreground"])
            .arg(drive);
        let mut client = Running(command.stdin(Stdio::null()).spawn().map_err(broken)?);
        let deadline = clock::now() + MOUNT_WAIT;
        while !is_mounted(drive) {
            if let Some(status) = client.0.try_wait().map_err(broken)? {
                return Err(broken(format_args!("the mount ended at once ({status})")));
            }
            if clock::now() > deadline {
                return Err(broken("the mount did not come up"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(client)
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.run_tool("cp", [OsStr::new("-a"), from.as_os_str(), to.as_os_str()])
    }

    /// Something real besides the made tree, without what a build makes.
    fn copy_tree(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        std::fs::create_dir(to).map_err(broken)?;
        for entry in std::fs::read_dir(from).map_err(broken)? {
            let entry = entry.map_err(broken)?;
            if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                self.copy(&entry.path(), to)?;
            }
        }
        Ok(())
    }

    fn run_tool<const N: usize>(&self, tool: &str, args: [&OsStr; N]) -> Result<(), Failure> {
        let status = Command::new(tool)
            .args(args)
            .stdin(Stdio::null())
            .status()
            .map_err(broken)?;
        if status.success() {
            Ok(())
        } else {
            Err(broken(format_args!("{tool}: {status}")))
        }
    }
}
