//! The home directory: private, whole, and there twice.

use super::*;

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = Home::locate(Some(dir.path().join("h"))).expect("a path was given");
    (dir, home)
}

fn profile() -> Profile {
    Profile {
        version: 1,
        account: "ab".repeat(32),
        device: "cd".repeat(16),
        server: "sealdrive://localhost:1/#x".to_owned(),
        ask_passphrase: false,
    }
}

#[test]
fn files_are_private_whole_and_never_replaced_by_accident() {
    let (_dir, home) = home();
    home.write_new("keystore", b"one").expect("the first write");
    assert!(matches!(
        home.write_new("keystore", b"two"),
        Err(HomeError::Occupied(_))
    ));
    assert_eq!(
        home.read("keystore").expect("still there").as_slice(),
        b"one"
    );
    home.replace("keystore", b"two")
        .expect("a wanted replacement");
    assert_eq!(home.read("keystore").expect("replaced").as_slice(), b"two");
    let mode = |path: &Path| std::fs::metadata(path).expect("exists").mode() & 0o777;
    assert_eq!(mode(&home.dir().join("keystore")), 0o600);
    assert_eq!(mode(home.dir()), 0o700);
    let mut names: Vec<_> = std::fs::read_dir(home.dir())
        .expect("lists")
        .map(|e| e.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["copies", "keystore"], "nothing is left aside");
    home.remove("keystore").expect("removes");
    assert!(home.read("keystore").is_err(), "its copy went with it");
}

/// A flipped bit in the keystore took with it everything in the journal that no server had.
#[test]
fn each_file_survives_the_loss_of_either_copy() {
    let (_dir, home) = home();
    home.write_new("keystore", b"sealed keys").expect("writes");
    let places = [
        home.dir().join("keystore"),
        home.dir().join(COPIES).join("keystore"),
    ];
    for path in &places {
        let good = std::fs::read(path).expect("is there");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(path, bad).expect("damages it");
            assert_eq!(
                home.read("keystore").expect("healed").as_slice(),
                b"sealed keys"
            );
            assert_eq!(std::fs::read(path).expect("is there"), good, "byte {at}");
        }
        std::fs::remove_file(path).expect("removes it");
        assert_eq!(
            home.read("keystore").expect("healed").as_slice(),
            b"sealed keys"
        );
        assert_eq!(std::fs::read(path).expect("is there"), good);
    }
}

#[test]
fn a_home_open_to_others_is_closed_and_a_foreign_version_refused() {
    let (_dir, home) = home();
    assert!(matches!(home.profile(), Err(HomeError::Empty(_))));
    std::fs::create_dir(home.dir()).expect("makes it");
    std::fs::set_permissions(home.dir(), std::fs::Permissions::from_mode(0o755)).expect("opens it");
    home.write_profile(&profile()).expect("writes");
    assert_eq!(
        std::fs::metadata(home.dir()).expect("exists").mode() & 0o777,
        0o700
    );
    assert_eq!(home.profile().expect("reads back"), profile());
    home.replace(
        PROFILE,
        &toml::to_string(&Profile {
            version: 9,
            ..profile()
        })
        .expect("text")
        .into_bytes(),
    )
    .expect("replaces");
    assert!(matches!(home.profile(), Err(HomeError::Damaged { .. })));
}

#[test]
fn one_command_at_a_time() {
    let (_dir, home) = home();
    let held = home.lock().expect("free");
    assert!(matches!(home.lock(), Err(HomeError::Busy(_))));
    drop(held);
    home.lock().expect("free again");
}

#[test]
fn a_deep_home_still_gets_a_socket_address_that_fits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let deep = Home::locate(Some(dir.path().join("d".repeat(120)))).expect("a path was given");
    let socket = deep.socket(&DriveId([7; 32])).expect("a path");
    assert!(socket.as_os_str().len() <= MAX_SOCKET_PATH);
    std::fs::remove_dir(socket.parent().expect("has one")).expect("removes what it made");
}
