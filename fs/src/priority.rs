//! How important a thread is beside everything else on this machine: the work of its people comes first.
//!
//! Invariant: a thread only ever becomes less important. Called at the start of threads that nobody waits for; those
//! that answer the kernel or bring content stay as they are.

use rustix::process::{getpriority_process, setpriority_process};

/// Sealing: writers wait for it only when memory is full, and it waits for the cutter, which stays as it is.
pub const SEALING: i32 = 2;
/// Sending, copying, walking the tree: uses what is left over, and may take minutes.
pub const BACKGROUND: i32 = 15;

/// Raises the nice value of the calling thread (Linux: nice values belong to threads) to `nice`, unless it is higher.
pub fn step_back(nice: i32) {
    let standing = getpriority_process(None);
    if standing.is_ok_and(|standing| standing < nice)
        && let Err(error) = setpriority_process(None, nice)
    {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_steps_back_and_never_forward() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let inside = std::thread::spawn(move || {
            step_back(15);
            let first = nice();
            step_back(3);
            (first, nice())
        });
        let (first, then) = inside.join().unwrap();
        assert_eq!((first, then), (15.max(before), 15.max(before)));
        assert_eq!(nice(), before);
    }
}
