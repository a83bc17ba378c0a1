//! How the mount serves: waiting off the loops, damage, defects, state, fsync, read-ahead, and the ways to its end.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod double;

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use double::mounted::Mounted;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use sealdrive::mount::record::{self, Record};
use sealdrive::mount::{Ended, table};
use sealdrive::umount::{Outcome, Request, UmountError, umount};

const STATE: &str = "user.sealdrive.state";

fn state(path: &Path) -> Result<String, Errno> {
    let mut value = [0; 32];
    let len = rustix::fs::getxattr(path, STATE, &mut value[..])?;
    Ok(String::from_utf8(value[..len].to_vec()).expect("the state is text"))
}

fn code(error: &std::io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}

/// Unmounts; tries again while a child that another test is just starting holds copies of our descriptors.
fn when_free(request: &Request) -> Outcome {
    for _ in 0..100 {
        match umount(request, &mut |_| {}) {
            Err(UmountError::Busy(_)) => thread::sleep(Duration::from_millis(20)),
            other => return other.expect("it unmounts"),
        }
    }
    panic!("busy for two seconds");
}

#[test]
fn slow_content_does_not_slow_down_the_rest() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    for index in 0..40 {
        fs::write(mount.at(&format!("far{index}")), vec![index; 300_000]).unwrap();
    }
    fs::write(mount.at("near"), "near").unwrap();
    mount.settle();
    fs::metadata(mount.at("near")).unwrap();
    mount.double.delay_ms.store(1500, Ordering::Relaxed);
    mount.double.far.store(true, Ordering::Relaxed);
    // More readers than there are loop threads and network threads together.
    let readers: Vec<_> = (0..40)
        .map(|index: u8| {
            let path = mount.at(&format!("far{index}"));
            thread::spawn(move || {
                fs::read(path).is_ok_and(|content| content == vec![index; 300_000])
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    let before = Instant::now();
    for round in 0..20 {
        fs::metadata(mount.at("near")).unwrap();
        fs::write(mount.at(&format!("new{round}")), "written meanwhile").unwrap();
        File::open(mount.at(&format!("new{round}")))
            .unwrap()
            .sync_all()
            .unwrap();
    }
    let took = before.elapsed();
    mount.double.delay_ms.store(0, Ordering::Relaxed);
    assert!(
        took < Duration::from_millis(1000),
        "everything else waited {took:?}"
    );
    for reader in readers {
        assert!(reader.join().unwrap(), "what came slowly came right");
    }
    mount.end();
}

#[test]
fn content_that_does_not_come_in_time_is_an_error_of_its_own() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("far"), vec![1; 300_000]).unwrap();
    mount.settle();
    mount.double.far.store(true, Ordering::Relaxed);
    mount.double.delay_ms.store(3_600_000, Ordering::Relaxed);
    let error = fs::read(mount.at("far")).unwrap_err();
    assert_eq!(code(&error), Some(Errno::TIMEDOUT));
    let patience = mount.double.patience_ms.load(Ordering::Relaxed);
    assert!((25_000..=30_000).contains(&patience), "{patience} ms");
    assert!(
        mount
            .double
            .events
            .lock()
            .unwrap()
            .iter()
            .any(|event| event.contains("in time"))
    );
    mount.double.delay_ms.store(0, Ordering::Relaxed);
    assert_eq!(
        fs::read(mount.at("far")).unwrap(),
        vec![1; 300_000],
        "and it comes when it can"
    );
    mount.end();
}

#[test]
fn damage_is_an_error_and_an_event_and_never_other_bytes() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("bad"), vec![1; 300_000]).unwrap();
    fs::write(mount.at("small"), "in the tree").unwrap();
    mount.settle();
    mount.double.damaged.store(true, Ordering::Relaxed);
    assert_eq!(
        code(&fs::read(mount.at("bad")).unwrap_err()),
        Some(Errno::IO)
    );
    assert_eq!(
        fs::read_to_string(mount.at("small")).unwrap(),
        "in the tree"
    );
    assert!(
        mount
            .double
            .events
            .lock()
            .unwrap()
            .iter()
            .any(|event| event.contains("damaged"))
    );
    mount.double.damaged.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(mount.at("bad")).unwrap(), vec![1; 300_000]);
    mount.end();
}

#[test]
fn a_defect_costs_one_request() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("f"), "content").unwrap();
    mount.double.defective.store(true, Ordering::Relaxed);
    // More often than there are threads: each must survive.
    for _ in 0..40 {
        assert_eq!(state(&mount.at("f")), Err(Errno::IO));
    }
    mount.double.defective.store(false, Ordering::Relaxed);
    assert!(state(&mount.at("f")).is_ok());
    assert!(
        mount
            .double
            .events
            .lock()
            .unwrap()
            .iter()
            .any(|event| event.contains("defect"))
    );
    assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), "content");
    mount.end();
}

