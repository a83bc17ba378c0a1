//! Every pin against every head, honest and not: rollback, fork, foreign, revoked, forgetful.

use super::*;
use crate::commit_body::{CommitBody, Head, MIN_FORMAT};
use crate::reference::Reference;
use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use sealdrive_proto::commit::CommitFields;
use sealdrive_proto::id::{Cid, DeviceId, Epoch, LinkHash};
use sealdrive_proto::link::{
    Compression, DeviceKeys, DriveConfig, DriveHead, Genesis, LinkBody, LinkFields, Signer,
};

const BODY: &[u8] = b"a sealed body";

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn keys(n: u8) -> DeviceKeys {
    DeviceKeys {
        sign: key(n).verifying_key(),
        box_pk: Vec::new(),
    }
}

/// An account of devices 1 and 2 with one drive.
fn account() -> (AccountChain, DriveId) {
    let genesis = Genesis {
        salt: [9; 32],
        device: keys(1),
        slot_fetch: key(7).verifying_key(),
        enrol: key(8).verifying_key(),
        domain_commitment: [0; 32],
    };
    let mut chain =
        AccountChain::found(&LinkFields::genesis(genesis).sign(&key(1)).expect("signs"))
            .expect("founds");
    append(
        &mut chain,
        LinkBody::AddDevice {
            device: keys(2),
            label: Vec::new(),
        },
    );
    let config = DriveConfig {
        min_chunk: 128 << 10,
        avg_chunk: 320 << 10,
        max_chunk: 1 << 20,
        compression: Compression::Zstd(1),
    };
    append(
        &mut chain,
        LinkBody::CreateDrive {
            nonce: [1; 16],
            config,
            label: Vec::new(),
        },
    );
    let drive = *chain.drives().keys().next().expect("a drive");
    (chain, drive)
}

fn append(chain: &mut AccountChain, body: LinkBody) {
    let link = chain
        .next_link(Signer::Device(keys(1).id()), body)
        .sign(&key(1))
        .expect("signs");
    chain.append(&link).expect("continues");
}

fn revoke(chain: &mut AccountChain, drive: DriveId, device: u8, head: &SignedCommit) {
    let heads = vec![DriveHead {
        drive,
        seq: head.fields().seq,
        hash: head.hash(),
    }];
    append(
        chain,
        LinkBody::RevokeDevice {
            device: keys(device).id(),
            heads,
        },
    );
}

/// Commits `1..=len`; `history[n]` is number n (and `history[0]` a stand-in). From `fork` on it is another history.
fn history(drive: DriveId, len: u64, fork: u64, signer: u8) -> Vec<SignedCommit> {
    let mut all: Vec<SignedCommit> = Vec::new();
    for seq in 1..=len {
        let hash = |at: u64| {
            if at == 0 {
                CommitHash::NONE
            } else {
                all[at as usize].hash()
            }
        };
        let commit = CommitFields {
            drive,
            seq,
            prev: hash(seq - 1),
            skip: hash(skip_seq(seq)),
            device: keys(signer).id(),
            device_seq: if seq >= fork { 1_000_000 + seq } else { seq },
            lease_epoch: 1,
            key_epoch: Epoch(1),
            body_hash: body_hash(BODY),
        }
        .sign(&key(signer));
        if all.is_empty() {
            all.push(commit.clone());
        }
        all.push(commit);
    }
    all
}

fn body(heads: &[(u8, u64)]) -> CommitBody {
    let head = |(d, seq): &(u8, u64)| Head {
        device: DeviceId([*d; 16]),
        seq: *seq,
        hash: CommitHash([*seq as u8; 32]),
    };
    CommitBody {
        min_format: MIN_FORMAT,
        root: Reference {
            epoch: Epoch(1),
            cid: Cid([1; 32]),
            plain_len: 9,
            variant: 0,
        },
        op_seq: 1,
        next_ino: 2,
        membership: LinkHash([5; 32]),
        time_s: 0,
        time_ns: 0,
        files: 1,
        bytes: 1,
        heads: heads.iter().map(head).collect(),
    }
}

