//! The client: a mounted drive, its local store and journal, and the command line.

pub mod clock;
pub mod limits;
pub mod remote;
