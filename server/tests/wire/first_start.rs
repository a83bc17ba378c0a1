//! The first moments of a data directory, when its keys are made.

use std::collections::BTreeSet;

use sealdrive_server::{Config, Server, invite};

/// A server that had just opened its port and an operator who asked for an invitation at that moment each made keys;
/// the command failed, or handed out keys that the server did not have.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_first_makes_the_keys_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_owned();
    let asking = (0..8).map(|_| {
        let data = data.clone();
        tokio::task::spawn_blocking(move || invite(&data, "127.0.0.1:1", false).unwrap())
    });
    let asking: Vec<_> = asking.collect();
    let running = Server::start(Config {
        data,
        listen: "127.0.0.1:0".parse().unwrap(),
        plaintext_loopback: false,
    })
    .await
    .unwrap();
    let mut keys = BTreeSet::from([shown(running.connect_string())]);
    for asked in asking {
        keys.insert(shown(&asked.await.unwrap()));
    }
    assert_eq!(keys.len(), 1, "several sets of keys were made");
    running.shutdown().await.unwrap();
}

fn shown(connect: &sealdrive_proto::connect::ConnectString) -> ([u8; 32], Option<[u8; 32]>) {
    (connect.server_pk, connect.tls_fingerprint)
}
