//! Garbage under an id of ours: another device of the account, or the server, was there first. It is noticed, stepped
//! around, and in no restore point. And garbage in our own outbox, under a checksum that is right.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use engine_support::packs::{RECORD_HEAD, objects_in};
use engine_support::{World, device, noise, soon};
use sealdrive::drive::PlanPiece;
use sealdrive::engine::{BlobError, EventKind};
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::Sid;

/// A server that holds garbage under every id that a machine comes to which writes this as its first file.
fn poisoned(content: &[u8]) -> World {
    let world = World::new();
    let victim = world.mount("probe", 1);
    victim.write("/file", content);
    victim.sync();
    drop(victim);
    let honest = std::mem::take(&mut world.server.disk().objects);

    let world = World::new();
    for (sid, object) in honest {
        let mut garbage = object.to_vec();
        let last = garbage.len() - 1;
        garbage[last] ^= 1;
        let garbage = Bytes::from(garbage);
        world.server.disk().objects.insert(sid, garbage);
    }
    world
}

#[test]
fn poison_is_noticed_and_no_commit_goes_out_before_what_is_sealed_anew() {
    let content = noise(9, 200_000);
    let world = poisoned(&content);
    // What is sealed anew has an id that nobody knows: it comes late.
    let server = Arc::downgrade(&world.server);
    let late = move |object: &Bytes| {
        let sid: Sid = ObjectHeader::parse(object).unwrap().sid;
        let server = server.upgrade().unwrap();
        let is_known = server.disk().objects.contains_key(&sid);
        if !is_known {
            thread::sleep(Duration::from_secs(1));
        }
        false
    };
    *world.server.faults.refuse.lock().unwrap() = Some(Box::new(late));
    let machine = world.mount("one", 1);
    machine.write("/file", &content);
    machine.sync();
    // At once: what the server has at this moment is all that another machine would find.
    let server = world.server.snapshot();
    machine.told(EventKind::Poisoned);
    drop(machine);
    let mut config = world.config("two", 2);
    config.remote = Some(server.connect(device(2)));
    assert_eq!(world.try_mount(config).unwrap().read("/file"), content);
}

/// Flips a bit of the largest object in a pack, and makes its checksum right.
fn forge(pack: &mut [u8]) {
    let largest = objects_in(pack)
        .into_iter()
        .max_by_key(ExactSizeIterator::len);
    let object = largest.unwrap();
    pack[object.start + object.len() / 2] ^= 1;
    // Of all that follows it: length and checksum stand first, four bytes each.
    let head = object.start - RECORD_HEAD;
    let sum = crc32c::crc32c(&pack[head + 8..object.end]);
    pack[head + 4..head + 8].copy_from_slice(&sum.to_le_bytes());
}

/// A copy that does not open is fetched anew, because the server has it. This is no copy: nobody else has it, so it is
/// lost, and not something that a server would have if only it were reached.
#[test]
fn an_object_of_the_outbox_that_does_not_open_is_lost_and_not_taken_for_a_copy() {
    let content = noise(9, 200_000);
    let world = World::new();
    world.mount("one", 1).unmount();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let machine = world.mount("one", 1);
    machine.write("/file", &content);
    assert!(machine.engine.sync_server(soon(2), |_| true).is_err());
    drop(machine);
    let packs = std::fs::read_dir(world.path("one").join("outbox")).unwrap();
    let packs = packs.map(|entry| entry.unwrap().path());
    let pack = packs.max_by_key(|path| path.metadata().unwrap().len());
    let pack = pack.unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    forge(&mut bytes);
    std::fs::write(&pack, bytes).unwrap();

    let machine = world.mount("one", 1);
    let ino = machine.ino("/file").unwrap();
    let plan = machine.op(|d| d.read_plan(ino, 0, u64::MAX)).unwrap();
    let [PlanPiece::Chunk { reference, .. }] = plan.pieces[..] else {
        panic!("one chunk: {:?}", plan.pieces)
    };
    // Each time: it is not forgotten that it was lost.
    for _ in 0..2 {
        let read = machine.engine.chunk(&reference, soon(90));
        assert_eq!(read, Err(BlobError::Lost));
    }
    machine.told(EventKind::OutboxDamage);
}
