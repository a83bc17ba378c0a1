//! The chunking secret must not be recoverable from the lengths of chunks, which a server sees in buckets.
//!
//! Story: a chunker with a secret seed cuts a file the attacker knows. From where it was cut the attacker computes
//! the seed and then recognises any other file by its chunk lengths. The attack below is given everything it could
//! wish for (exact lengths, no padding) and must succeed against the seeded `fastcdc`, or it would prove nothing;
//! against ours it must find no seed.
//!
//! Why it works: the gear hash after byte `i` is the sum of `(table[b_j] ^ seed) << (i - j)` over the last 64 bytes,
//! and a cut says that certain bits of it are zero. Bit `k` of the sum depends on bits `0..=k` of the seed only,
//! since carries travel upward: guess the seed from the lowest bit on, and each mask bit halves the candidates per
//! known cut.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use fastcdc::v2020::{FastCDC, Normalization, get_gear_with_seed, select_masks};
use sealdrive_core::chunk::CutStream;
use sealdrive_core::keys::{DomainKeys, DomainSecrets};
use sealdrive_proto::id::DomainId;
use sealdrive_proto::limits::{AVG_CHUNK, MAX_CHUNK, MIN_CHUNK};

const LEVEL: Normalization = Normalization::Level1;
/// More candidates than this are given up: the attack has lost the trail.
const MOST_CANDIDATES: usize = 1 << 16;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

fn seeded(data: &[u8], seed: u64) -> Vec<usize> {
    FastCDC::with_level_and_seed(data, MIN_CHUNK, AVG_CHUNK, MAX_CHUNK, LEVEL, seed)
        .map(|c| c.length)
        .collect()
}

/// Cuts of the real chunker under the domain secret made of `secret`.
fn our_cuts(data: &[u8], secret: u8) -> Vec<usize> {
    let keys = DomainKeys::derive(
        DomainId([1; 32]),
        &DomainSecrets::from_entropy(&[secret; 128]),
    );
    let (mut stream, mut cuts) = (CutStream::new(keys.cutter()), Vec::new());
    stream.push(data, &mut cuts);
    stream.finish(&mut cuts);
    cuts
}

/// What one observed cut says: the table entries of the bytes before it, newest first, and which bits of the hash
/// are zero.
struct Observation {
    entries: Vec<u64>,
    mask: u64,
}

fn observe(known: &[u8], lengths: &[usize]) -> Vec<Observation> {
    let (strict, relaxed) = select_masks(AVG_CHUNK, LEVEL);
    let (gear, _) = get_gear_with_seed(0);
    let mut start = 0;
    let mut seen = Vec::new();
    for length in lengths {
        let cut = start + length;
        // The end of the file and a forced cut say nothing.
        if cut < known.len() && *length < MAX_CHUNK {
            let hashed = (cut - (start + MIN_CHUNK) + 1).min(64);
            let entries = (0..hashed)
                .map(|back| gear[usize::from(known[cut - back])])
                .collect();
            seen.push(Observation {
                entries,
                mask: if *length < AVG_CHUNK { strict } else { relaxed },
            });
        }
        start = cut;
    }
    seen
}

/// The seeds (their tested bits) that explain every observation.
fn recover(observations: &[Observation]) -> Vec<u64> {
    let highest = observations
        .iter()
        .map(|o| 63 - o.mask.leading_zeros())
        .max()
        .expect("some cut was observed");
    let mut candidates = vec![0u64];
    for bit in 0..=highest {
        let low = u64::MAX >> (63 - bit);
        let explains = |seed: u64| {
            observations
                .iter()
                .filter(|o| o.mask >> bit & 1 == 1)
                .all(|o| {
                    let terms = o.entries.iter().enumerate();
                    let hash = terms.fold(0u64, |sum, (age, entry)| {
                        sum.wrapping_add((entry ^ seed) << age)
                    });
                    hash & low & o.mask == 0
                })
        };
        candidates = candidates
            .iter()
            .flat_map(|seed| [*seed, seed | 1 << bit])
            .filter(|seed| explains(*seed))
            .collect();
        if candidates.is_empty() || candidates.len() > MOST_CANDIDATES {
            break;
        }
    }
    candidates
}

#[test]
fn recovers_the_seed_of_the_seeded_chunker() {
    let secret = 0x9e37_79b9_7f4a_7c15;
    let known = noise(1, 24 << 20);
    let found = recover(&observe(&known, &seeded(&known, secret)));
    assert!(
        !found.is_empty() && found.len() < 100,
        "{} candidates",
        found.len()
    );
    // It then predicts the chunking of a file it has never seen.
    let unseen = noise(2, 8 << 20);
    let truth = seeded(&unseen, secret);
    assert!(
        found.iter().any(|seed| seeded(&unseen, *seed) == truth),
        "predicts an unseen file"
    );
}

#[test]
fn finds_nothing_against_ours() {
    let known = noise(1, 24 << 20);
    let mut from = 0;
    let cuts = our_cuts(&known, 0x5e);
    let lengths: Vec<usize> = cuts
        .iter()
        .map(|to| to - std::mem::replace(&mut from, *to))
        .collect();
    let observations = observe(&known, &lengths);
    assert!(
        observations.len() > 40,
        "the attacker had as much to work with: {}",
        observations.len()
    );
    assert_eq!(
        recover(&observations),
        Vec::<u64>::new(),
        "no seed explains our cuts"
    );
}

/// Beyond that one attack: with another secret the cuts of the same content are unrelated, so lengths of known files
/// say nothing about a drive whose secret is unknown.
#[test]
fn lengths_under_two_secrets_are_unrelated() {
    let data = noise(3, 16 << 20);
    let (one, other) = (our_cuts(&data, 0x5e), our_cuts(&data, 0x5f));
    let common: Vec<&usize> = one.iter().filter(|cut| other.contains(cut)).collect();
    assert_eq!(common, [&data.len()], "only the end of the file");
}
