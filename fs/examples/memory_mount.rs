//! A mount whose content lives in memory and is gone afterwards: to try the kernel surface, and for conformance suites
//! that need nothing else. `memory_mount MOUNTPOINT [OPTIONS]`, ended by umount or a signal.

#[path = "../tests/double/mod.rs"]
mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sealdrive::mount::options::MountOptions;
use sealdrive::mount::{Spec, serve};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mountpoint = args
        .next()
        .ok_or_else(|| anyhow::anyhow!("memory_mount MOUNTPOINT [OPTIONS]"))?;
    let (options, others) = MountOptions::parse(args);
    let far = others.iter().any(|other| other.name == "far");
    let (double, _worker) = double::Double::start();
    double.far.store(far, Ordering::Relaxed);
    double.far_nodes.store(far, Ordering::Relaxed);
    let spec = Spec {
        label: "memory".into(),
        mountpoint: mountpoint.into(),
        options,
        drain_limit: Duration::from_secs(60),
        umount_wait: None,
    };
    let ended = serve(Arc::clone(&double), &spec, || println!("ready"))?;
    println!(
        "{ended:?}; checkpoints {}",
        double.checkpoints.load(Ordering::Relaxed)
    );
    for event in double.events.lock().expect("no thread is left").iter() {
        println!("event: {event}");
    }
    Ok(())
}
