//! A real `sealdrive-server` process on a free port of loopback.
//!
//! Invariant: a restarted server has the same data and the same port, so that clients find it again.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Daemon, PATIENCE, program, run, wait_for};

/// No TLS; the server and the connect string allow it on loopback only.
const PLAINTEXT: &str = "--plaintext-loopback";

/// A running server; killed when dropped.
pub struct Server {
    data: PathBuf,
    address: SocketAddr,
    arguments: Vec<String>,
    daemon: Daemon,
}

impl Server {
    /// Starts a server over a data directory, with further arguments.
    pub fn start(data: &Path, arguments: &[&str]) -> Self {
        std::fs::create_dir_all(data).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        Self::start_at(data, address, arguments)
    }

    /// As `start`, at an address: where clients know an earlier one.
    pub fn start_at(data: &Path, address: SocketAddr, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| (*argument).to_owned())
            .collect();
        let daemon = spawn(data, address, &arguments);
        let mut server = Self {
            data: data.to_owned(),
            address,
            arguments,
            daemon,
        };
        server.wait_ready();
        server
    }

    /// A server without TLS, which it allows on loopback only: for recording what goes over the wire.
    pub fn start_plaintext(data: &Path) -> Self {
        Self::start(data, &[PLAINTEXT])
    }

    /// Where it keeps everything.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// A one-time connect string for a new account, from the operator's command.
    pub fn invite(&self) -> String {
        self.invite_at(self.address)
    }

    /// As `invite`, for clients that reach this server at another address.
    pub fn invite_at(&self, address: SocketAddr) -> String {
        let mut invite = Command::new(program("sealdrive-server"));
        invite.arg("invite").arg("--data").arg(&self.data);
        invite.arg("--address").arg(address.to_string());
        invite.args(
            self.arguments
                .iter()
                .filter(|argument| *argument == PLAINTEXT),
        );
        let said = run(&mut invite, PATIENCE).ok().stdout;
        let found = said
            .split_whitespace()
            .find(|word| word.starts_with("sealdrive://"));
        found
            .unwrap_or_else(|| panic!("no connect string in: {said}"))
            .to_owned()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// SIGTERM, waits, and checks that the shutdown was clean.
    #[track_caller]
    pub fn stop(&mut self) {
        assert_eq!(
            self.daemon.stop(PATIENCE),
            0,
            "the server said:\n{}",
            self.daemon.said()
        );
    }

    /// Starts again with other arguments.
    pub fn restart_with(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.restart();
    }

    /// Starts again over the same data on the same port.
    pub fn restart(&mut self) {
        self.daemon = spawn(&self.data, self.address, &self.arguments);
        self.wait_ready();
    }

    /// Starts again over the same data, which it is to refuse: what it said.
    #[track_caller]
    pub fn refuses(&mut self) -> String {
        self.daemon = spawn(&self.data, self.address, &self.arguments);
        let code = wait_for("the server refuses", PATIENCE, || self.daemon.ended());
        let said = self.daemon.said();
        assert_eq!(code, 1, "{said}");
        said
    }

    /// Makes its index anew from the packs, by the operator's command. It must not run.
    #[track_caller]
    pub fn rebuild_index(&self) {
        let mut rebuild = Command::new(program("sealdrive-server"));
        rebuild.arg("rebuild-index").arg("--data").arg(&self.data);
        run(&mut rebuild, PATIENCE).ok();
    }

    /// What it printed.
    pub fn said(&self) -> String {
        self.daemon.said()
    }

    fn wait_ready(&mut self) {
        wait_for("the server listens", PATIENCE, || {
            if let Some(code) = self.daemon.ended() {
                panic!("the server ended with {code}:\n{}", self.daemon.said());
            }
            TcpStream::connect(self.address).ok()
        });
    }
}

fn spawn(data: &Path, address: SocketAddr, arguments: &[String]) -> Daemon {
    let mut command = Command::new(program("sealdrive-server"));
    command
        .arg("serve")
        .arg("--data")
        .arg(data)
        .arg("--listen")
        .arg(address.to_string())
        .args(arguments);
    Daemon::start(&mut command, &data.with_extension("log"))
}
