//! A real mount of the double for one test, taken away whatever happens.
//!
//! Invariant: a test that panics leaves no mount; a machine without FUSE says so on its output. Used by the mount
//! tests.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "tests; each user needs a part of it"
)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sealdrive::mount::attach::{Detach, detach};
use sealdrive::mount::options::MountOptions;
use sealdrive::mount::{Ended, Spec, serve};

use super::{Double, Worker};

pub struct Mounted {
    pub double: Arc<Double>,
    worker: Option<Worker>,
    served: Option<JoinHandle<Ended>>,
    place: tempfile::TempDir,
}

impl Mounted {
    /// Mounts with `options`; `None`, after saying why, where FUSE or root is missing.
    pub fn new(options: &str) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            println!("SKIPPED: /dev/fuse is missing, nothing was tested");
            return None;
        }
        if !rustix::process::geteuid().is_root() && !options.is_empty() {
            println!("SKIPPED: the options {options} need root, nothing was tested");
            return None;
        }
        let (double, worker) = Double::start();
        let place = tempfile::tempdir().unwrap();
        let spec = Spec {
            label: "test".into(),
            mountpoint: place.path().to_owned(),
            options: MountOptions::parse([options]).0,
            drain_limit: Duration::from_secs(20),
            umount_wait: None,
        };
        let (ready, up) = mpsc::channel();
        let backing = Arc::clone(&double);
        let served =
            thread::spawn(move || serve(backing, &spec, || ready.send(()).unwrap()).unwrap());
        up.recv_timeout(Duration::from_secs(20))
            .expect("the mount comes up");
        Some(Self {
            double,
            worker: Some(worker),
            served: Some(served),
            place,
        })
    }

    pub fn path(&self) -> &Path {
        self.place.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Puts everything out of memory, the kernel's included, so that what is read next was stored and found again.
    pub fn settle(&self) {
        sealdrive::mount::flush_kernel(self.path()).unwrap();
        let done = || {
            self.double
                .checkpoints
                .load(std::sync::atomic::Ordering::Relaxed)
        };
        let enough = done() + 2;
        for _ in 0..4000 {
            if done() >= enough {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert!(done() >= enough, "the double makes no checkpoints any more");
        // Best effort and root only; without it the kernel may answer from its pages.
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    }

    /// Unmounts and returns how it ended.
    pub fn end(mut self) -> Ended {
        // A child that another test is just starting holds copies of all descriptors for a moment.
        let mut tries = 0;
        while let Err(error) = detach(self.path(), Detach::Now) {
            tries += 1;
            assert!(tries < 100, "nothing of the test is open any more: {error}");
            thread::sleep(Duration::from_millis(20));
        }
        self.served.take().unwrap().join().unwrap()
    }

    /// Waits for the end of a mount that the test took away itself.
    pub fn join(mut self) -> Ended {
        self.served.take().unwrap().join().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The worker first: it needs nothing of the mount, and must not outlive a failed test.
        self.worker = None;
        if let Some(served) = self.served.take() {
            let _ = detach(self.place.path(), Detach::Lazily);
            let _ = served.join();
        }
    }
}
