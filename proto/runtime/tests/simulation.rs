//! The scheduler's own promises: one seed is one world, no wake is lost, time is virtual, the dead are dead.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealdrive_runtime::channel::{RecvTimeoutError, TrySendError, sync_channel};
use sealdrive_runtime::simulation::{Machine, World};
use sealdrive_runtime::sync::{Condvar, Mutex, RwLock};
use sealdrive_runtime::{channel, entropy, task, thread, time};
use tokio::sync::{Notify, mpsc, watch};

const SECOND: Duration = Duration::from_secs(1);

/// Threads, locks, channels, tasks, timers and entropy, all at once; returns what came of it.
fn busy(world: &World) -> Vec<u64> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let (send, receive) = sync_channel::<u64>(2);
    let threads: Vec<_> = (0..3u64)
        .map(|n| {
            let (log, send) = (Arc::clone(&log), send.clone());
            thread::spawn("producer", move || {
                for step in 0..5 {
                    log.lock().unwrap().push(n * 100 + step);
                    send.send(n).unwrap();
                    thread::sleep(Duration::from_millis(n * 3));
                }
            })
            .unwrap()
        })
        .collect();
    drop(send);
    let mut out = Vec::new();
    while let Ok(n) = receive.recv() {
        out.push(n);
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    let runtime = task::runtime(2, "tasks").unwrap();
    let bell = Arc::new(Notify::new());
    let tasks: Vec<_> = (0..4u64)
        .map(|n| {
            let (log, bell) = (Arc::clone(&log), Arc::clone(&bell));
            runtime.spawn(async move {
                bell.notified().await;
                time::sleep(Duration::from_millis(10)).await;
                task::spawn_blocking(move || log.lock().unwrap().push(1000 + n))
                    .await
                    .unwrap();
                n
            })
        })
        .collect();
    runtime.block_on(async {
        time::sleep(SECOND).await;
        bell.notify_waiters();
        for task in tasks {
            out.push(task.await.unwrap());
        }
    });
    let mut random = [0; 8];
    entropy::fill(&mut random).unwrap();
    out.push(u64::from_le_bytes(random));
    out.extend(log.lock().unwrap().iter());
    world.note("end", &random);
    out
}

#[test]
fn one_seed_is_one_world_and_another_seed_another() {
    let mut digests = BTreeSet::new();
    let mut outputs = BTreeSet::new();
    for seed in 0..60 {
        let (first, second) = (World::run(seed, busy), World::run(seed, busy));
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.result, second.result, "seed {seed}");
        digests.insert(first.digest);
        outputs.insert(first.result.unwrap());
    }
    assert_eq!((digests.len(), outputs.len()), (60, 60));
}

#[test]
fn a_lost_update_is_found_by_some_seeds_and_a_lock_prevents_it() {
    let race = |locked: bool| {
        move |_: &World| {
            let value = Arc::new(AtomicU64::new(0));
            let lock = Arc::new(Mutex::new(()));
            let add = |_| {
                let (value, lock) = (Arc::clone(&value), Arc::clone(&lock));
                thread::spawn("adds", move || {
                    let _held = locked.then(|| lock.lock().unwrap());
                    let before = value.load(Ordering::SeqCst);
                    thread::yield_point();
                    value.store(before + 1, Ordering::SeqCst);
                })
                .unwrap()
            };
            let threads: Vec<_> = (0..2).map(add).collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            value.load(Ordering::SeqCst)
        }
    };
    let ends = |locked| -> BTreeSet<u64> {
        let worlds = (0..100).map(|seed| World::run(seed, race(locked)).result.unwrap());
        worlds.collect()
    };
    assert_eq!(ends(false), BTreeSet::from([1, 2]));
    assert_eq!(ends(true), BTreeSet::from([2]));
}

#[test]
fn a_deadlock_is_reported_with_what_each_waits_for() {
    let outcome = World::run(7, |_| {
        let lock = Arc::new(Mutex::new(0));
        let held = lock.lock().unwrap();
        let other = Arc::clone(&lock);
        let waiter = thread::spawn("waiter", move || *other.lock().unwrap());
        let end = waiter.unwrap().join();
        drop(held);
        end.is_ok()
    });
    let report = outcome.result.unwrap_err();
    assert!(report.contains("deadlock"), "{report}");
    assert!(report.contains("root/waiter: waits for a lock"), "{report}");
    assert!(
        report.contains("root/root: waits for a thread to end"),
        "{report}"
    );
}

