//! The book against honest and dishonest callers; every accepted record is applied to a second book, which must agree.

use ed25519_dalek::SigningKey;
use sealdrive_proto::commit::{CommitFields, body_hash};
use sealdrive_proto::id::Epoch;
use sealdrive_proto::link::{
    Compression, DeviceKeys, DriveConfig, Genesis, LinkBody, LinkFields, Signer,
};
use sealdrive_proto::transcript::{Call, Caller, Role};

use super::*;

const SERVER: [u8; 32] = [9; 32];
const CONFIG: DriveConfig = DriveConfig {
    min_chunk: 128 << 10,
    avg_chunk: 320 << 10,
    max_chunk: 1 << 20,
    compression: Compression::Zstd(3),
};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn device(n: u8) -> DeviceKeys {
    DeviceKeys {
        sign: key(n).verifying_key(),
        box_pk: Vec::new(),
    }
}

struct World {
    book: Book,
    copy: Book,
    account: AccountId,
    drive: DriveId,
    calls: u64,
}

impl World {
    fn new() -> Self {
        let genesis = Genesis {
            salt: [1; 32],
            device: device(1),
            slot_fetch: key(2).verifying_key(),
            enrol: key(3).verifying_key(),
            domain_commitment: [4; 32],
        };
        let link = LinkFields::genesis(genesis).sign(&key(1)).unwrap();
        let chain = AccountChain::found(&link).unwrap();
        let body = LinkBody::CreateDrive {
            nonce: [5; 16],
            config: CONFIG,
            label: vec![1],
        };
        let create = chain
            .next_link(Signer::Device(device(1).id()), body)
            .sign(&key(1))
            .unwrap();
        let mut world = Self {
            book: Book::new(SERVER),
            copy: Book::new(SERVER),
            account: chain.account(),
            drive: DriveId::of(&create),
            calls: 0,
        };
        let records = world
            .book
            .propose_account(link.bytes(), b"slot", b"box")
            .unwrap()
            .unwrap();
        records.iter().for_each(|record| world.take(record));
        assert!(
            world
                .book
                .propose_account(link.bytes(), b"slot", b"box")
                .unwrap()
                .is_none(),
            "repeated call"
        );
        let record = world
            .book
            .propose_link(&world.account, Role::Device, create.bytes())
            .unwrap()
            .unwrap();
        world.take(&record);
        assert!(
            world
                .book
                .propose_link(&world.account, Role::Device, create.bytes())
                .unwrap()
                .is_none()
        );
        world
    }

    fn take(&mut self, record: &Record) {
        self.book.apply(record, 7).unwrap();
        self.copy.apply(record, 7).unwrap();
    }

    fn add_device(&mut self, n: u8) {
        let (links, _) = self.book.links(&self.account, 0).unwrap();
        let links: Vec<Link> = links
            .iter()
            .map(|link| Link::parse(link).unwrap())
            .collect();
        let chain = AccountChain::replay(&links).unwrap();
        let body = LinkBody::AddDevice {
            device: device(n),
            label: vec![],
        };
        let link = chain.next_link(Signer::Enrol, body).sign(&key(3)).unwrap();
        let record = self
            .book
            .propose_link(&self.account, Role::SlotFetch, link.bytes())
            .unwrap()
            .unwrap();
        self.take(&record);
    }

    fn lease(
        &mut self,
        n: u8,
        take_over: bool,
        held_epoch: u64,
        now: u64,
    ) -> Result<LeaseDecision, BookError> {
        self.calls += 1;
        let call = Call::AcquireLease {
            drive: self.drive,
            take_over,
            held_epoch,
        };
        let id = device(n).id();
        let caller = Caller {
            server_pk: SERVER,
            account: self.account,
            device: id,
            call_seq: self.calls,
        };
        let signature = call.sign(&caller, &key(n));
        let decision =
            self.book
                .propose_lease(&self.account, &id, &call, (self.calls, &signature), now)?;
        if let LeaseDecision::Grant(record, lease) = &decision {
            self.take(record);
            self.book.set_expiry(&self.drive, lease.expires_ms);
        }
        Ok(decision)
    }

    fn commit(
        &self,
        n: u8,
        seq: u64,
        prev: CommitHash,
        skip: CommitHash,
        epoch: u64,
    ) -> SignedCommit {
        CommitFields {
            drive: self.drive,
            seq,
            prev,
            skip,
            device: device(n).id(),
            device_seq: seq,
            lease_epoch: epoch,
            key_epoch: Epoch(1),
            body_hash: body_hash(b"body"),
        }
        .sign(&key(n))
    }

    fn offer(&self, n: u8, commit: &SignedCommit) -> Result<Option<Record>, BookError> {
        self.book
            .propose_commit(&self.account, &device(n).id(), commit, b"body")
    }
}

