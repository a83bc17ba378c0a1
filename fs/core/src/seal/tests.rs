//! What a sealed object must refuse, and that sealing has no randomness. Guards: each check of `open_named` in turn.

use super::*;
use crate::keys::DomainSecrets;
use proptest::prelude::*;
use sealdrive_proto::bucket::is_bucket;
use std::collections::HashSet;

const KINDS: [Kind; 4] = [Kind::Data, Kind::Tree, Kind::Commit, Kind::Label];

fn secrets(seed: u8) -> DomainSecrets {
    DomainSecrets::from_entropy(&std::array::from_fn(|i| (i as u8).wrapping_mul(seed)))
}

fn sealer() -> Sealer {
    Sealer::new(Arc::new(DomainKeys::derive(DomainId([5; 32]), &secrets(3))))
}

fn sealed(sealer: &mut Sealer, plaintext: &[u8]) -> (Reference, Vec<u8>) {
    let r = sealer.keys().reference(Kind::Data, plaintext);
    let object = sealer.seal(Kind::Data, &r, plaintext, Compress::DEFAULT);
    assert_eq!(object.sid, sealer.keys().sid(Kind::Data, &r));
    (r, object.bytes.to_vec())
}

fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&len.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

#[test]
fn round_trip_at_every_border() {
    let mut s = sealer();
    for len in [
        1,
        2,
        15,
        16,
        17,
        4083,
        4084,
        4095,
        4096,
        4097,
        4608,
        4609,
        65_536,
        300_001,
        MAX_CHUNK - 1,
        MAX_CHUNK,
    ] {
        for plaintext in [vec![b'a'; len], noise(len)] {
            for compress in [Compress::Off, Compress::DEFAULT] {
                let r = s.keys().reference(Kind::Tree, &plaintext);
                let one = s.seal(Kind::Tree, &r, &plaintext, compress);
                let two = s.seal(Kind::Tree, &r, &plaintext, compress);
                assert_eq!(one, two, "the same chunk gives the same bytes");
                assert!(one.bytes.len() <= MAX_OBJECT);
                assert!(
                    is_bucket(one.bytes.len() - stored_len(0) + 4096),
                    "a bucket: {len}"
                );
                assert_eq!(
                    s.open(Kind::Tree, &r, &one.bytes),
                    Ok(plaintext.clone().into())
                );
            }
        }
    }
}

#[test]
fn sealed_together_is_sealed_one_by_one() {
    let mut s = sealer();
    let lens = [1, 300_001, 5, 4096, 70_000, MAX_CHUNK, 33, 8191, 2];
    let plaintexts = lens.map(|len| [vec![b'a'; len / 2], noise(len - len / 2)].concat());
    for count in 0..=lens.len() {
        let named = plaintexts[..count].iter().map(|plaintext| {
            let mut r = s.keys().reference(Kind::Data, plaintext);
            r.variant = (count % 3) as u8;
            (r, &plaintext[..])
        });
        let named: Vec<_> = named.collect();
        let together = s.seal_together(Kind::Data, &named, Compress::DEFAULT);
        let one_by_one = named
            .iter()
            .map(|(r, plaintext)| s.seal(Kind::Data, r, plaintext, Compress::DEFAULT));
        assert_eq!(together, one_by_one.collect::<Vec<_>>(), "{count}");
    }
}

#[test]
fn compression_saves_a_bucket_or_is_not_used() {
    let mut s = sealer();
    let text: Vec<u8> = b"all work and no play "
        .iter()
        .copied()
        .cycle()
        .take(200_000)
        .collect();
    let (_, small) = sealed(&mut s, &text);
    assert_eq!(small.len(), stored_len(1), "compresses to the floor");
    let (_, big) = sealed(&mut s, &noise(200_000));
    assert_eq!(big.len(), stored_len(200_000));
    let r = s.keys().reference(Kind::Data, &text);
    assert_eq!(
        s.seal(Kind::Data, &r, &text, Compress::Off).bytes.len(),
        stored_len(text.len())
    );
}

#[test]
fn every_flipped_bit_is_refused() {
    let mut s = sealer();
    let (r, good) = sealed(&mut s, b"a little plaintext");
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 1 << (i % 8);
        let error = s.open(Kind::Data, &r, &bad).expect_err("a changed byte");
        let expected: &[OpenError] = match i {
            // Length fields and ids are compared; the nonce and everything else in the header is in the commitment.
            0..40 | 44..80 => &[OpenError::Header],
            40..44 => &[OpenError::Header, OpenError::Epoch],
            80..136 => &[OpenError::Commitment],
            _ => &[OpenError::Outer],
        };
        assert!(expected.contains(&error), "byte {i}: {error:?}");
        assert!(
            s.scratch.iter().all(|b| *b == 0) || i < 136,
            "buffer is wiped, byte {i}"
        );
    }
    for len in [0, 1, 103, 104, 136, 152, good.len() - 1] {
        assert_eq!(
            s.open(Kind::Data, &r, &good[..len]),
            Err(OpenError::Header),
            "cut to {len}"
        );
    }
    assert_eq!(
        s.open(Kind::Data, &r, &[&good[..], &[0]].concat()),
        Err(OpenError::Header)
    );
    assert!(
        s.open(Kind::Data, &r, &good).is_ok(),
        "the sealer still works afterwards"
    );
}

