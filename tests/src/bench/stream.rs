//! Large files: sequential, random, and the price of one changed byte.
//!
//! Invariant: content is noise, new in every round: nothing is won by compressing it or by having seen it before.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::subject::{Subject, three_times};
use super::table::{Better, Samples};
use super::{Plan, seconds};
use crate::made::Noise;

/// Bytes of one write or read call.
const BLOCK: usize = 1 << 20;
const MB: f64 = 1e6;

/// Writes a file, then reads it warm, from local disk, and from the server.
pub fn sequential(plan: &Plan, round: usize, subject: &mut Subject, samples: &mut Samples) {
    let bytes = Noise::new(0x5ea1 + round as u64).bytes(plan.stream_mib << 20);
    let path = subject.root().join("stream");
    let mut synced = 0.0;
    let done = seconds(|| {
        let mut file = File::create(&path).unwrap();
        synced = seconds(|| {
            bytes
                .chunks(BLOCK)
                .for_each(|block| file.write_all(block).unwrap());
            file.sync_all().unwrap();
        });
    });
    let committed = done + seconds(|| subject.commit());
    let speed = |seconds: f64| bytes.len() as f64 / MB / seconds;
    let name = subject.name();
    let mut add =
        |what: &str, seconds: f64| samples.add(what, "MB/s", Better::Higher, name, speed(seconds));
    add("sequential write until fsync", synced);
    if subject.has_server() {
        add("sequential write until committed on the server", committed);
    }
    add(
        "sequential read, warm",
        seconds(|| read(&path, bytes.len())),
    );
    subject.cold();
    add(
        "sequential read, cold, local",
        seconds(|| read(&path, bytes.len())),
    );
    if subject.has_server() {
        subject.cold_from_server();
        add(
            "sequential read, cold, from the server",
            seconds(|| read(&path, bytes.len())),
        );
    }
}

fn read(path: &Path, length: usize) {
    let mut file = File::open(path).unwrap();
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    loop {
        match file.read(&mut block).unwrap() {
            0 => break,
            n => total += n,
        }
    }
    assert_eq!(total, length);
}

/// Random 4 KiB reads and writes in the file that `sequential` left.
pub fn random(plan: &Plan, round: usize, subject: &mut Subject, samples: &mut Samples) {
    const SMALL: usize = 4096;
    let path = subject.root().join("stream");
    let blocks = ((plan.stream_mib << 20) / SMALL) as u64;
    let mut noise = Noise::new(77 + round as u64);
    let places: Vec<u64> = (0..plan.random_ops)
        .map(|_| noise.below(blocks) * SMALL as u64)
        .collect();
    let content = noise.bytes(SMALL);
    subject.cold();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut block = vec![0; SMALL];
    let reads = seconds(|| {
        places
            .iter()
            .for_each(|at| file.read_exact_at(&mut block, *at).unwrap())
    });
    let writes = seconds(|| {
        places
            .iter()
            .for_each(|at| file.write_all_at(&content, *at).unwrap());
        file.sync_all().unwrap();
    });
    let rate = |seconds: f64| places.len() as f64 / seconds;
    samples.add(
        "random 4 KiB read, cold, local",
        "1/s",
        Better::Higher,
        subject.name(),
        rate(reads),
    );
    samples.add(
        "random 4 KiB write until fsync",
        "1/s",
        Better::Higher,
        subject.name(),
        rate(writes),
    );
}

/// One byte changed in the middle of a large file: how long until it is safe, and what goes over the wire.
pub fn one_byte(plan: &Plan, subject: &mut Subject, samples: &mut Samples) {
    let path = subject.root().join("large");
    let mut noise = Noise::new(4242);
    let mut file = File::create(&path).unwrap();
    for _ in 0..plan.large_mib {
        file.write_all(&noise.bytes(BLOCK)).unwrap();
    }
    drop(file);
    subject.cold();
    let before = subject.sent();
    let [_, synced, committed] = three_times(subject, || {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"x", (plan.large_mib as u64) << 19)
            .unwrap();
        file.sync_all().unwrap();
    });
    let name = subject.name();
    let what = format!("one byte changed in a {} MiB file", plan.large_mib);
    samples.add(
        &format!("{what}, until fsync"),
        "s",
        Better::Lower,
        name,
        synced,
    );
    if let (Some(before), Some(after)) = (before, subject.sent()) {
        samples.add(
            &format!("{what}, until committed"),
            "s",
            Better::Lower,
            name,
            committed,
        );
        let kib = after.saturating_sub(before) as f64 / 1024.0;
        samples.add(&format!("{what}, sent"), "KiB", Better::Lower, name, kib);
    }
}