#[test]
fn a_lease_has_one_holder_and_a_take_over_fences_the_former() {
    let mut world = World::new();
    world.add_device(6);
    assert!(
        matches!(world.lease(1, false, 0, 0), Ok(LeaseDecision::Grant(_, lease)) if lease.epoch == 1)
    );
    assert!(matches!(
        world.lease(1, false, 1, 1000),
        Ok(LeaseDecision::Renewed(_))
    ));
    assert!(matches!(
        world.lease(6, false, 0, 2000),
        Ok(LeaseDecision::Held(_))
    ));
    assert!(
        matches!(world.lease(6, true, 0, 2000), Ok(LeaseDecision::Grant(_, lease)) if lease.epoch == 2)
    );
    let id = |n| device(n).id();
    assert_eq!(
        world
            .book
            .check_lease(&world.account, &id(1), &world.drive, 1),
        Err(BookError::Fenced)
    );
    assert_eq!(
        world
            .book
            .check_lease(&world.account, &id(6), &world.drive, 2),
        Ok(())
    );
    assert!(
        matches!(world.lease(1, false, 1, 3000), Ok(LeaseDecision::Held(_))),
        "the fenced holder renews"
    );
    assert!(
        matches!(world.lease(1, false, 0, u64::MAX / 2), Ok(LeaseDecision::Grant(_, lease)) if lease.epoch == 3)
    );
    assert_eq!(
        world
            .copy
            .lease(&world.account, &world.drive)
            .unwrap()
            .epoch,
        3,
        "the records tell the same"
    );
}

#[test]
fn a_signed_call_counts_once_and_for_its_device_only() {
    let mut world = World::new();
    world.lease(1, false, 0, 0).unwrap();
    world.calls -= 1;
    assert_eq!(
        world.lease(1, false, 1, 0).unwrap_err(),
        BookError::Proof,
        "number used again"
    );
    assert_eq!(
        world.lease(7, false, 1, 0).unwrap_err(),
        BookError::NotFound,
        "stranger"
    );
    let other = AccountId([0; 32]);
    assert_eq!(
        world.book.lease(&other, &world.drive),
        Err(BookError::NotFound),
        "another account's drive"
    );
}

#[test]
fn commits_follow_the_head_under_the_lease() {
    let mut world = World::new();
    world.lease(1, false, 0, 0).unwrap();
    let none = CommitHash([0; 32]);
    let first = world.commit(1, 1, none, none, 1);
    let record = world.offer(1, &first).unwrap().expect("new");
    world.take(&record);
    assert_eq!(
        world.offer(1, &first),
        Ok(None),
        "sent again after a lost answer"
    );
    let refused = |commit: SignedCommit| world.offer(1, &commit).unwrap_err();
    assert!(
        matches!(
            refused(world.commit(1, 3, first.hash(), none, 1)),
            BookError::Stale(_)
        ),
        "gap"
    );
    assert!(
        matches!(
            refused(world.commit(1, 2, CommitHash([1; 32]), none, 1)),
            BookError::Stale(_)
        ),
        "fork"
    );
    assert_eq!(
        refused(world.commit(1, 2, first.hash(), none, 2)),
        BookError::Fenced
    );
    let second = world.commit(1, 2, first.hash(), none, 1);
    let other_body = world
        .book
        .propose_commit(&world.account, &device(1).id(), &second, b"other");
    assert!(matches!(other_body, Err(BookError::Malformed(_))));
    let record = world.offer(1, &second).unwrap().expect("follows");
    world.take(&record);
    let wrong_skip = world.commit(1, 3, second.hash(), first.hash(), 1);
    assert!(matches!(
        world.offer(1, &wrong_skip),
        Err(BookError::Malformed(_))
    ));
    let third = world.commit(1, 3, second.hash(), second.hash(), 1);
    let record = world.offer(1, &third).unwrap().expect("follows");
    world.take(&record);
    let head = world
        .copy
        .head(&world.account, &world.drive)
        .unwrap()
        .expect("has one");
    assert_eq!(head.commit, third);
}

#[test]
fn the_slot_fetch_key_lets_a_device_in_and_does_nothing_else() {
    let mut world = World::new();
    world.add_device(6);
    assert!(
        world
            .book
            .login_key(&world.account, Role::Device, &device(6).id())
            .is_some()
    );
    assert!(
        world
            .book
            .login_key(&world.account, Role::Device, &device(7).id())
            .is_none()
    );
    let (links, _) = world.book.links(&world.account, 0).unwrap();
    let links: Vec<Link> = links
        .iter()
        .map(|link| Link::parse(link).unwrap())
        .collect();
    let chain = AccountChain::replay(&links).unwrap();
    let body = LinkBody::CreateDrive {
        nonce: [8; 16],
        config: CONFIG,
        label: vec![],
    };
    let link = chain
        .next_link(Signer::Device(device(6).id()), body)
        .sign(&key(6))
        .unwrap();
    let refused = world
        .book
        .propose_link(&world.account, Role::SlotFetch, link.bytes());
    assert_eq!(refused.unwrap_err(), BookError::NotFound);
    assert!(
        world
            .book
            .propose_link(&world.account, Role::Device, link.bytes())
            .unwrap()
            .is_some()
    );
}

#[test]
fn a_slot_comes_one_generation_at_a_time() {
    let mut world = World::new();
    let id = device(1).id();
    let mut put = |generation: u64, call_seq: u64| {
        let call = Call::PutSlot {
            slot: b"new",
            key_box: b"keys",
            slot_generation: generation,
        };
        let caller = Caller {
            server_pk: SERVER,
            account: world.account,
            device: id,
            call_seq,
        };
        let signature = call.sign(&caller, &key(1));
        let record = world
            .book
            .propose_slot(&world.account, &id, &call, call_seq, &signature)?;
        world.take(&record);
        Ok(())
    };
    assert!(matches!(put(3, 1), Err(BookError::Stale(_))));
    assert_eq!(put(2, 1), Ok(()));
    assert_eq!(put(3, 1), Err(BookError::Proof), "number used again");
    let (slot, key_box) = world.copy.slot(&world.account).unwrap();
    assert_eq!((&slot[..], &key_box[..]), (&b"new"[..], &b"keys"[..]));
}