#[test]
fn a_panic_of_any_thread_is_the_worlds_trouble() {
    let outcome = World::run(7, |_| {
        let breaks = thread::spawn("breaks", || assert_eq!(1, 2, "on purpose"));
        breaks.unwrap().join().is_err()
    });
    let report = outcome.result.unwrap_err();
    assert!(
        report.contains("root/breaks panicked") && report.contains("on purpose"),
        "{report}"
    );
}

#[test]
fn a_year_passes_in_no_time_and_deadlines_hold() {
    let began = Instant::now();
    let outcome = World::run(1, |_| {
        let start = time::now();
        for _ in 0..20 {
            thread::sleep(24 * 3600 * SECOND);
        }
        let slept = time::now() - start;
        let (_send, receive) = sync_channel::<u8>(1);
        assert_eq!(
            receive.recv_timeout(5 * SECOND),
            Err(RecvTimeoutError::Timeout)
        );
        let lock = Mutex::new(());
        let guard = lock.lock().unwrap();
        let (_guard, end) = Condvar::new()
            .wait_timeout_while(guard, 5 * SECOND, |()| true)
            .unwrap();
        assert!(end.timed_out());
        let runtime = task::runtime(1, "tasks").unwrap();
        let late = runtime.block_on(time::timeout(5 * SECOND, std::future::pending::<()>()));
        assert!(late.is_err());
        let never = runtime.block_on(time::timeout(SECOND, async { 7 }));
        assert_eq!(never, Ok(7));
        (slept, time::now() - start - slept)
    });
    let (slept, rest) = outcome.result.unwrap();
    assert!(slept >= 20 * 24 * 3600 * SECOND, "{slept:?}");
    assert!(rest >= 15 * SECOND && rest < 17 * SECOND, "{rest:?}");
    assert!(began.elapsed() < 3600 * SECOND);
}

#[test]
fn conditions_channels_and_tasks_lose_no_wake() {
    for seed in 0..200 {
        let outcome = World::run(seed, |_| {
            let pair = Arc::new((Mutex::new(0u64), Condvar::new()));
            let count = |_| {
                let pair = Arc::clone(&pair);
                thread::spawn("counts", move || {
                    *pair.0.lock().unwrap() += 1;
                    pair.1.notify_one();
                })
                .unwrap()
            };
            let threads: Vec<_> = (0..4).map(count).collect();
            let guard = pair.0.lock().unwrap();
            drop(pair.1.wait_while(guard, |n| *n < 4).unwrap());
            threads.into_iter().for_each(|t| t.join().unwrap());

            let runtime = task::runtime(1, "tasks").unwrap();
            let (send, mut receive) = mpsc::channel(1);
            let (echo, mut back) = mpsc::channel(1);
            let (stop, mut stopped) = watch::channel(false);
            let server = runtime.spawn(async move {
                while let Some(n) = receive.recv().await {
                    echo.send(n + 1).await.unwrap();
                }
                drop(echo);
                stopped
                    .wait_for(|stop| *stop)
                    .await
                    .map(|stop| *stop)
                    .unwrap()
            });
            for n in 0..5u64 {
                channel::send_blocking(&send, n).unwrap();
                assert_eq!(channel::recv_blocking(&mut back), Some(n + 1));
            }
            drop(send);
            assert_eq!(channel::recv_blocking(&mut back), None);
            stop.send(true).unwrap();
            runtime.block_on(server).unwrap()
        });
        assert_eq!(outcome.result, Ok(true), "seed {seed}");
    }
}

#[test]
fn readers_share_and_writers_do_not() {
    for seed in 0..50 {
        let outcome = World::run(seed, |_| {
            let lock = Arc::new(RwLock::new((0, 0)));
            let write = |_| {
                let lock = Arc::clone(&lock);
                thread::spawn("writes", move || {
                    let mut both = lock.write().unwrap();
                    both.0 += 1;
                    thread::yield_point();
                    both.1 += 1;
                })
                .unwrap()
            };
            let threads: Vec<_> = (0..3).map(write).collect();
            let first = lock.read().unwrap();
            let second = lock.read().unwrap();
            assert_eq!((first.0, first.1), (second.0, second.0));
            drop((first, second));
            threads.into_iter().for_each(|t| t.join().unwrap());
            lock.read().unwrap().1
        });
        assert_eq!(outcome.result, Ok(3), "seed {seed}");
    }
}

