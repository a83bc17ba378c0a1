//! Accounts from the first command to a machine lost and replaced, over real TLS, with an honest server and with one
//! that lies.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod double;

use std::path::PathBuf;
use std::time::Duration;

use double::{Double, Lie};
use sealdrive::account::{
    AccountError, DEFAULT_COMPRESSION, Founded, NewAccount, Numbers, Opened, Recovered, Recovery,
    finish_init, init, recover,
};
use sealdrive::home::{Home, HomeError};
use sealdrive::remote::RemoteError;
use sealdrive::unlock::{UnlockError, Where};
use sealdrive_core::passphrase::Argon2Cost;
use sealdrive_core::slot::SlotError;
use sealdrive_proto::connect::ConnectString;
use zeroize::Zeroizing;

const PASSPHRASE: &str = "correct horse battery";

struct World {
    dir: tempfile::TempDir,
    server: Double,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Double::start(dir.path()).await;
        Self { dir, server }
    }

    fn home(&self, name: &str) -> Home {
        Home::locate(Some(self.dir.path().join(name))).unwrap()
    }

    fn kit(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}-kit.txt"))
    }

    async fn init(&self, name: &str, connect: &ConnectString) -> Result<Founded, AccountError> {
        self.init_asking(name, connect, false).await
    }

    async fn init_asking(
        &self,
        name: &str,
        connect: &ConnectString,
        ask_passphrase: bool,
    ) -> Result<Founded, AccountError> {
        let wanted = NewAccount {
            connect,
            drive: "work",
            compression: DEFAULT_COMPRESSION,
            passphrase: PASSPHRASE,
            ask_passphrase,
            kit: &self.kit(name),
            cost: Argon2Cost::FLOOR,
        };
        init(&self.home(name), &wanted).await
    }

    async fn recover(
        &self,
        name: &str,
        kit: &str,
        passphrase: &str,
    ) -> Result<Recovered, AccountError> {
        let wanted = Recovery {
            kit: &self.kit(kit),
            server: None,
            label: "new machine",
            ask_passphrase: false,
        };
        let ask = || Ok::<_, AccountError>(Zeroizing::new(passphrase.to_owned()));
        recover(&self.home(name), &wanted, &Where::Here, ask).await
    }

    fn open(&self, name: &str, passphrase: &str) -> Result<Opened, AccountError> {
        Opened::open(&self.home(name), &Where::Here, || {
            Ok(Zeroizing::new(passphrase.to_owned()))
        })
    }

    fn is_empty(&self, name: &str) -> bool {
        let names = std::fs::read_dir(self.home(name).dir());
        names.map_or(true, |names| {
            names.flatten().all(|entry| entry.file_name() == "lock")
        })
    }
}

fn tampered<T>(result: Result<T, AccountError>) -> bool {
    matches!(
        result,
        Err(AccountError::Tampered(_)
            | AccountError::Remote(RemoteError::Tampered(_) | RemoteError::WrongServer(_)))
    )
}

