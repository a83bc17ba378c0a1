//! The main job, end to end with real processes: a tree copied in, everything here lost, copied out on another machine.
//!
//! The tree is real source (this repository and crates it is built from) and every odd corner of a file system;
//! `scripts/main-job` runs the same on a Linux kernel tree (`SEALDRIVE_MAIN_TREE`).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use sealdrive_tests::bench::subject::disk_use;
use sealdrive_tests::compare::compare;
use sealdrive_tests::made::odd_tree;
use sealdrive_tests::tidy::source::{repository, tracked};
use sealdrive_tests::world::{World, copy_tree};

/// Crates copied from cargo's registry: a few thousand files on any machine that could build this test.
const CRATES: usize = 60;

/// Lays out what is to be copied: real source and made corners.
fn source_tree(root: &Path) {
    if let Some(given) = std::env::var_os("SEALDRIVE_MAIN_TREE") {
        copy_tree(Path::new(&given), &root.join("real"));
    } else {
        for file in tracked(&repository()) {
            let path = root.join("repository").join(&file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file.text).unwrap();
        }
        for crate_sources in registry().into_iter().take(CRATES) {
            copy_tree(
                &crate_sources,
                &root.join("crates").join(crate_sources.file_name().unwrap()),
            );
        }
    }
    odd_tree(&root.join("odd"), 20_000).unwrap();
}

fn registry() -> Vec<PathBuf> {
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let list = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect::<Vec<_>>()
    };
    let mut crates: Vec<_> = list(&cargo.join("registry/src"))
        .iter()
        .flat_map(|index| list(index))
        .collect();
    crates.sort();
    crates
}

#[test]
fn a_tree_survives_the_loss_of_everything_but_server_kit_and_passphrase() {
    let world = World::new();
    let source = world.path("source");
    source_tree(&source);

    let mut server = world.server();
    let lost = world.machine("lost");
    lost.init(&server.invite());
    let kit = world.path("printed-kit.txt");
    std::fs::copy(lost.kit(), &kit).unwrap();
    let mounted = lost.mount();
    copy_tree(&source, &mounted.path().join("tree"));
    let before = compare(&source, &mounted.path().join("tree")).unwrap();
    before.assert_same(1600);
    lost.sync();

    // Nothing is shut down properly, and the machine is gone.
    mounted.kill();
    server.kill();
    std::fs::remove_dir_all(lost.home()).unwrap();

    server.restart();
    let fresh = world.machine("fresh");
    fresh.recover(&kit);
    let mounted = fresh.mount();
    compare(&source, &mounted.path().join("tree"))
        .unwrap()
        .assert_same(before.entries);
    let out = world.path("out");
    copy_tree(&mounted.path().join("tree"), &out);
    let after = compare(&source, &out).unwrap();
    after.assert_same(before.entries);
    assert_eq!(after.bytes, before.bytes);

    let (stored, size) = (disk_use(server.data()), disk_use(&source));
    println!(
        "{} entries, {} bytes compared; stored {stored} of {size}; client peak {} MiB, server peak {} MiB",
        after.entries,
        after.bytes,
        mounted.daemon.peak_memory() >> 20,
        server.daemon().peak_memory() >> 20
    );
    fresh.umount(mounted);
    server.stop();
}
