//! Numbers for signed calls: each is used once in the life of a device, across crashes and commands.
//!
//! Invariant: a number is handed out only after a block containing it was durably reserved; a crash skips the rest of
//! its block and never repeats. Called by the remote door.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::home::{Home, HomeError};
use crate::remote::grpc::CallNumbers;

/// Name of the file in the home directory: the first number that is not reserved yet, u64.
const FILE: &str = "call-numbers";
/// Numbers reserved at a time: a lease is renewed every half minute, so one fsync in two hours.
const BLOCK: u64 = 256;

/// The numbers of this machine's device.
pub struct Numbers {
    home: Home,
    /// Next number, and the first one not reserved.
    state: Mutex<Option<(u64, u64)>>,
}

impl Numbers {
    /// Numbers kept in `home`; nothing is read yet.
    pub fn new(home: Home) -> Self {
        Self {
            home,
            state: Mutex::new(None),
        }
    }

    fn reserve(&self) -> io::Result<(u64, u64)> {
        // Two mounts of one device share the file: the lock makes their blocks differ.
        let _lock = self.home.lock_numbers().map_err(io::Error::other)?;
        let first = match self.home.read(FILE) {
            Ok(bytes) => {
                let bytes = bytes.as_slice().try_into();
                u64::from_le_bytes(bytes.map_err(|_| io::Error::other("call-numbers is damaged"))?)
            }
            Err(HomeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => 1,
            Err(error) => return Err(io::Error::other(error)),
        };
        let end = first
            .checked_add(BLOCK)
            .ok_or_else(|| io::Error::other("out of numbers"))?;
        self.home
            .replace(FILE, &end.to_le_bytes())
            .map_err(io::Error::other)?;
        Ok((first, end))
    }
}

impl CallNumbers for Numbers {
    fn next(&self) -> io::Result<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, end) = match *state {
            Some((next, end)) if next < end => (next, end),
            _ => self.reserve()?,
        };
        *state = Some((next + 1, end));
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_comes_twice_whatever_dies() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path().join("h"))).unwrap();
        let first = Numbers::new(home.clone());
        let mut seen: Vec<u64> = (0..300).map(|_| first.next().unwrap()).collect();
        // Another process at the same time, and one after a crash.
        let second = Numbers::new(home.clone());
        seen.extend((0..10).map(|_| second.next().unwrap()));
        seen.extend((0..300).map(|_| first.next().unwrap()));
        drop(first);
        seen.push(Numbers::new(home).next().unwrap());
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count);
        assert_eq!(seen[0], 1, "0 means none on the wire");
    }
}
