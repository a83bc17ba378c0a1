//! Golden vectors of every format of this crate: fixed keys, fixed bytes. A failing line here means that drives
//! written by a released program would no longer open, deduplicate or verify: that is a new format version, never a
//! new vector.
//!
//! Short results stand as hex, long ones as BLAKE3 of the bytes.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use sealdrive_core::chunk::{ChunkSizes, CutStream};
use sealdrive_core::commit_body::{CommitBody, Head};
use sealdrive_core::key_box::{self, BoxHeader};
use sealdrive_core::keys::{DomainKeys, DomainSecrets};
use sealdrive_core::kit::Kit;
use sealdrive_core::local::LocalKeys;
use sealdrive_core::passphrase::Argon2Cost;
use sealdrive_core::reference::Reference;
use sealdrive_core::seal::{Compress, Sealer, commit_location, label_location};
use sealdrive_core::secret::Secret;
use sealdrive_core::slot::{
    AccountRoot, Expected, SlotHeader, SlotKind, open_slot, seal_slot, slot_fetch_key,
};
use sealdrive_proto::id::{
    AccountId, CommitHash, DeviceId, DomainId, DriveId, Epoch, Kind, LinkHash,
};
use std::fmt::Write;
use std::sync::Arc;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn digest(bytes: &[u8]) -> String {
    hex(&blake3::hash(bytes).as_bytes()[..16])
}

/// `n, n + 1, n + 2 …`
fn counting<const N: usize>(from: u8) -> [u8; N] {
    std::array::from_fn(|i| from.wrapping_add(i as u8))
}

fn secrets() -> DomainSecrets {
    let mut secrets = DomainSecrets::from_entropy(&counting(0));
    secrets.rotate(&counting(200)).expect("second epoch");
    secrets
}

fn keys() -> Arc<DomainKeys> {
    Arc::new(DomainKeys::derive(DomainId(counting(100)), &secrets()))
}

fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(b"sealdrive golden")
        .finalize_xof()
        .fill(&mut out);
    out
}

fn root() -> AccountRoot {
    AccountRoot::from_bytes(&counting(50), 2)
}

#[test]
fn domain_secrets_and_commitment() {
    assert_eq!(
        digest(&secrets().encode()),
        "fa4a34f0486c1a9668613b6fe73db26b"
    );
    assert_eq!(
        hex(&secrets().commitment()),
        "87053d7570ff6c317c3155de31f33a5e9ca73a586af26fe3e9733dfb4e5dc49c"
    );
}

#[test]
fn ids() {
    let keys = keys();
    let r = keys.reference(Kind::Data, b"hello");
    assert_eq!(
        hex(&r.encode()),
        "02000000f354a6ab379ee4ea7665334485b51b89f1fae51ac90da9574e9c8e5f564177170500000000"
    );
    assert_eq!(
        keys.sid(Kind::Data, &r).to_hex(),
        "f6391cbd0415035ef2c3abb4324bfdff652e32e22c981cb50694069d1bc4b399"
    );
    assert_eq!(
        keys.sid(
            Kind::Tree,
            &Reference {
                variant: 3,
                epoch: Epoch(1),
                ..r
            }
        )
        .to_hex(),
        "f02bb6010f668f465ec77ba6751e75091395ad4e3926a80d44aacf4ba5414e0f"
    );
    assert_eq!(
        hex(keys.cid(Kind::Tree, b"hello").as_bytes()),
        "c5f2da36b6afab7c0ed6ef3ec619dd7311058c477bd9210e24f7a04ce239aba8"
    );
    assert_eq!(
        hex(&keys.small_digest(b"hello")),
        "b9d0a571552267c03a0add66cfc71bccba65a7ba4d1411736bc498b8608bb840"
    );
    assert_eq!(
        hex(keys.node_key()),
        "06225e7810af4ab830a884f3e1ffe4b9e56647479499ce091ae0a6a6465d8c0f"
    );
}

#[test]
fn objects() {
    let mut sealer = Sealer::new(keys());
    for (kind, len, want) in [
        (Kind::Data, 5, "97ce65f40c6c27c20c7e2ed199a46019"),
        (Kind::Tree, 4097, "4b1e7b549cc8a627cc359566f6cba632"),
        (Kind::Data, 1 << 20, "ee9564d7af113ac580384f9fa9f1dce4"),
    ] {
        let plaintext = noise(len);
        let r = sealer.keys().reference(kind, &plaintext);
        let object = sealer.seal(kind, &r, &plaintext, Compress::Off);
        assert_eq!(digest(&object.bytes), want, "{kind:?} {len}");
    }
    let location = commit_location(&DriveId(counting(1)), 7, &CommitHash(counting(2)));
    assert_eq!(
        hex(&location),
        "abdf05ee1663bd284e40bfa36acdcb8d4e2afb102abd80aa9a029bd44d1f5d64"
    );
    assert_eq!(
        digest(&sealer.seal_located(Kind::Commit, &location, b"body")),
        "96d00cb724ab4efab4562a85f5cfad87"
    );
    let label = label_location(&LinkHash(counting(3)), 2, &counting(4), 9);
    assert_eq!(
        digest(&sealer.seal_located(Kind::Label, &label, b"my drive")),
        "31d510adb91df6e0ce6d725e5294bcb3"
    );
}

