//! Threads of one machine that meet at one place, which a workload seldom brings about: in each world another of the
//! orders in which they may take their turns.
//!
//! Invariant: nothing goes wrong but what is told here; the dice only decide who runs. Called by `tests/simulation.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sealdrive::engine::Engine;
use sealdrive_runtime::simulation::{Outcome, World};
use sealdrive_runtime::{thread, time};

use super::disk::Disk;
use super::drive::Mounted;
use super::network::Weather;
use super::world::{CLIENT, SERVER, Scene};

/// Checkpoints in one world.
const ROUNDS: u64 = 4;
/// Threads that ask.
const ASKING: usize = 3;
/// No request gets through.
const AWAY: Weather = Weather {
    lost_requests: 1000,
    ..Weather::FAIR
};

/// While a checkpoint is made others ask all the time whether what it holds is on the server, which is away: it never
/// is.
pub fn ask_while_a_checkpoint_is_made(seed: u64) -> Outcome<()> {
    World::run(seed, |world| {
        let scene = Scene::new(world, &[CLIENT, SERVER]);
        scene.with_server(|| {
            scene.calm();
            let (machine, disk) = scene.rack.machine(CLIENT, None);
            let mine = scene.clone();
            let work = machine.spawn("work", move || ask(&mine, &disk)).unwrap();
            work.join().expect("nothing is called safe");
            machine.wait_dead();
        });
    })
}

fn ask(scene: &Scene, disk: &Disk) {
    let mounted = Arc::new(Mounted(Engine::open(scene.config(disk, 1)).unwrap()));
    let hour = || time::now() + Duration::from_secs(3600);
    for round in 0..ROUNDS {
        scene.network.set_weather(Weather::FAIR);
        assert_eq!(mounted.0.sync_server(hour(), |_| true), Ok(()));
        scene.network.set_weather(AWAY);
        let name = format!("f{round}");
        let handle = mounted.create(&name).unwrap();
        mounted.write(&name, 0, name.as_bytes()).unwrap();
        mounted.release(handle);
        let over = Arc::new(AtomicBool::new(false));
        let others: Vec<_> = (0..ASKING)
            .map(|_| {
                let (mounted, over) = (Arc::clone(&mounted), Arc::clone(&over));
                let look = move || {
                    while !over.load(Ordering::SeqCst) {
                        let asked = mounted.0.sync_server(time::now(), |_| true);
                        assert!(asked.is_err(), "round {round}: {:#?}", mounted.0.status());
                    }
                };
                thread::spawn("asks", look).unwrap()
            })
            .collect();
        let is_clean = || mounted.0.status().is_clean;
        while !is_clean() {
            thread::sleep(Duration::from_millis(1));
        }
        over.store(true, Ordering::SeqCst);
        others.into_iter().for_each(|other| other.join().unwrap());
    }
    scene.network.set_weather(Weather::FAIR);
    assert_eq!(mounted.0.shutdown(hour()), Ok(()));
}
