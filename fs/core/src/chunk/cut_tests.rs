//! Cuts are a function of content: against one run of `fastcdc` over everything, in any portions, from any cut on.

use super::*;
use fastcdc::v2020::FastCDC;
use proptest::prelude::*;
use std::collections::HashSet;

fn keys() -> Arc<CutKeys> {
    Arc::new(CutKeys::derive(&[3; 32]))
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Long runs, repeats and noise: cut points come early, late and not at all.
fn mixed(seed: u64, len: usize) -> Vec<u8> {
    let mut out = noise(seed, len);
    for (i, part) in out.chunks_mut(150_001).enumerate() {
        match i % 4 {
            0 => part.fill(i as u8),
            1 => (64..part.len()).for_each(|at| part[at] = part[at - 64]),
            _ => {}
        }
    }
    out
}

/// The definition: everything whitened at once, `fastcdc` over all of it.
fn whole_run(keys: &CutKeys, data: &[u8]) -> Vec<usize> {
    let padded = [&[0; WINDOW][..], data].concat();
    let mut white = vec![0; data.len()];
    keys.whiten(&padded, &mut white);
    let cdc = FastCDC::with_level(
        &white,
        MIN_CHUNK,
        AVG_CHUNK,
        MAX_CHUNK,
        Normalization::Level1,
    );
    cdc.map(|chunk| chunk.offset + chunk.length).collect()
}

fn streamed(data: &[u8], mut portion: impl FnMut() -> usize) -> Vec<usize> {
    let (mut stream, mut cuts, mut rest) = (CutStream::new(keys()), Vec::new(), data);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(portion().clamp(1, rest.len()));
        stream.push(now, &mut cuts);
        rest = later;
    }
    stream.finish(&mut cuts);
    cuts
}

#[test]
fn equals_one_run_over_everything() {
    for data in [
        noise(1, 9 << 20),
        mixed(2, (9 << 20) + 1),
        vec![0; (3 << 20) + 7],
    ] {
        let cuts = streamed(&data, || usize::MAX);
        assert_eq!(cuts, whole_run(&keys(), &data));
        assert_eq!(cuts.last(), Some(&data.len()));
        let lens: Vec<usize> = cuts
            .iter()
            .scan(0, |from, cut| Some(cut - std::mem::replace(from, *cut)))
            .collect();
        let (last, all) = lens.split_last().expect("some chunk");
        assert!(*last <= MAX_CHUNK && all.iter().all(|len| (MIN_CHUNK..=MAX_CHUNK).contains(len)));
    }
}

#[test]
fn every_length_around_every_border() {
    let data = mixed(4, MAX_CHUNK + MIN_CHUNK + 100);
    for around in [
        0,
        MIN_CHUNK - WINDOW,
        MIN_CHUNK,
        MIN_CHUNK + BLOCK,
        AVG_CHUNK,
        MAX_CHUNK,
        MAX_CHUNK + MIN_CHUNK,
    ] {
        for len in around.saturating_sub(2)..around + 3 {
            let data = &data[..len];
            assert_eq!(
                streamed(data, || usize::MAX),
                whole_run(&keys(), data),
                "{len} bytes"
            );
            let zeros = vec![0; len];
            assert_eq!(
                streamed(&zeros, || usize::MAX),
                whole_run(&keys(), &zeros),
                "{len} zeros"
            );
        }
    }
}

#[test]
fn resumes_exactly_at_any_cut() {
    let data = mixed(5, 6 << 20);
    let cuts = streamed(&data, || usize::MAX);
    assert!(cuts.len() > 10);
    for (i, cut) in cuts.iter().enumerate() {
        let later: Vec<usize> = streamed(&data[*cut..], || usize::MAX)
            .iter()
            .map(|c| c + cut)
            .collect();
        assert_eq!(later, cuts[i + 1..], "from cut {i}");
    }
}

