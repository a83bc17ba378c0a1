//! A mount from beginning to end: attach, serve, and after the unmount drain to the server before the process ends.
//!
//! Invariant: however the mount goes away (umount, fusermount, a signal, an abort), the drain runs, the run record
//! says how it ended, and nothing of ours stays in the mount table. Called by `sealdrive mount`.

pub mod attach;
pub mod daemon;
pub mod options;
pub mod record;
pub mod table;
pub mod utab;