#[test]
fn every_pair_of_kinds_is_refused() {
    let mut s = sealer();
    for sealed_as in KINDS {
        let r = s.keys().reference(sealed_as, b"one plaintext");
        let object = s.seal(sealed_as, &r, b"one plaintext", Compress::DEFAULT);
        for opened_as in KINDS {
            let result = s.open(opened_as, &r, &object.bytes);
            assert_eq!(
                result.is_ok(),
                sealed_as == opened_as,
                "{sealed_as:?} as {opened_as:?}"
            );
        }
    }
}

/// The ids already keep kinds, domains and names apart. This takes the ids away and asks the locks alone:
/// an object whose header is rewritten to what the reader expects, with the commitment made anew by a thief of
/// `K_out`.
#[test]
fn each_lock_refuses_another_identity_by_itself() {
    let mut s = sealer();
    let (r, good) = sealed(&mut s, b"some plaintext");
    let keys = Arc::clone(s.keys());
    let epoch = keys.current();
    let mut header = ObjectHeader::parse(&good).expect("parses");
    header.sid = epoch.sid(Kind::Tree, 0, r.cid.as_bytes());
    let forged = |kind_of_key: Kind, kind_of_data: Kind| {
        let clear = header.encode();
        let mut inner = good[INNER_AT..good.len() - TAG_LEN].to_vec();
        let old = OuterKey::derive(&epoch.kind(Kind::Data).out, &good[..HEADER_LEN]);
        let tag: &[u8; 16] = good.last_chunk().expect("tag");
        let (old_clear, old_commit) = (
            good[..104].try_into().expect("104"),
            good[104..136].try_into().expect("32"),
        );
        old.unlock(
            &header.nonce,
            &outer_data(old_clear, old_commit, Kind::Data),
            &mut inner,
            tag,
        )
        .expect("own key");
        let key = OuterKey::derive(&epoch.kind(kind_of_key).out, &clear);
        let tag = key.lock(
            &header.nonce,
            &outer_data(&clear, key.commitment(), kind_of_data),
            &mut inner,
        );
        [&clear[..], key.commitment(), &inner, &tag].concat()
    };
    assert_eq!(
        s.open(Kind::Tree, &r, &forged(Kind::Data, Kind::Tree)),
        Err(OpenError::Commitment)
    );
    assert_eq!(
        s.open(Kind::Tree, &r, &forged(Kind::Tree, Kind::Data)),
        Err(OpenError::Outer)
    );
    assert_eq!(
        s.open(Kind::Tree, &r, &forged(Kind::Tree, Kind::Tree)),
        Err(OpenError::Inner)
    );
}

#[test]
fn swapped_objects_are_refused() {
    let mut s = sealer();
    let (one, first) = sealed(&mut s, b"first");
    let (two, second) = sealed(&mut s, b"other");
    assert_eq!(s.open(Kind::Data, &one, &second), Err(OpenError::Header));
    assert_eq!(s.open(Kind::Data, &two, &first), Err(OpenError::Header));
    assert_eq!(
        s.open(Kind::Data, &Reference { variant: 1, ..one }, &first),
        Err(OpenError::Header)
    );
    assert_eq!(
        s.open(
            Kind::Data,
            &Reference {
                plain_len: 4,
                ..one
            },
            &first
        ),
        Err(OpenError::Content)
    );
    let mut other = Sealer::new(Arc::new(DomainKeys::derive(DomainId([6; 32]), &secrets(3))));
    assert_eq!(
        other.open(Kind::Data, &one, &first),
        Err(OpenError::Header),
        "another domain, same secrets"
    );
}

/// A member who holds all keys seals garbage under the id of content the victim will write.
#[test]
fn poison_under_a_valid_id_is_seen() {
    let mut s = sealer();
    let r = s.keys().reference(Kind::Data, b"real content");
    let poison = s.seal_named(
        Kind::Data,
        0,
        r.cid.as_bytes(),
        b"fake content",
        Compress::Off,
    );
    assert_eq!(poison.sid, s.keys().sid(Kind::Data, &r));
    assert_eq!(
        s.open(Kind::Data, &r, &poison.bytes),
        Err(OpenError::Content)
    );
}