/// Walks with a server that answers from `shown`.
fn walk(
    chain: &AccountChain,
    drive: DriveId,
    pins: &Pins,
    shown: &[SignedCommit],
    head: u64,
) -> Result<(Verified, usize), HistoryError> {
    let mut walk = Walk::begin(chain, drive, pins, shown[head as usize].bytes(), BODY)?;
    let mut fed = 0;
    while let Some(seq) = walk.wants() {
        assert!(
            seq > pins.seq() && seq < head,
            "asks only for what lies between"
        );
        walk.feed(shown[seq as usize].bytes())?;
        fed += 1;
    }
    Ok((walk.finish().expect("done"), fed))
}

fn pinned(chain: &AccountChain, drive: DriveId, shown: &[SignedCommit], seq: u64) -> Pins {
    let mut pins = Pins::none();
    if seq > 0 {
        let (head, _) = walk(chain, drive, &pins, shown, seq).expect("from nothing");
        pins.accept(head, body(&[]), 1).expect("accepts");
    }
    pins
}

#[test]
fn every_head_from_every_pin() {
    let (chain, drive) = account();
    let all = history(drive, 70, u64::MAX, 1);
    let mut advanced = Pins::none();
    for head in 1..=70 {
        advanced
            .advance(&all[head as usize], body(&[]))
            .expect("one by one");
        for pin in 0..=head {
            let mut pins = pinned(&chain, drive, &all, pin);
            let (verified, fed) = walk(&chain, drive, &pins, &all, head).expect("honest");
            assert!(fed <= 36, "{fed} commits from {pin} to {head}");
            pins.accept(verified, body(&[]), 1).expect("accepts");
            assert_eq!((pins.seq(), pins.hash()), (head, all[head as usize].hash()));
            assert_eq!(
                pins.spine(),
                advanced.spine(),
                "the same spine whichever way: {pin} to {head}"
            );
        }
    }
}

#[test]
fn a_long_chain_takes_few_steps() {
    let (chain, drive) = account();
    let all = history(drive, 5000, u64::MAX, 1);
    for (pin, most) in [
        (0, 13),
        (1, 100),
        (2047, 100),
        (2048, 100),
        (4999, 1),
        (5000, 0),
    ] {
        let pins = pinned(&chain, drive, &all, pin);
        let (_, fed) = walk(&chain, drive, &pins, &all, 5000).expect("honest");
        assert!(fed <= most, "{fed} commits from {pin}");
    }
}

#[test]
fn rollback_and_fork() {
    let (chain, drive) = account();
    let ours = history(drive, 40, u64::MAX, 1);
    for fork in [1, 2, 17, 33] {
        let theirs = history(drive, 40, fork, 1);
        for pin in 1..40 {
            let pins = pinned(&chain, drive, &ours, pin);
            for head in 1..=40 {
                let result = walk(&chain, drive, &pins, &theirs, head).map(|_| ());
                let expected = if head < pin {
                    Err(HistoryError::Rollback)
                } else if pin < fork {
                    Ok(())
                } else {
                    Err(HistoryError::Fork)
                };
                assert_eq!(
                    result, expected,
                    "fork at {fork}, pinned {pin}, shown {head}"
                );
            }
        }
    }
}

#[test]
fn lies_on_the_way() {
    let (chain, drive) = account();
    let all = history(drive, 40, u64::MAX, 1);
    let other = history(drive, 40, 2, 1);
    let pins = pinned(&chain, drive, &all, 5);
    let begin =
        |head: &[u8], body: &[u8]| Walk::begin(&chain, drive, &pins, head, body).map(|_| ());
    assert_eq!(
        begin(all[39].bytes(), b"another body"),
        Err(HistoryError::Foreign)
    );
    assert!(matches!(
        begin(&all[39].bytes()[1..], BODY),
        Err(HistoryError::Commit(_))
    ));
    let mut forged = *all[39].bytes();
    forged[200] ^= 1;
    assert!(matches!(begin(&forged, BODY), Err(HistoryError::Commit(_))));
    let mut walk = Walk::begin(&chain, drive, &pins, all[39].bytes(), BODY).expect("begins");
    let wanted = walk.wants().expect("not adjacent") as usize;
    assert_eq!(
        walk.feed(all[wanted - 1].bytes()),
        Err(HistoryError::Foreign),
        "another number"
    );
    assert_eq!(
        walk.feed(other[wanted].bytes()),
        Err(HistoryError::Foreign),
        "another history"
    );
    assert_eq!(walk.finish(), None, "not done");
    let foreign = history(DriveId([7; 32]), 40, u64::MAX, 1);
    assert_eq!(begin(foreign[39].bytes(), BODY), Err(HistoryError::Foreign));
}

