//! More at once than fits in memory budgets: many writers, fsyncs in between, commits going on. Prints what it saw.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::time::Instant;

use engine_support::{NOW, World, noise};

#[test]
fn writers_and_fsyncs_side_by_side_lose_nothing() {
    let world = World::new();
    let one = world.mount("one", 1);
    for writer in 0..4 {
        one.mkdir(&format!("/w{writer}"));
    }
    let start = Instant::now();
    let mut total = 0;
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let one = &one;
            scope.spawn(move || {
                for n in 0..30u64 {
                    let len = if n % 5 == 0 {
                        3 << 20
                    } else {
                        20_000 + 1000 * n as usize
                    };
                    one.write(&format!("/w{writer}/f{n}"), &noise(writer * 1000 + n, len));
                    if n % 7 == 0 {
                        one.engine.sync_local().unwrap();
                    }
                }
            });
        }
    });
    for writer in 0..4u64 {
        for n in 0..30u64 {
            total += if n % 5 == 0 {
                3 << 20
            } else {
                20_000 + 1000 * n as usize
            };
            let _ = writer;
        }
    }
    one.engine.sync_local().unwrap();
    let local = start.elapsed();
    one.sync();
    let status = one.engine.status();
    println!(
        "{total} bytes: {local:?} to fsync, {:?} to commit, {} commits",
        start.elapsed(),
        status.commit_seq
    );
    assert_eq!(status.events, []);
    drop(one);
    let two = world.mount("two", 2);
    for writer in 0..4u64 {
        for n in 0..30u64 {
            let len = if n % 5 == 0 {
                3 << 20
            } else {
                20_000 + 1000 * n as usize
            };
            assert!(
                two.read(&format!("/w{writer}/f{n}")) == noise(writer * 1000 + n, len),
                "/w{writer}/f{n}"
            );
        }
    }
}

/// Story: every fsync of a small file rewrote everything that was dirty, so a database's commits grew with its size.
#[test]
fn an_fsync_costs_what_changed_not_what_is_there() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/large", &noise(1, 40 << 20));
    one.engine.sync_local().unwrap();
    let before = one.engine.status().journal_bytes;
    let start = Instant::now();
    for n in 0..100u64 {
        one.write("/log", &noise(n, 4096));
        one.engine.sync_local().unwrap();
    }
    println!("{:?} for an fsync of 4 KiB", start.elapsed() / 100);
    let after = one.engine.status().journal_bytes;
    assert!(
        after < before + (4 << 20),
        "{before} then {after} bytes of journal"
    );
}

/// Story: fsync of a large file put most of it into the journal while it was being sealed: every byte went to the disk
/// twice.
#[test]
fn an_fsync_waits_for_what_is_being_sealed_instead_of_writing_it_twice() {
    let world = World::new();
    let mut config = world.config("one", 1);
    config.remote = None; // no commits, so no checkpoints: the journal only grows
    let one = world.try_mount(config).unwrap();
    // A machine that is slow enough leaves a file to the journal's clock, which asks nobody: not five in a row.
    let journaled = (0..5u64).map(|n| {
        let path = format!("/large{n}");
        one.write(&path, b"");
        let ino = one.ino(&path).unwrap();
        let handle = one.op(|d| d.open(ino, true)).unwrap();
        let before = one.engine.status().journal_bytes;
        for (part, bytes) in noise(n, 24 << 20).chunks(1 << 20).enumerate() {
            one.op(|d| d.write(ino, (part as u64) << 20, bytes, false, NOW))
                .unwrap();
        }
        one.engine.sync_local().unwrap();
        one.drive().release(handle);
        one.engine.status().journal_bytes.checked_sub(before)
    });
    let least = journaled.map(Option::unwrap).min().unwrap();
    println!("{least} bytes of journal for a file of 24 MiB");
    assert!(least < 6 << 20, "{least} bytes of journal");
}

#[test]
fn what_is_written_twice_is_sent_once() {
    let world = World::new();
    let one = world.mount("one", 1);
    let content = noise(5, 8 << 20);
    one.write("/a", &content);
    one.sync();
    let sent = one.engine.status().sent_bytes;
    one.write("/b", &content);
    one.write("/c", &content);
    one.sync();
    let more = one.engine.status().sent_bytes - sent;
    assert!(more < 200_000, "{more} bytes for two copies");
    one.write_at("/a", 3 << 20, b"a small edit in the middle");
    let before = one.engine.status().sent_bytes;
    one.sync();
    let edit = one.engine.status().sent_bytes - before;
    println!("{edit} bytes sent for a small edit");
    assert!(edit < 400_000, "{edit} bytes for a small edit");
}
