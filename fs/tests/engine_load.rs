//! More at once than fits in memory budgets: many writers, fsyncs in between, commits going on. Prints what it saw.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::time::Instant;

use engine_support::{World, noise};

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