/// Two different inner texts under one key: the frame says more than the payload holds, or names an unknown code.
#[test]
fn frames_of_a_key_holder_are_still_checked() {
    let mut s = sealer();
    let bomb = zstd::bulk::compress(&vec![0; 3_000_000], 3).expect("compresses");
    let mut room = Vec::new();
    frame::append(Codec::Zstd, 1_000_000, &bomb, &mut room);
    let mut coder = Coder::new();
    assert_eq!(
        read_frame(&mut coder, &room),
        Err(OpenError::Payload),
        "3 MB do not fit the promised 1 MB"
    );
    let short = zstd::bulk::compress(&[7; 10_000], 3).expect("compresses");
    let mut room = Vec::new();
    frame::append(Codec::Zstd, 10_001, &short, &mut room);
    assert_eq!(
        read_frame(&mut coder, &room),
        Err(OpenError::Payload),
        "one byte too few"
    );
    let mut room = Vec::new();
    frame::append(Codec::Zstd, 10_000, &noise(50), &mut room);
    assert_eq!(
        read_frame(&mut coder, &room),
        Err(OpenError::Payload),
        "not zstd"
    );
    assert!(
        s.open_located(Kind::Commit, &[0; 32], &noise(4276))
            .is_err()
    );
}

#[test]
fn a_later_epoch_answers_an_older_reference() {
    let mut later = secrets(3);
    later.rotate(&[7; 64]).expect("rotates");
    let mut old = sealer();
    let mut new = Sealer::new(Arc::new(DomainKeys::derive(DomainId([5; 32]), &later)));
    let (r, object) = sealed(&mut old, b"content");
    let again = new.seal(Kind::Data, &r, b"content", Compress::DEFAULT);
    assert_eq!(
        ObjectHeader::parse(&again.bytes).map(|h| h.epoch),
        Ok(Epoch(2))
    );
    assert_eq!(
        new.open(Kind::Data, &r, &object),
        Ok(Bytes::from_static(b"content"))
    );
    assert_eq!(
        new.open(Kind::Data, &r, &again.bytes),
        Ok(Bytes::from_static(b"content"))
    );
    assert_eq!(
        old.open(Kind::Data, &r, &again.bytes),
        Err(OpenError::Epoch)
    );
    let young = Reference {
        epoch: Epoch(2),
        ..r
    };
    assert_eq!(
        new.open(Kind::Data, &young, &object),
        Err(OpenError::Header),
        "older than the reference allows"
    );
}

#[test]
fn located_objects_open_only_in_their_place() {
    let mut s = sealer();
    let here = commit_location(&DriveId([1; 32]), 7, &CommitHash([2; 32]));
    let body = s.seal_located(Kind::Commit, &here, b"a commit body");
    assert_eq!(
        s.open_located(Kind::Commit, &here, &body),
        Ok(Bytes::from_static(b"a commit body"))
    );
    for there in [
        commit_location(&DriveId([3; 32]), 7, &CommitHash([2; 32])),
        commit_location(&DriveId([1; 32]), 8, &CommitHash([2; 32])),
        commit_location(&DriveId([1; 32]), 7, &CommitHash([3; 32])),
        label_location(&LinkHash([1; 32]), 7, &[2; 32], 0),
    ] {
        assert_eq!(
            s.open_located(Kind::Commit, &there, &body),
            Err(OpenError::Header)
        );
    }
    assert_eq!(
        s.open_located(Kind::Label, &here, &body),
        Err(OpenError::Header)
    );
}

/// No randomness is used, so uniqueness of nonces and keys rests on content and key alone.
#[test]
fn distinct_objects_have_distinct_nonces() {
    let mut s = sealer();
    let mut seen = HashSet::new();
    for i in 0..20_000u32 {
        let (_, object) = sealed(&mut s, &i.to_le_bytes());
        assert!(seen.insert(<[u8; 24]>::try_from(&object[80..104]).expect("24 bytes")));
    }
}

proptest! {
    #[test]
    fn any_content_round_trips(plaintext in proptest::collection::vec(any::<u8>(), 1..20_000), variant: u8) {
        let mut s = sealer();
        let r = Reference { variant, ..s.keys().reference(Kind::Data, &plaintext) };
        let object = s.seal(Kind::Data, &r, &plaintext, Compress::DEFAULT);
        prop_assert_eq!(s.open(Kind::Data, &r, &object.bytes), Ok(plaintext.into()));
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let mut s = sealer();
        prop_assert!(s.open_located(Kind::Label, &[1; 32], &bytes).is_err());
    }
}
