//! Speed of each stage of the pipeline on one core, and what compression saves.
//!
//! `cargo run --release -p sealdrive-core --example stages [FILE]` with `RUSTFLAGS="-C target-cpu=native --cfg
//! chacha20_avx512"`. Without a file it uses pseudorandom bytes. Each figure is the best of several runs, in MB/s of
//! plaintext per second of processor time.

use aes_siv::siv::Aes256Siv;
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use sealdrive_core::chunk::{CutKeys, CutStream};
use sealdrive_core::keys::{DomainKeys, DomainSecrets};
use sealdrive_core::seal::{Compress, SEAL_TOGETHER, Sealer};
use sealdrive_proto::id::{DomainId, Kind};
use std::hint::black_box;
use std::sync::Arc;

const RUNS: usize = 7;

/// CPU time of this thread: on a busy machine the wall clock measures the neighbours.
fn cpu_seconds() -> f64 {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
    let ns = text
        .split(' ')
        .next()
        .and_then(|field| field.parse::<f64>().ok());
    ns.expect("nanoseconds on the processor") / 1e9
}

fn best(name: &str, bytes: usize, mut run: impl FnMut()) {
    let seconds = (0..RUNS).map(|_| {
        let begun = cpu_seconds();
        run();
        cpu_seconds() - begun
    });
    let least = seconds.fold(f64::INFINITY, f64::min);
    println!("{name:34} {:8.0} MB/s", bytes as f64 / 1e6 / least);
}

fn main() {
    let data = match std::env::args().nth(1).filter(|arg| arg != "--cut") {
        Some(path) => {
            let mut data = std::fs::read(path).expect("readable file");
            data.truncate(256 << 20);
            data
        }
        None => {
            let mut data = vec![0; 64 << 20];
            blake3::Hasher::new().finalize_xof().fill(&mut data);
            data
        }
    };
    let keys = Arc::new(DomainKeys::derive(
        DomainId([1; 32]),
        &DomainSecrets::from_entropy(&[7; 128]),
    ));
    let cutter = keys.cutter();
    let chunks = cut(&data, &cutter);
    println!(
        "{} bytes, {} chunks, {} on average",
        data.len(),
        chunks.len(),
        data.len() / chunks.len()
    );

    best("whiten and cut", data.len(), || {
        drop(black_box(cut(&data, &cutter)))
    });
    best("cid (BLAKE3 keyed)", data.len(), || {
        for chunk in &chunks {
            black_box(keys.cid(Kind::Data, chunk));
        }
    });
    if std::env::args().any(|arg| arg == "--cut") {
        return;
    }
    for level in [-3, -1, 1, 2, 3] {
        compress(&chunks, data.len(), level);
    }
    locks(&chunks, data.len());
    let mut sealer = Sealer::new(Arc::clone(&keys));
    for compress in [Compress::Off, Compress::DEFAULT] {
        let mut stored = 0;
        best(
            &format!("reference and seal, {compress:?}"),
            data.len(),
            || {
                stored = 0;
                for chunk in &chunks {
                    let r = keys.reference(Kind::Data, chunk);
                    stored += black_box(sealer.seal(Kind::Data, &r, chunk, compress))
                        .bytes
                        .len();
                }
            },
        );
        println!(
            "{:34} {:8.3} of the plaintext",
            "    stored",
            stored as f64 / data.len() as f64
        );
    }
    best("reference and seal, side by side", data.len(), || {
        for chunks in chunks.chunks(SEAL_TOGETHER) {
            let named = chunks
                .iter()
                .map(|chunk| (keys.reference(Kind::Data, chunk), *chunk));
            let named: Vec<_> = named.collect();
            black_box(sealer.seal_together(Kind::Data, &named, Compress::DEFAULT));
        }
    });
    let sealed: Vec<_> = chunks
        .iter()
        .map(|chunk| {
            let r = keys.reference(Kind::Data, chunk);
            let object = sealer.seal(Kind::Data, &r, chunk, Compress::DEFAULT);
            (r, object.bytes)
        })
        .collect();
    best("open", data.len(), || {
        for (r, object) in &sealed {
            black_box(sealer.open(Kind::Data, r, object).expect("opens"));
        }
    });
    best("all: cut, reference, seal (zstd)", data.len(), || {
        for chunk in cut(&data, &cutter) {
            let r = keys.reference(Kind::Data, chunk);
            black_box(sealer.seal(Kind::Data, &r, chunk, Compress::DEFAULT));
        }
    });
}

fn cut<'d>(data: &'d [u8], keys: &Arc<CutKeys>) -> Vec<&'d [u8]> {
    let (mut stream, mut cuts) = (CutStream::new(Arc::clone(keys)), Vec::new());
    data.chunks(1 << 20)
        .for_each(|part| stream.push(part, &mut cuts));
    stream.finish(&mut cuts);
    let mut from = 0;
    cuts.into_iter()
        .map(|to| &data[std::mem::replace(&mut from, to)..to])
        .collect()
}

fn compress(chunks: &[&[u8]], total: usize, level: i32) {
    let mut compressor = zstd::bulk::Compressor::new(level).expect("context");
    let mut room = vec![0; 2 << 20];
    let mut packed = 0;
    best(&format!("zstd {level}"), total, || {
        packed = 0;
        for chunk in chunks {
            packed += compressor
                .compress_to_buffer(chunk, &mut room[..])
                .expect("fits")
                .min(chunk.len());
        }
    });
    println!(
        "{:34} {:8.3} of the plaintext",
        "    packed",
        packed as f64 / total as f64
    );
}

/// The two ciphers by themselves, on copies of the chunks, so that the price of each lock can be seen.
fn locks(chunks: &[&[u8]], total: usize) {
    let mut buffer = vec![0; 1 << 20];
    let mut siv = Aes256Siv::new(&[1; 64].into());
    best("inner lock (AES-256-SIV)", total, || {
        for chunk in chunks {
            let text = &mut buffer[..chunk.len()];
            black_box(
                siv.encrypt_inout_detached([b"label"], text.into())
                    .expect("one component"),
            );
        }
    });
    let cipher = XChaCha20Poly1305::new(&[1; 32].into());
    best("outer lock (XChaCha20-Poly1305)", total, || {
        for chunk in chunks {
            let text = &mut buffer[..chunk.len()];
            black_box(
                cipher
                    .encrypt_inout_detached(&[2; 24].into(), b"", text.into())
                    .expect("short"),
            );
        }
    });
}