#[test]
fn only_devices_that_may_write() {
    let (mut chain, drive) = account();
    let (ours, theirs) = (
        history(drive, 20, u64::MAX, 2),
        history(drive, 20, u64::MAX, 3),
    );
    let none = Pins::none();
    assert_eq!(
        walk(&chain, drive, &none, &theirs, 20).map(|_| ()),
        Err(HistoryError::Signer),
        "unknown"
    );
    assert!(walk(&chain, drive, &none, &ours, 20).is_ok());
    // A head that may be signed stands on a commit that may not.
    let mut mixed = history(drive, 8, u64::MAX, 3);
    let fields = CommitFields {
        seq: 9,
        prev: mixed[8].hash(),
        skip: mixed[8].hash(),
        device: keys(1).id(),
        ..mixed[8].fields().clone()
    };
    mixed.push(fields.sign(&key(1)));
    assert_eq!(
        walk(&chain, drive, &none, &mixed, 9).map(|_| ()),
        Err(HistoryError::Signer),
        "below the head"
    );
    revoke(&mut chain, drive, 2, &ours[12]);
    assert!(
        walk(&chain, drive, &none, &ours, 12).is_ok(),
        "what it signed before stays"
    );
    assert_eq!(
        walk(&chain, drive, &none, &ours, 13).map(|_| ()),
        Err(HistoryError::Signer),
        "what it signed after"
    );
    let fork = history(drive, 20, 8, 2);
    assert_eq!(
        walk(&chain, drive, &none, &fork, 12).map(|_| ()),
        Err(HistoryError::Fork),
        "the named head is an anchor"
    );
}

#[test]
fn bodies_do_not_forget() {
    let (chain, drive) = account();
    let all = history(drive, 3, u64::MAX, 1);
    let mut pins = Pins::none();
    let verified = |pins: &Pins, head| walk(&chain, drive, pins, &all, head).expect("honest").0;
    pins.accept(verified(&pins, 1), body(&[(1, 4), (2, 9)]), 2)
        .expect("first");
    for (heads, membership) in [
        (&[(1, 4)][..], 2),
        (&[(1, 3), (2, 9)], 2),
        (&[(1, 4), (2, 9)], 1),
    ] {
        let refused = pins
            .clone()
            .accept(verified(&pins, 2), body(heads), membership);
        assert_eq!(
            refused,
            Err(HistoryError::Forgetful),
            "{heads:?} {membership}"
        );
    }
    let other = CommitBody {
        membership: LinkHash([6; 32]),
        ..body(&[(1, 4), (2, 9)])
    };
    assert_eq!(
        pins.clone().accept(verified(&pins, 2), other.clone(), 2),
        Err(HistoryError::Forgetful)
    );
    assert_eq!(
        pins.clone().accept(verified(&pins, 2), other, 3),
        Ok(()),
        "a later link"
    );
    assert_eq!(
        pins.accept(verified(&pins, 2), body(&[(1, 5), (2, 9), (3, 1)]), 2),
        Ok(())
    );
}

#[test]
fn own_commits_continue_the_pinned_one() {
    let (_, drive) = account();
    let all = history(drive, 9, u64::MAX, 1);
    let mut pins = Pins::none();
    assert_eq!(pins.advance(&all[2], body(&[])), Err(HistoryError::Fork));
    pins.advance(&all[1], body(&[])).expect("first");
    let other = history(drive, 9, 1, 1);
    assert_eq!(pins.advance(&other[2], body(&[])), Err(HistoryError::Fork));
    assert_eq!(pins.successor(), (2, all[1].hash(), CommitHash::NONE));
}

proptest! {
    #[test]
    fn pins_round_trip_and_refuse_changes(seq in 1u64..60, at: usize, byte: u8) {
        let (chain, drive) = account();
        let all = history(drive, seq, u64::MAX, 1);
        let mut pins = pinned(&chain, drive, &all, seq);
        pins.device_seq = 77;
        let mut bytes = pins.encode();
        prop_assert_eq!(Pins::decode(&bytes), Ok(pins));
        prop_assert!(Pins::decode(&bytes[..at % bytes.len()]).is_err());
        let len = bytes.len();
        bytes[at % len] = byte;
        if let Ok(read) = Pins::decode(&bytes) {
            prop_assert_eq!(read.encode(), bytes);
        }
    }
}
