//! Garbage under an id of ours: another device of the account, or the server, was there first. It is noticed, stepped
//! around, and in no restore point.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use engine_support::{World, device, noise};
use sealdrive::engine::EventKind;
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
