//! The rules of the account chain, one refusal at a time.

use super::super::{Compression, LinkError, LinkFields};
use super::*;
use crate::id::CommitHash;
use ed25519_dalek::SigningKey;

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn keys(n: u8) -> DeviceKeys {
    DeviceKeys {
        sign: key(n).verifying_key(),
        box_pk: Vec::new(),
    }
}

const ENROL: u8 = 101;
const FETCH: u8 = 102;

fn genesis() -> Link {
    let genesis = Genesis {
        salt: [1; 32],
        device: keys(1),
        slot_fetch: key(FETCH).verifying_key(),
        enrol: key(ENROL).verifying_key(),
        domain_commitment: [3; 32],
    };
    LinkFields::genesis(genesis).sign(&key(1)).unwrap()
}

fn device(n: u8) -> Signer {
    Signer::Device(keys(n).id())
}

fn add(n: u8) -> LinkBody {
    LinkBody::AddDevice {
        device: keys(n),
        label: vec![n; 5],
    }
}

fn create(nonce: u8) -> LinkBody {
    let config = DriveConfig {
        min_chunk: 128 << 10,
        avg_chunk: 320 << 10,
        max_chunk: 1 << 20,
        compression: Compression::Zstd(1),
    };
    LinkBody::CreateDrive {
        nonce: [nonce; 16],
        config,
        label: Vec::new(),
    }
}

fn revoke(n: u8, chain: &AccountChain) -> LinkBody {
    let heads = chain
        .drives()
        .keys()
        .map(|d| DriveHead {
            drive: *d,
            seq: 0,
            hash: CommitHash::NONE,
        })
        .collect();
    LinkBody::RevokeDevice {
        device: keys(n).id(),
        heads,
    }
}

/// Signs and appends; the link comes back for replays.
fn step(
    chain: &mut AccountChain,
    signer: Signer,
    with: u8,
    body: LinkBody,
) -> Result<Link, ChainError> {
    let before = chain.clone();
    let link = chain.next_link(signer, body).sign(&key(with)).unwrap();
    chain
        .append(&link)
        .map(|()| link)
        .inspect_err(|_| assert_eq!(*chain, before, "a refusal changed the chain"))
}

#[test]
fn a_life_of_an_account_replays_to_the_same_state() {
    let mut links = vec![genesis()];
    let mut chain = AccountChain::replay(&links).unwrap();
    links.push(step(&mut chain, device(1), 1, create(1)).unwrap());
    links.push(step(&mut chain, device(1), 1, add(2)).unwrap());
    links.push(step(&mut chain, Signer::Enrol, ENROL, add(3)).unwrap());
    let body = revoke(1, &chain);
    links.push(step(&mut chain, device(3), 3, body).unwrap());
    links.push(step(&mut chain, device(2), 2, create(2)).unwrap());

    let read: Vec<Link> = links
        .iter()
        .map(|link| Link::parse(link.bytes()).unwrap())
        .collect();
    assert_eq!(read, links);
    assert_eq!(AccountChain::replay(&read).unwrap(), chain);
    assert_eq!((chain.head_seq(), chain.head()), (5, links[5].hash()));
    assert_eq!(chain.drives().keys().copied().collect::<Vec<_>>().len(), 2);
    assert!(chain.drives().contains_key(&DriveId::of(&links[1])));
    assert!(chain.active_device(&keys(1).id()).is_none());
    assert!(chain.active_device(&keys(3).id()).is_some());
    assert_eq!(chain.account(), AccountId::of(&links[0]));

    for missing in 0..links.len() - 1 {
        let holed = links
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != missing)
            .map(|(_, link)| link);
        assert!(
            AccountChain::replay(holed).is_err(),
            "link {missing} dropped"
        );
        let mut swapped = links.clone();
        swapped.swap(missing, missing + 1);
        assert!(
            AccountChain::replay(&swapped).is_err(),
            "links {missing} and next swapped"
        );
    }
}

#[test]
fn only_those_sign_who_may() {
    let mut chain = AccountChain::found(&genesis()).unwrap();
    assert_eq!(
        step(&mut chain, device(2), 2, add(2)),
        Err(ChainError::Signer),
        "unknown device"
    );
    assert_eq!(
        step(&mut chain, device(1), 2, add(2)),
        Err(ChainError::Signature),
        "someone else's key"
    );
    assert_eq!(
        step(&mut chain, Signer::Enrol, ENROL, create(1)),
        Err(ChainError::Signer)
    );
    assert_eq!(
        step(&mut chain, Signer::Enrol, FETCH, add(2)),
        Err(ChainError::Signature)
    );
    let body = revoke(1, &chain);
    assert_eq!(
        step(&mut chain, Signer::Enrol, ENROL, body),
        Err(ChainError::Signer)
    );

    step(&mut chain, device(1), 1, add(2)).unwrap();
    let body = revoke(2, &chain);
    step(&mut chain, device(1), 1, body).unwrap();
    assert_eq!(
        step(&mut chain, device(2), 2, create(1)),
        Err(ChainError::Signer),
        "revoked"
    );
    assert_eq!(
        step(&mut chain, device(1), 1, add(2)),
        Err(ChainError::DeviceExists),
        "ids never come back"
    );
}