#[test]
fn inserting_a_byte_changes_few_chunks() {
    let data = noise(6, 16 << 20);
    let chunks = |data: &[u8]| -> HashSet<blake3::Hash> {
        let cuts = streamed(data, || usize::MAX);
        let from = std::iter::once(&0).chain(&cuts);
        from.zip(&cuts)
            .map(|(from, to)| blake3::hash(&data[*from..*to]))
            .collect()
    };
    let before = chunks(&data);
    for at in [0, 5 << 20, (16 << 20) - 1] {
        let mut edited = data.clone();
        edited.insert(at, 0xaa);
        let fresh = chunks(&edited).difference(&before).count();
        assert!(
            fresh <= 3,
            "{fresh} of {} chunks are new after an insertion at {at}",
            before.len()
        );
    }
}

#[test]
fn another_secret_cuts_elsewhere() {
    let data = noise(7, 8 << 20);
    let other = whole_run(&CutKeys::derive(&[4; 32]), &data);
    let common = streamed(&data, || usize::MAX)
        .iter()
        .filter(|cut| other.contains(cut))
        .count();
    assert_eq!(common, 1, "only the end of the stream");
}

/// With masks so weak that partial hashes hit within the short scan's first bytes, the artefact must be recognised.
#[test]
fn a_short_scan_finds_what_the_whole_scan_finds() {
    let mut artefacts = 0;
    for seed in 0..200 {
        let mut stream = CutStream::new(keys());
        stream.masks = [0x0000_ff00_0000_0000, 0x0000_7f00_0000_0000];
        stream.white = noise(seed, 1000);
        let first = stream.scan(0);
        for from in (0..=first.unwrap_or(1000).min(998)).step_by(2) {
            assert_eq!(stream.find(from), first, "seed {seed}, from {from}");
            artefacts += usize::from(
                stream
                    .scan(from.saturating_sub(MEMORY))
                    .is_some_and(|at| at < from),
            );
        }
    }
    assert!(artefacts > 50, "the case was met {artefacts} times");
}

#[test]
fn sizes_are_checked() {
    assert!(ChunkSizes::new(64 << 10, 192 << 10, 512 << 10).is_some());
    for (min, avg, max) in [
        (MIN_CHUNK + 1, AVG_CHUNK, MAX_CHUNK),
        (MIN_CHUNK, AVG_CHUNK + 1, MAX_CHUNK),
        (MIN_CHUNK, AVG_CHUNK, MAX_CHUNK - 1),
        (MIN_CHUNK, AVG_CHUNK, MAX_CHUNK + 2),
        (AVG_CHUNK, MIN_CHUNK, MAX_CHUNK),
        (128, 1024, MAX_CHUNK),
    ] {
        assert_eq!(ChunkSizes::new(min, avg, max), None, "{min} {avg} {max}");
    }
}

#[test]
fn other_sizes_equal_one_run_too() {
    let data = mixed(8, 5 << 20);
    let sizes = ChunkSizes::new(24 << 10, 64 << 10, 200 << 10).expect("acceptable");
    let (mut stream, mut cuts) = (CutStream::with_sizes(keys(), sizes), Vec::new());
    data.chunks(77_777)
        .for_each(|part| stream.push(part, &mut cuts));
    stream.finish(&mut cuts);
    let mut white = vec![0; data.len()];
    keys().whiten(&[&[0; WINDOW][..], &data].concat(), &mut white);
    let cdc = FastCDC::with_level(
        &white,
        sizes.min,
        sizes.avg,
        sizes.max,
        Normalization::Level1,
    );
    assert_eq!(
        cuts,
        cdc.map(|chunk| chunk.offset + chunk.length)
            .collect::<Vec<_>>()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn portions_do_not_matter(
        seed: u64,
        len in 1usize..3_000_000,
        portions in proptest::collection::vec(prop_oneof![1usize..100, 1usize..40_000, 1usize..2_000_000], 1..40),
    ) {
        let data = mixed(seed, len);
        let mut sizes = portions.iter().copied().cycle();
        // Tiny portions all the way would take minutes; after some of them the rest comes at once.
        let mut left = 300;
        let cuts = streamed(&data, || { left -= 1; if left < 0 { usize::MAX } else { sizes.next().expect("cycle") } });
        prop_assert_eq!(cuts, whole_run(&keys(), &data));
    }
}
