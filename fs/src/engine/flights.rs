//! Single flight: of all readers that want the same object at once, one loads it and the others wait for its result.
//!
//! Invariant: a flight is removed before its result is handed out, so a later reader starts afresh. Called by
//! `blobs.rs`.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use sealdrive_runtime::sync::{Condvar, Mutex};

use crate::clock;

struct Flight<V> {
    landed: Mutex<Option<V>>,
    wake: Condvar,
}

/// Loads under way.
pub(super) struct Flights<K, V> {
    aloft: Mutex<HashMap<K, Arc<Flight<V>>>>,
}

impl<K: Eq + Hash + Clone, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            aloft: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    /// Runs `load`, or waits for the one who already does; `None` if the deadline passes while waiting.
    pub(super) fn run(&self, key: &K, deadline: Instant, load: impl FnOnce() -> V) -> Option<V> {
        let (flight, lead) = {
            let mut aloft = self.aloft.lock().unwrap_or_else(PoisonError::into_inner);
            match aloft.get(key) {
                Some(flight) => (Arc::clone(flight), false),
                None => {
                    let flight = Arc::new(Flight {
                        landed: Mutex::new(None),
                        wake: Condvar::new(),
                    });
                    aloft.insert(key.clone(), Arc::clone(&flight));
                    (flight, true)
                }
            }
        };
        if !lead {
            return flight.wait(deadline);
        }
        let value = load();
        self.aloft
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
        *flight.landed.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.clone());
        flight.wake.notify_all();
        Some(value)
    }
}

impl<V: Clone> Flight<V> {
    fn wait(&self, deadline: Instant) -> Option<V> {
        let landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(clock::now());
        let (landed, _) = self
            .wake
            .wait_timeout_while(landed, left, |v| v.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        landed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn readers_of_one_object_load_it_once() {
        let flights = Flights::<u8, usize>::default();
        let loads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let deadline = clock::now() + Duration::from_secs(5);
                    let value = flights.run(&1, deadline, || {
                        std::thread::sleep(Duration::from_millis(100));
                        loads.fetch_add(1, Ordering::SeqCst)
                    });
                    assert_eq!(value, Some(0));
                });
            }
        });
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }
}
