//! Random operations on a mounted drive and on the native file system: every answer and both trees are the same, also
//! after a remount, after the loss of the kernel's caches, after kill -9, and on another machine.
//!
//! `SEALDRIVE_MODEL_SEED` and `SEALDRIVE_MODEL_STEPS` repeat or lengthen a run; a failure prints its seed.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;

use sealdrive_tests::compare::{Care, compare_with};
use sealdrive_tests::made::Noise;
use sealdrive_tests::twins::{Answer, apply, draw};
use sealdrive_tests::world::{Machine, Mounted, World};

/// Steps of one run here.
const STEPS: u64 = 2500;
/// Steps between two disturbances.
const BETWEEN: u64 = 250;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn compare(native: &Path, ours: &Path, place: &str) {
    // The trees were made at different moments, and ext4 keeps reserved space as unwritten extents.
    let report = compare_with(
        Care {
            times: false,
            holes: false,
        },
        native,
        ours,
    )
    .unwrap();
    assert!(report.count == 0, "{place}: {:#?}", report.differences);
}

fn tell(answer: &Answer) -> String {
    match answer {
        Ok(bytes) if bytes.len() <= 64 => format!("{:?}", String::from_utf8_lossy(bytes)),
        Ok(bytes) => format!("{} bytes", bytes.len()),
        Err(errno) => format!("{}", std::io::Error::from_raw_os_error(*errno)),
    }
}

/// Something that a correct file system does not notice.
fn disturb(kind: u64, machine: &Machine, mounted: Mounted) -> Mounted {
    match kind {
        0 => {
            machine.umount(mounted);
            machine.mount()
        }
        1 => {
            drop(fs::write("/proc/sys/vm/drop_caches", "3"));
            mounted
        }
        2 => {
            machine.sync();
            mounted
        }
        _ => {
            // fsync of the root journals everything before it.
            rustix::fs::syncfs(File::open(mounted.path()).unwrap()).unwrap();
            File::open(mounted.path()).unwrap().sync_all().unwrap();
            mounted.kill();
            machine.mount()
        }
    }
}

#[test]
fn a_drive_answers_as_the_native_file_system_does() {
    let seed = number("SEALDRIVE_MODEL_SEED", 1);
    let steps = number("SEALDRIVE_MODEL_STEPS", STEPS);
    let world = World::new();
    let native = world.path("native");
    fs::create_dir(&native).unwrap();
    let (_server, machine, mut mounted) = world.mounted();
    fs::create_dir(mounted.path().join("root")).unwrap();
    let ours = mounted.path().join("root");
    let mut noise = Noise::new(seed);
    for at in 1..=steps {
        let step = draw(&mut noise);
        let (is, should) = (apply(&step, &ours), apply(&step, &native));
        assert!(
            is == should,
            "seed {seed}, step {at}, {step:?}: ours says {}, the native file system {}",
            tell(&is),
            tell(&should)
        );
        if at % BETWEEN == 0 {
            let kind = at / BETWEEN % 4;
            mounted = disturb(kind, &machine, mounted);
            compare(
                &native,
                &ours,
                &format!("seed {seed}, after step {at} and disturbance {kind}"),
            );
        }
    }
    machine.sync();
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    let there = fresh.mount();
    compare(
        &native,
        &there.path().join("root"),
        &format!("seed {seed}, on another machine"),
    );
}
