//! Power cuts of a virtual machine: its writers say outside, line by line, what they begin and what they were promised,
//! and when it has booted again it is asked for all of that.
//!
//! Invariant: a line of the ledger has left the machine before the next step begins. Called by the program `powercut`,
//! which scripts/vm runs in the machine.

pub mod check;
pub mod ledger;
pub mod load;

use crate::made::bytes_of;

/// Bytes of one page of a file that is changed in place: one request of the kernel, there or not.
pub const PAGE: usize = 4096;
/// Bytes of a file that is replaced by rename, behind its version.
pub const REPLACED: usize = 3000;

/// A version, and bytes that are its own: `length` of them together.
pub fn stamped(name: &str, version: u64, length: usize) -> Vec<u8> {
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend(bytes_of(name, version, length - 8));
    bytes
}