/// Tells when it is dropped.
struct Last(Arc<AtomicU64>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_killed_machine_stops_where_it_stands_and_others_live_on() {
    let mut progress = BTreeSet::new();
    for seed in 0..200 {
        let outcome = World::run(seed, move |world| {
            let machine = world.machine("A");
            let steps = Arc::new(AtomicU64::new(0));
            let dropped = Arc::new(AtomicU64::new(0));
            let at_death = Arc::new(AtomicU64::new(u64::MAX));
            let (then, now) = (Arc::clone(&at_death), Arc::clone(&steps));
            machine.on_kill(move || then.store(now.load(Ordering::SeqCst), Ordering::SeqCst));
            let (counted, last) = (Arc::clone(&steps), Last(Arc::clone(&dropped)));
            let shared = Arc::new(Mutex::new(0));
            let forever = machine
                .spawn("works", move || {
                    let _last = last;
                    let runtime = task::runtime(1, "tasks").unwrap();
                    let lock = Arc::clone(&shared);
                    let helper = thread::spawn("too", move || {
                        loop {
                            let mut held = lock.lock().unwrap();
                            thread::yield_point();
                            *held += 1;
                        }
                    });
                    runtime.spawn(async {
                        loop {
                            time::sleep(Duration::from_millis(1)).await;
                        }
                    });
                    while steps_once(&counted) < 1_000_000 {
                        *shared.lock().unwrap() += 1;
                        thread::yield_point();
                    }
                    helper.unwrap().join().unwrap();
                })
                .unwrap();
            machine.kill_after(10 + world.below(50));
            assert!(forever.join().is_err());
            machine.wait_dead();
            assert!(machine.is_dead());
            assert_eq!(
                dropped.load(Ordering::SeqCst),
                1,
                "what it owned is dropped"
            );
            let last = steps.load(Ordering::SeqCst);
            assert_eq!(at_death.load(Ordering::SeqCst), last, "no step after death");
            // The rest of the world goes on.
            thread::sleep(SECOND);
            last
        });
        progress.insert(outcome.result.unwrap());
    }
    assert!(progress.len() > 5, "it dies at many points: {progress:?}");
}

fn steps_once(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::SeqCst)
}

#[test]
fn what_a_killed_thread_held_is_not_poisoned_for_its_dying_fellows() {
    for seed in 0..100 {
        let outcome = World::run(seed, |world| {
            let machine = world.machine("A");
            let lock = Arc::new(Mutex::new(0));
            struct Locks(Arc<Mutex<i32>>);
            impl Drop for Locks {
                fn drop(&mut self) {
                    *self.0.lock().expect("not poisoned") += 1;
                }
            }
            for _ in 0..3 {
                let mine = Locks(Arc::clone(&lock));
                let holder = machine.spawn("holds", move || {
                    let _held = mine.0.lock().unwrap();
                    thread::sleep(SECOND);
                });
                drop(holder);
            }
            thread::sleep(SECOND / 2);
            machine.kill();
            machine.wait_dead();
        });
        assert_eq!(outcome.result, Ok(()), "seed {seed}");
    }
}

#[test]
fn clocks_of_machines_may_be_wrong() {
    let outcome = World::run(3, |world| {
        let machine = world.machine("A");
        machine.set_skew(-3600);
        let there = machine.spawn("asks", time::wall).unwrap().join().unwrap();
        let here = time::wall();
        here.duration_since(there).unwrap()
    });
    let apart = outcome.result.unwrap();
    assert!(apart >= 3600 * SECOND && apart < 3601 * SECOND, "{apart:?}");
}

#[test]
fn a_thread_outside_a_world_is_as_always() {
    assert!(!time::is_simulated() && World::current().is_none() && Machine::current().is_none());
    let done = Arc::new((Mutex::new(false), Condvar::new()));
    let other = Arc::clone(&done);
    let (send, receive) = sync_channel(1);
    let worker = thread::spawn("real", move || {
        *other.0.lock().unwrap() = true;
        other.1.notify_all();
        send.send(5).unwrap();
        assert!(matches!(
            send.try_send(6),
            Err(TrySendError::Full(6)) | Ok(())
        ));
    })
    .unwrap();
    let guard = done.0.lock().unwrap();
    drop(done.1.wait_while(guard, |done| !*done).unwrap());
    assert_eq!(receive.recv(), Ok(5));
    worker.join().unwrap();
    let runtime = task::runtime(1, "real").unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ran);
    let answer = runtime.block_on(async move {
        time::sleep(Duration::from_millis(1)).await;
        let late = time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
        assert!(late.is_err());
        task::spawn(async { task::spawn_blocking(|| 9).await.unwrap() })
            .await
            .unwrap()
    });
    told.store(true, Ordering::SeqCst);
    assert_eq!((answer, ran.load(Ordering::SeqCst)), (9, true));
    runtime.shutdown_timeout(SECOND);
    let (first, second) = (time::now(), time::now());
    assert!(second >= first);
}