#[tokio::test]
async fn a_lost_machine_is_replaced_with_kit_and_passphrase() {
    let world = World::new().await;
    let founded = world.init("first", &world.server.invite()).await.unwrap();
    let first = world.open("first", "").unwrap();
    assert_eq!(
        first.keystore.drive(None).map(|drive| drive.drive),
        Some(founded.drive)
    );

    std::fs::remove_dir_all(world.home("first").dir()).unwrap();
    let back = world.recover("second", "first", PASSPHRASE).await.unwrap();
    assert_eq!(back.account, founded.account);
    assert_eq!(back.drives, [("work".to_owned(), founded.drive)]);
    assert_ne!(back.device, founded.device);
    assert_eq!(back.devices, 2);
    assert_eq!(world.server.chain(&founded.account).devices().len(), 2);

    let second = world.open("second", "").unwrap();
    assert_eq!(
        *second.keystore.secrets.encode(),
        *first.keystore.secrets.encode()
    );
    assert_ne!(
        second.keystore.drives[0].local.expose(),
        first.keystore.drives[0].local.expose(),
        "local keys never leave a machine"
    );

    // A third one later: the second learns of it from the chain.
    world.recover("third", "first", PASSPHRASE).await.unwrap();
    let home = world.home("second");
    let remote = second.remote(
        founded.drive,
        std::sync::Arc::new(Numbers::new(home.clone())),
    );
    let chain = second
        .chain(&home, &remote, Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(chain.devices().len(), 3);
}

#[tokio::test]
async fn what_people_get_wrong_is_said_and_changes_nothing() {
    let world = World::new().await;
    let connect = world.server.invite();

    let wrong = ConnectString {
        tls_fingerprint: Some([1; 32]),
        ..connect.clone()
    };
    assert!(tampered(world.init("a", &wrong).await), "wrong fingerprint");
    assert!(world.is_empty("a") && !world.kit("a").exists());

    let wrong = ConnectString {
        server_pk: [1; 32],
        ..connect.clone()
    };
    assert!(tampered(world.init("a", &wrong).await), "wrong identity");

    let nobody = ConnectString {
        addr: "127.0.0.1:1".to_owned(),
        ..connect.clone()
    };
    let unreachable = world.init("a", &nobody).await;
    assert!(matches!(
        unreachable,
        Err(AccountError::Remote(RemoteError::Unreachable(_)))
    ));
    assert!(matches!(
        world.init("a", &connect.without_invite()).await,
        Err(AccountError::NoInvite)
    ));
    assert!(world.is_empty("a") && !world.kit("a").exists());

    world.init("a", &connect).await.unwrap();
    assert!(
        matches!(world.init("b", &connect).await, Err(AccountError::Invite)),
        "used invitation"
    );
    assert!(
        world.is_empty("b") && !world.kit("b").exists(),
        "a refused registration leaves nothing"
    );
    assert!(matches!(
        world.init("a", &world.server.invite()).await,
        Err(AccountError::Home(HomeError::Occupied(_)))
    ));
    std::fs::write(world.kit("c"), "precious").unwrap();
    assert!(matches!(
        world.init("c", &world.server.invite()).await,
        Err(AccountError::Home(HomeError::Occupied(_)))
    ));
    assert_eq!(std::fs::read(world.kit("c")).unwrap(), b"precious");
    assert!(world.is_empty("c"));

    let refused = world.recover("d", "a", "wrong passphrase").await;
    assert!(matches!(
        refused,
        Err(AccountError::Unlock(UnlockError::Slot(SlotError::Refused)))
    ));
    assert!(world.is_empty("d"));
    let kit = std::fs::read_to_string(world.kit("a")).unwrap();
    let at = kit.find("\n@").unwrap() - 2;
    let digit = if kit.as_bytes()[at] == b'7' { "8" } else { "7" };
    std::fs::write(
        world.kit("typo"),
        format!("{}{digit}{}", &kit[..at], &kit[at + 1..]),
    )
    .unwrap();
    assert!(matches!(
        world.recover("d", "typo", PASSPHRASE).await,
        Err(AccountError::Kit(_))
    ));
    assert!(matches!(
        world.recover("d", "no such", PASSPHRASE).await,
        Err(AccountError::Home(HomeError::Io { .. }))
    ));
    world.recover("d", "a", PASSPHRASE).await.unwrap();
}

#[tokio::test]
async fn a_lying_server_gets_nothing_and_gives_nothing() {
    let world = World::new().await;
    world.init("other", &world.server.invite()).await.unwrap();
    let founded = world.init("a", &world.server.invite()).await.unwrap();
    for lie in [Lie::Identity, Lie::Relay, Lie::KeyBox, Lie::OtherChain] {
        world.server.lie(lie);
        assert!(
            tampered(world.recover("b", "a", PASSPHRASE).await),
            "{lie:?}"
        );
        world.server.be_honest();
        assert!(world.is_empty("b"), "{lie:?}");
    }
    world.server.lie(Lie::Slot);
    let refused = world.recover("b", "a", PASSPHRASE).await;
    assert!(matches!(
        refused,
        Err(AccountError::Unlock(UnlockError::Slot(SlotError::Refused)))
    ));
    world.server.be_honest();
    assert_eq!(
        world.server.chain(&founded.account).devices().len(),
        1,
        "no device was enrolled"
    );

    let home = world.home("a");
    let opened = world.open("a", "").unwrap();
    let numbers = std::sync::Arc::new(Numbers::new(home.clone()));
    let remote = opened.remote(founded.drive, numbers);
    world.server.lie(Lie::ShortChain);
    assert!(
        tampered(opened.chain(&home, &remote, Duration::from_secs(5)).await),
        "chain went back"
    );
    world.server.be_honest();
    opened
        .chain(&home, &remote, Duration::from_secs(5))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_interrupted_registration_is_finished_by_the_next_call() {
    let world = World::new().await;
    let connect = world.server.invite();
    world.server.lie(Lie::SilentRegister);
    let cut = world.init_asking("a", &connect, true).await;
    assert!(matches!(
        cut,
        Err(AccountError::Remote(RemoteError::Unreachable(_)))
    ));
    assert_eq!(world.server.accounts(), 1, "it had arrived");
    assert!(
        world.kit("a").exists(),
        "the kit is kept: the account may exist"
    );
    assert!(matches!(
        world.init("a", &connect).await,
        Err(AccountError::Unfinished(_))
    ));

    world.server.be_honest();
    let ask = |text: &'static str| move || Ok::<_, AccountError>(Zeroizing::new(text.to_owned()));
    let wrong = finish_init(&world.home("a"), &Where::Here, ask("wrong one")).await;
    assert!(matches!(wrong, Err(AccountError::Keystore(_))));
    let founded = finish_init(&world.home("a"), &Where::Here, ask(PASSPHRASE))
        .await
        .unwrap()
        .unwrap();
    assert!(
        finish_init(&world.home("a"), &Where::Here, ask(""))
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(world.server.chain(&founded.account).drives().len(), 1);
    assert_eq!(world.server.accounts(), 1);
    assert!(
        world.open("a", "").is_err(),
        "this keystore asks for the passphrase"
    );
    world.open("a", PASSPHRASE).unwrap();
}

#[tokio::test]
async fn a_server_that_forgot_its_tokens_is_logged_into_again() {
    let world = World::new().await;
    let founded = world.init("a", &world.server.invite()).await.unwrap();
    let (home, opened) = (world.home("a"), world.open("a", "").unwrap());
    let remote = opened.remote(
        founded.drive,
        std::sync::Arc::new(Numbers::new(home.clone())),
    );
    let chain = || opened.chain(&home, &remote, Duration::from_secs(5));
    chain().await.unwrap();
    let before = world.server.logins();
    chain().await.unwrap();
    assert_eq!(world.server.logins(), before, "one login serves many calls");
    world.server.lie(Lie::ForgetTokens);
    chain().await.unwrap();
    assert_eq!(world.server.logins(), before + 1);
}
