//! How everything below a directory stands: its weakest state, and how many are in each.
//!
//! Invariant: bounded by entries and time. Where the walk had to stop, the answer says so, and the weakest state is
//! then that of the whole drive, which is never better than what was not looked at. Called for `sealdrive status DIR`.

use std::time::Instant;

use sealdrive_core::record::Ino;
use serde::{Deserialize, Serialize};

use super::shared::Shared;
use super::status::{FileSafety, Safety};
use crate::clock;
use crate::drive::{Answer, DriveError};

/// Names read of a directory at a time: bounds how long the drive's lock is held.
const NAMES: usize = 512;

/// What stands below a directory, itself included. Each name counts: a file with two of them counts twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Below {
    /// In memory only, or on their way into the journal.
    pub dirty: u64,
    /// Durable on this machine.
    pub journaled: u64,
    /// Acknowledged by the server, or open for writing.
    pub sent: u64,
    /// In a restore point.
    pub committed: u64,
    /// Of these, how many are open for writing.
    pub open_for_write: u64,
    /// All were looked at. If not, there are more of each than counted.
    pub complete: bool,
}

impl Below {
    fn count(&mut self, file: FileSafety) {
        let counter = match file.safety {
            Safety::Dirty => &mut self.dirty,
            Safety::Journaled => &mut self.journaled,
            Safety::Sent => &mut self.sent,
            Safety::Committed => &mut self.committed,
        };
        *counter += 1;
        self.open_for_write += u64::from(file.open_for_write);
    }

    /// Entries looked at.
    pub fn seen(&self) -> u64 {
        self.dirty + self.journaled + self.sent + self.committed
    }

    /// The weakest state that was met.
    pub fn weakest(&self) -> Safety {
        let counts = [self.dirty, self.journaled, self.sent, self.committed];
        let met = Safety::ALL
            .into_iter()
            .zip(counts)
            .find(|(_, count)| *count > 0);
        met.map_or(Safety::Committed, |(safety, _)| safety)
    }
}

/// Walks what is below `top`, at most `most` entries and until `deadline`.
pub(super) fn walk(shared: &Shared, top: Ino, most: u64, deadline: Instant) -> Answer<Below> {
    let mut below = Below::default();
    below.count(bring(shared, deadline, || shared.file_safety(top))?);
    let mut directories = vec![top];
    while let Some(directory) = directories.pop() {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let names = match bring(shared, deadline, || {
                shared.drive.names(directory, after.as_deref(), NAMES)
            }) {
                Ok(names) => names,
                // Removed since it was listed.
                Err(DriveError::Errno(_)) => break,
                Err(DriveError::Missing(_)) => return Ok(below),
            };
            for entry in &names {
                if below.seen() >= most || clock::now() >= deadline {
                    return Ok(below);
                }
                match bring(shared, deadline, || shared.file_safety(entry.ino)) {
                    Ok(file) => {
                        below.count(file);
                        if file.is_dir {
                            directories.push(entry.ino);
                        }
                    }
                    Err(DriveError::Errno(_)) => {}
                    Err(DriveError::Missing(_)) => return Ok(below),
                }
            }
            match names.into_iter().last() {
                Some(last) => after = Some(last.name),
                None => break,
            }
        }
    }
    below.complete = true;
    Ok(below)
}

/// Runs a step of the drive, loading the nodes it misses until `deadline`.
pub(super) fn bring<T>(
    shared: &Shared,
    deadline: Instant,
    mut step: impl FnMut() -> Answer<T>,
) -> Answer<T> {
    loop {
        match step() {
            Err(DriveError::Missing(reference)) => match shared.blobs.node(&reference, deadline) {
                Ok(node) => shared.drive.add_node(&reference, node),
                Err(_) => return Err(DriveError::Missing(reference)),
            },
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_that_was_met_is_the_answer() {
        let file = |safety| FileSafety {
            safety,
            open_for_write: safety == Safety::Sent,
            is_dir: false,
        };
        let mut below = Below::default();
        assert_eq!(below.weakest(), Safety::Committed, "nothing is below it");
        for safety in [Safety::Committed, Safety::Sent, Safety::Committed] {
            below.count(file(safety));
        }
        assert_eq!((below.weakest(), below.seen()), (Safety::Sent, 3));
        assert_eq!((below.committed, below.open_for_write), (2, 1));
        below.count(file(Safety::Dirty));
        assert_eq!(below.weakest(), Safety::Dirty);
    }
}
