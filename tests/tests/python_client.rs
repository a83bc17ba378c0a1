//! A client that is not ours: Python's grpcio speaks to the server through health and reflection alone.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sealdrive_tests::tidy::source::repository;
use sealdrive_tests::world::{World, run};

/// Building a virtual environment downloads; on a busy machine that takes a while.
const INSTALL: Duration = Duration::from_secs(600);
/// The name our servers' certificates carry.
const SERVER_NAME: &str = "sealdrive.invalid";

/// A Python with grpcio: the one scripts/test made, or one made here.
fn python() -> PathBuf {
    if let Some(given) = std::env::var_os("SEALDRIVE_TEST_PYTHON") {
        return given.into();
    }
    let place = repository().join("target/python");
    let python = place.join("bin/python");
    let has_grpc = || {
        Command::new(&python)
            .args(["-c", "import grpc, grpc_reflection, grpc_health"])
            .output()
    };
    if !has_grpc().is_ok_and(|output| output.status.success()) {
        run(
            Command::new("python3").args(["-m", "venv"]).arg(&place),
            INSTALL,
        )
        .ok();
        let mut install = Command::new(&python);
        install.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "grpcio",
            "grpcio-reflection",
            "grpcio-health-checking",
        ]);
        run(&mut install, INSTALL).ok();
    }
    python
}

#[test]
fn a_python_client_finds_its_way_by_health_and_reflection() {
    let python = python();
    let world = World::new();
    let mut server = world.server();
    let mut client = Command::new(python);
    client
        .arg(repository().join("tests/python/client.py"))
        .arg(server.address().to_string())
        .arg(SERVER_NAME);
    let said = run(&mut client, Duration::from_secs(60)).ok();
    assert_eq!(said.stdout.trim(), "ok", "{}", said.stderr);
    server.stop();
}