/// zstd may pack differently from version to version; what must hold is that old objects open. This one was packed by
/// zstd 1.5: the frame is written out so that no compressor is needed to make it.
#[test]
fn a_compressed_object_of_the_first_release_opens() {
    let plaintext = [b'a'; 20_000];
    let mut sealer = Sealer::new(keys());
    let r = sealer.keys().reference(Kind::Data, &plaintext);
    let object = sealer.seal(Kind::Data, &r, &plaintext, Compress::DEFAULT);
    assert_eq!(
        digest(&object.bytes),
        "a616b80caa5c8a89a7b8c36c780f82a1",
        "the compressor changed: keep the old object here as a file"
    );
    assert_eq!(
        sealer.open(Kind::Data, &r, &object.bytes).as_deref(),
        Ok(&plaintext[..])
    );
}

/// A dependency that moves a border silently kills deduplication against everything stored before.
#[test]
fn cuts() {
    let cut = |sizes| {
        let (mut stream, mut cuts) = (CutStream::with_sizes(keys().cutter(), sizes), Vec::new());
        stream.push(&noise(6 << 20), &mut cuts);
        stream.push(&vec![0; 1 << 20], &mut cuts);
        stream.finish(&mut cuts);
        cuts
    };
    assert_eq!(
        cut(ChunkSizes::DEFAULT),
        [
            545974, 822854, 1092637, 1402971, 1714654, 2126650, 2523791, 3318886, 3718031, 4097622,
            4490802, 4835517, 5182441, 5533646, 5891879, 6282912, 7331488, 7340032
        ]
    );
    // What drives were made with before.
    assert_eq!(
        cut(ChunkSizes::new(224 << 10, 256 << 10, 1 << 20).unwrap()),
        [
            545974, 822854, 1092637, 1402971, 1714654, 2126650, 2523791, 2771447, 3318886, 3718031,
            4097622, 4490802, 4835517, 5182441, 5533646, 5891879, 6282912, 7331488, 7340032
        ]
    );
    assert_eq!(
        cut(ChunkSizes::new(128 << 10, 320 << 10, 1 << 20).unwrap()),
        [
            545974, 738914, 1007747, 1402971, 1934537, 2227402, 2715613, 3318886, 3506418, 3718031,
            4097622, 4490802, 4835517, 5182441, 5340492, 5533646, 5891879, 6282912, 7331488,
            7340032
        ]
    );
}

#[test]
fn local_record() {
    let keys = LocalKeys::derive(&counting(1), &counting(2));
    assert_eq!(
        hex(&keys.seal_record(b"header", 5, b"record")),
        "965f0b15d5e46d261ff429eec1573a520e356392bb2ce7c4c5\
         ed8c457ab364a2f757e0785128b7ab953ed6ea027e8e3768e098c45ae7d313553ce3b5ce83"
    );
}

#[test]
fn slot() {
    let header = SlotHeader {
        kind: SlotKind::Login,
        cost: Argon2Cost {
            memory_kib: 64 << 10,
            passes: 3,
            lanes: 4,
        },
        account: AccountId(counting(10)),
        root_generation: 2,
        slot_generation: 3,
    };
    let ask = Secret::copy_of(&counting(20));
    let slot = seal_slot(
        "pa\u{df}phrase \u{e9}",
        &ask,
        &header,
        &counting(30),
        root().to_bytes().expose(),
    )
    .expect("seals");
    assert_eq!(digest(&slot), "6e15baf7d0e24c8d597061ecb0709a06");
    let expected = Expected {
        kind: SlotKind::Login,
        account: header.account,
        slot_generation: 3,
    };
    let (read, payload) =
        open_slot("pa\u{df}phrase e\u{301}", &ask, &expected, &slot).expect("opens");
    assert_eq!(
        (read, &payload[..]),
        (header, &root().to_bytes().expose()[..])
    );
    assert_eq!(
        hex(slot_fetch_key(&ask).verifying_key().as_bytes()),
        "093c4c0a8b8fab05b9b348bf146d9f85006b39b9934f4b9e05f1e5752cae6e3b"
    );
    assert_eq!(
        hex(root().enrol_key().verifying_key().as_bytes()),
        "4ee41daf2a4f684b2b993e5b45be25ce51fe26bb5d42ce55ca3ad1693b94619d"
    );
}

#[test]
fn key_box_and_kit() {
    let header = BoxHeader {
        account: AccountId(counting(10)),
        domain: DomainId(counting(100)),
        root_generation: 2,
        box_generation: 4,
    };
    assert_eq!(
        digest(&key_box::seal(&root(), &header, &counting(40), &secrets())),
        "e3406b279c8ac54614c5e1963505eba3"
    );
    let kit = Kit {
        account: AccountId(counting(10)),
        server_pk: counting(60),
        ask: Secret::copy_of(&counting(20)),
        address: "drive.example:7447".into(),
    };
    assert_eq!(
        *kit.encode(),
        "0450P3-0D1R7H-048J2C-A1A5GQ-30CHM6-RW3MF1-Y81148-HJ8996-4WM2JF-\
         1X7RZM-0GA28D-24AHJ7-914MMJ-TC9N74-YM2HA9-9N8NAP-AXC5JP-\
         JV2GAH-C5RR34-D1P70X-3RFJ08-924CJ2-A9H750-MJMASC-5MQ2YC-1H68SM-6K7Q5R@drive.example:7447"
    );
}

#[test]
fn commit_body() {
    let body = CommitBody {
        min_format: 2,
        root: keys().reference(Kind::Tree, b"root node"),
        op_seq: 1234,
        next_ino: 77,
        membership: LinkHash(counting(5)),
        time_s: 1_790_000_000,
        time_ns: 5,
        files: 3,
        bytes: 1 << 33,
        heads: vec![Head {
            device: DeviceId(counting(6)),
            seq: 9,
            hash: CommitHash(counting(7)),
        }],
    };
    assert_eq!(digest(&body.encode()), "8705b4c95df175884a7f7f67af7f67b3");
}