#[test]
fn the_state_of_a_file_is_an_attribute_that_is_not_stored() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let path = mount.at("f");
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all_at(b"content", 0).unwrap();
    mount.settle();
    assert_ne!(
        state(&path).unwrap(),
        "committed",
        "more may come through the open handle"
    );
    drop(file);
    mount.settle();
    assert_eq!(state(&path).unwrap(), "committed");
    assert_eq!(rustix::fs::listxattr(&path, &mut [0u8; 100][..]), Ok(0));
    assert_eq!(
        rustix::fs::setxattr(&path, STATE, b"x", XattrFlags::empty()),
        Err(Errno::PERM)
    );
    fs::write(&path, "changed").unwrap();
    assert!(["dirty", "journaled", "sent", "committed"].contains(&state(&path).unwrap().as_str()));
    mount.end();
}

#[test]
fn fsync_of_files_and_directories_reaches_the_journal() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(mount.at("f"))
        .unwrap();
    file.write_all_at(b"content", 0).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    File::open(mount.path()).unwrap().sync_all().unwrap();
    drop(file);
    assert!(mount.double.syncs.load(Ordering::Relaxed) >= 3);
    mount.end();
}

#[test]
fn a_sequential_reader_is_read_ahead_for() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("large"), vec![3; 40 << 20]).unwrap();
    mount.settle();
    let file = File::open(mount.at("large")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    for at in 0..20 {
        file.read_exact_at(&mut buffer, at << 20).unwrap();
    }
    let asked = mount.double.prefetched.load(Ordering::Relaxed);
    // 28 MiB in chunks of 200 KiB are 143; equal content makes some of them one.
    assert!(asked > 0, "nothing was asked for ahead");
    drop(file);
    mount.end();
}

#[test]
fn a_busy_umount_changes_nothing_and_a_free_one_waits_for_the_drain() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let request = Request {
        mountpoint: mount.path().into(),
        lazy: false,
        wait: None,
        quiet: true,
    };
    let open = File::create(mount.at("open")).unwrap();
    let error = umount(&request, &mut |_| {}).unwrap_err();
    assert!(matches!(error, UmountError::Busy(_)), "{error}");
    open.write_all_at(b"still served", 0).unwrap();
    drop(open);
    let row = table::at(mount.path()).unwrap().unwrap();
    assert!(Record::find(&record::directory(), &row.device).is_some());
    assert_eq!(when_free(&request), Outcome::Drained);
    assert!(table::at(mount.path()).unwrap().is_none());
    assert!(matches!(
        umount(&request, &mut |_| {}),
        Err(UmountError::NotMounted(_))
    ));
    assert_eq!(mount.join(), Ended::Drained);
}

#[test]
fn what_the_server_lacks_is_said_at_umount() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    mount.double.pending.store(12_345, Ordering::Relaxed);
    let request = Request {
        mountpoint: mount.path().into(),
        lazy: false,
        wait: None,
        quiet: true,
    };
    let outcome = when_free(&request);
    assert_eq!(
        (outcome, outcome.exit_code()),
        (Outcome::Pending { bytes: 12_345 }, 23)
    );
    assert_eq!(mount.join(), Ended::Pending { bytes: 12_345 });
}

#[test]
fn a_lazy_umount_serves_on_until_the_last_user_leaves() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.at("f"))
        .unwrap();
    let request = Request {
        mountpoint: mount.path().into(),
        lazy: true,
        wait: None,
        quiet: true,
    };
    assert_eq!(umount(&request, &mut |_| {}).unwrap(), Outcome::Unknown);
    assert!(table::at(mount.path()).unwrap().is_none());
    file.write_all_at(b"after the name was gone", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(mount.join(), Ended::Drained);
}

#[test]
fn the_mount_table_and_umount_know_what_it_is() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    let row = table::at(mount.path()).unwrap().unwrap();
    assert_eq!(
        (row.fs_type.as_str(), row.source.as_str()),
        ("fuse.sealdrive", "sealdrive:test")
    );
    if rustix::process::geteuid().is_root() {
        let utab = fs::read_to_string("/run/mount/utab").unwrap();
        assert!(utab.contains(mount.path().to_str().unwrap()), "{utab}");
        let read_ahead =
            fs::read_to_string(format!("/sys/class/bdi/{}/read_ahead_kb", row.device)).unwrap();
        assert_eq!(read_ahead.trim(), "1024");
    }
    let second = sealdrive::mount::place::look(mount.path());
    assert!(second.is_err(), "not twice in one place");
    let place = mount.path().to_owned();
    mount.end();
    if rustix::process::geteuid().is_root() {
        assert!(
            !fs::read_to_string("/run/mount/utab")
                .unwrap()
                .contains(place.to_str().unwrap())
        );
    }
}

#[test]
fn an_unknown_ioctl_is_refused_politely() {
    let Some(mount) = Mounted::new("") else {
        return;
    };
    fs::write(mount.at("f"), "").unwrap();
    // lsattr asks by ioctl; "Inappropriate ioctl" (or "not supported") is an answer, a hang or EIO is not.
    if let Ok(output) = Command::new("lsattr").arg(mount.at("f")).output() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!words.contains("Input/output"), "{words}");
    }
    assert_eq!(
        fs::read_dir(mount.at("f")).unwrap_err().kind(),
        ErrorKind::NotADirectory
    );
    mount.end();
}
