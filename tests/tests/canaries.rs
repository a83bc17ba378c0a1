//! Canaries: nothing that is secret is ever seen outside the plaintext: not on the server's disk, not in local state,
//! not on the wire (recorded without TLS), not in any log. Searched raw, in hex and in base64.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};
use sealdrive::account::{AccountError, Opened};
use sealdrive::home::Home;
use sealdrive::unlock::Where;
use sealdrive_core::kit::Kit;
use sealdrive_proto::id::DomainId;
use sealdrive_tests::canary::{Needle, search};
use sealdrive_tests::made::prose;
use sealdrive_tests::proxy::Proxy;
use sealdrive_tests::world::{Machine, PASSPHRASE, Server, World, program};

const NAME: &str = "canary-name-of-file-5d1e8a";
const DIRECTORY: &str = "canary-name-of-directory-77ab02";
const TARGET: &str = "canary-target-of-link-9c30f4";
const XATTR_NAME: &str = "user.canary-xattr-name-1b2c3d";
const XATTR_VALUE: &str = "canary-xattr-value-e4f5a6";
const INLINE: &str = "canary-content-inline-b7c8d9";
const SMALL: &str = "canary-content-small-0a1b2c";
const LARGE: &str = "canary-content-large-3d4e5f";
const DELETED: &str = "canary-content-deleted-6a7b8c";
const OVERWRITTEN: &str = "canary-content-overwritten-9d0e1f";

fn plant(root: &Path) {
    let directory = root.join(DIRECTORY);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join(NAME), INLINE).unwrap();
    setxattr(
        directory.join(NAME),
        XATTR_NAME,
        XATTR_VALUE.as_bytes(),
        XattrFlags::empty(),
    )
    .unwrap();
    symlink(TARGET, directory.join("link")).unwrap();
    // With the canary at many offsets, in text that compresses and in text that does not.
    let with = |canary: &str, length: usize| {
        let mut text = prose(1, length);
        for at in (0..length - 200).step_by(997) {
            text[at..at + canary.len()].copy_from_slice(canary.as_bytes());
        }
        text
    };
    fs::write(directory.join("small"), with(SMALL, 30_000)).unwrap();
    fs::write(directory.join("large"), with(LARGE, 5_000_000)).unwrap();
    fs::write(directory.join("deleted"), with(DELETED, 50_000)).unwrap();
    fs::File::open(directory.join("deleted"))
        .unwrap()
        .sync_all()
        .unwrap();
    fs::remove_file(directory.join("deleted")).unwrap();
    fs::write(directory.join("over"), with(OVERWRITTEN, 50_000)).unwrap();
    fs::File::open(directory.join("over"))
        .unwrap()
        .sync_all()
        .unwrap();
    fs::write(directory.join("over"), vec![b'-'; 50_000]).unwrap();
}

/// What must never be seen: planted strings, the passphrase, the account secret key as bytes and as printed.
fn needles(kit: &Path) -> Vec<Needle> {
    let planted = [
        NAME,
        DIRECTORY,
        TARGET,
        XATTR_NAME,
        XATTR_VALUE,
        INLINE,
        SMALL,
        LARGE,
        DELETED,
        OVERWRITTEN,
        PASSPHRASE,
    ];
    let mut needles: Vec<_> = planted
        .iter()
        .map(|text| Needle::new(*text, text.as_bytes()))
        .collect();
    let text = fs::read_to_string(kit).unwrap();
    // The printed page explains itself in lines with a mark; the rest is the code.
    let code: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let kit = Kit::parse(&code).unwrap();
    needles.push(Needle::new("account secret key", kit.ask.expose()));
    let dense: String = kit
        .encode()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    // The digits of the account secret key: what stands before them names account and server, which are no secrets.
    needles.push(Needle::new("recovery kit", &dense.as_bytes()[110..150]));
    needles
}

/// An enrolled machine's account, opened as its own programs open it.
fn open(machine: &Machine) -> Opened {
    let home = Home::locate(Some(machine.home())).unwrap();
    let place = Where::Process(program("sealdrive"));
    Opened::open(&home, &place, || {
        Err(AccountError::Tampered("asked for a passphrase".into()))
    })
    .unwrap()
}

/// The domain, which every object names in clear.
fn domain(machine: &Machine) -> DomainId {
    open(machine).domain()
}

/// The keys of an enrolled machine.
fn keys(machine: &Machine) -> Vec<Needle> {
    let opened = open(machine);
    let keys = &opened.keystore;
    let mut needles = vec![Needle::new("device signing key", keys.device_seed.expose())];
    // Version, K_id, K_cdc, count; then for each epoch its number, R_in and R_out.
    let secrets = keys.secrets.encode();
    for (name, at) in [("K_id", 1), ("K_cdc", 33), ("R_in", 73), ("R_out", 105)] {
        needles.push(Needle::new(name, &secrets[at..at + 32]));
    }
    for drive in &keys.drives {
        needles.push(Needle::new("local key, inner", &drive.local.expose()[..32]));
        needles.push(Needle::new("local key, outer", &drive.local.expose()[32..]));
    }
    needles
}

#[test]
fn no_canary_leaves_the_plaintext() {
    let world = World::new();
    let mut server = Server::start_plaintext(&world.path("server"));
    let proxy = Proxy::start(server.address()).unwrap();
    proxy.record();
    let machine = world.machine("machine");
    machine.init(&server.invite_at(proxy.address()));
    let kit = world.path("printed-kit.txt");
    fs::rename(machine.kit(), &kit).unwrap();
    let mut needles = needles(&kit);
    needles.extend(keys(&machine));

    let mounted = machine.mount();
    plant(mounted.path());
    // Positive control: the search does see what is readable.
    let control = search(&mounted.path().join(DIRECTORY), &needles).unwrap();
    for wanted in [NAME, INLINE, SMALL, LARGE] {
        assert!(
            control.found.iter().any(|(name, _)| name == wanted),
            "the search is blind to {wanted}"
        );
    }
    machine.sync();
    let mut found = Vec::new();
    // While mounted: journal, outbox, cache and index as a thief of the running machine's disk finds them.
    found.extend(search(&machine.home(), &needles).unwrap().found);
    machine.umount(mounted);
    let fresh = world.machine("fresh");
    fresh.recover(&kit);
    let mounted = fresh.mount();
    let read = fs::read(mounted.path().join(DIRECTORY).join("large")).unwrap();
    assert_eq!(read.len(), 5_000_000);
    let said = [mounted.daemon.said(), server.said()].concat();
    fresh.umount(mounted);
    server.stop();

    for place in [machine.home(), fresh.home(), server.data().to_owned()] {
        let searched = search(&place, &needles).unwrap();
        assert!(
            searched.files > 3,
            "{} holds {} files only",
            place.display(),
            searched.files
        );
        found.extend(searched.found);
    }
    let wire = proxy.recorded();
    assert!(
        wire.len() > 1_000_000,
        "only {} bytes were recorded",
        wire.len()
    );
    // Positive controls: the recording is HTTP/2 without TLS, and holds objects as they are stored.
    assert!(
        Needle::new("preface", b"PRI * HTTP/2.0").is_in(&wire),
        "the recording is not plain HTTP/2"
    );
    assert!(
        Needle::new("domain", domain(&machine).as_bytes()).is_in(&wire),
        "no object was recorded"
    );
    for needle in &needles {
        if needle.is_in(&wire) {
            found.push((needle.name.clone(), "the wire".into()));
        }
        if needle.is_in(said.as_bytes()) {
            found.push((needle.name.clone(), "a log".into()));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