#[test]
fn a_revocation_names_every_head() {
    let mut chain = AccountChain::found(&genesis()).unwrap();
    step(&mut chain, device(1), 1, add(2)).unwrap();
    let before_drive = revoke(2, &chain);
    step(&mut chain, device(1), 1, create(1)).unwrap();
    assert_eq!(
        step(&mut chain, device(1), 1, before_drive),
        Err(ChainError::Heads)
    );
    let body = revoke(9, &chain);
    assert_eq!(
        step(&mut chain, device(1), 1, body),
        Err(ChainError::NoDevice)
    );
}

#[test]
fn links_stay_in_their_chain_and_place() {
    let mut chain = AccountChain::found(&genesis()).unwrap();
    let late = chain.next_link(device(1), add(2)).sign(&key(1)).unwrap();
    step(&mut chain, device(1), 1, add(3)).unwrap();
    assert_eq!(chain.append(&late), Err(ChainError::Stale));
    let foreign = LinkFields {
        account: AccountId([9; 32]),
        ..chain.next_link(device(1), add(4))
    };
    assert_eq!(
        chain.append(&foreign.sign(&key(1)).unwrap()),
        Err(ChainError::Account)
    );
    assert_eq!(chain.append(&genesis()), Err(ChainError::Genesis));
    assert_eq!(AccountChain::replay(&[]), Err(ChainError::Genesis));
    assert_eq!(AccountChain::replay([&late]), Err(ChainError::Genesis));
}

#[test]
fn a_genesis_is_signed_by_its_own_device() {
    let LinkBody::Genesis(body) = genesis().fields().body.clone() else {
        panic!("genesis")
    };
    let fields = LinkFields::genesis(body);
    assert_eq!(
        AccountChain::found(&fields.sign(&key(2)).unwrap()),
        Err(ChainError::Signature)
    );
    let enrolled = LinkFields {
        signer: Signer::Enrol,
        ..fields.clone()
    };
    assert_eq!(
        AccountChain::found(&enrolled.sign(&key(ENROL)).unwrap()),
        Err(ChainError::Signer)
    );
    let numbered = LinkFields { seq: 1, ..fields };
    assert_eq!(
        AccountChain::found(&numbered.sign(&key(1)).unwrap()),
        Err(ChainError::Genesis)
    );
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let genesis = genesis();
    let chain = AccountChain::found(&genesis).unwrap();
    let link = chain.next_link(device(1), create(1)).sign(&key(1)).unwrap();
    for bit in 0..link.bytes().len() * 8 {
        let mut bytes = link.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let accepted = Link::parse(&bytes).is_ok_and(|bad| chain.clone().append(&bad).is_ok());
        assert!(!accepted, "bit {bit}");
    }
    for len in 0..link.bytes().len() {
        let accepted =
            Link::parse(&link.bytes()[..len]).is_ok_and(|bad| chain.clone().append(&bad).is_ok());
        assert!(!accepted, "length {len}");
    }
}

#[test]
fn impossible_values_get_no_signature() {
    let chain = AccountChain::found(&genesis()).unwrap();
    let refuse = |body: LinkBody, why: LinkError| {
        assert_eq!(chain.next_link(device(1), body).sign(&key(1)), Err(why));
    };
    let LinkBody::CreateDrive {
        nonce,
        config,
        label,
    } = create(1)
    else {
        panic!("create")
    };
    for config in [
        DriveConfig {
            min_chunk: 64,
            ..config
        },
        DriveConfig {
            min_chunk: config.avg_chunk,
            ..config
        },
        DriveConfig {
            avg_chunk: config.max_chunk,
            ..config
        },
        DriveConfig {
            max_chunk: config.max_chunk + 2,
            ..config
        },
        DriveConfig {
            avg_chunk: config.avg_chunk + 1,
            ..config
        },
    ] {
        refuse(
            LinkBody::CreateDrive {
                nonce,
                config,
                label: label.clone(),
            },
            LinkError::Value("chunk size"),
        );
    }
    for level in [20, 255] {
        let config = DriveConfig {
            compression: Compression::Zstd(level),
            ..config
        };
        refuse(
            LinkBody::CreateDrive {
                nonce,
                config,
                label: label.clone(),
            },
            LinkError::Value("compression"),
        );
    }
    let long = vec![0; crate::limits::MAX_LABEL + 1];
    refuse(
        LinkBody::CreateDrive {
            nonce,
            config,
            label: long,
        },
        LinkError::Value("label length"),
    );
    let odd_box = DeviceKeys {
        box_pk: vec![0; 32],
        ..keys(2)
    };
    refuse(
        LinkBody::AddDevice {
            device: odd_box,
            label,
        },
        LinkError::Value("box key length"),
    );
    let head = DriveHead {
        drive: DriveId([1; 32]),
        seq: 0,
        hash: CommitHash::NONE,
    };
    let twice = LinkBody::RevokeDevice {
        device: keys(1).id(),
        heads: vec![head, head],
    };
    refuse(twice, LinkError::Value("order of heads"));
}
