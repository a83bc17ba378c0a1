//! The pure core: no kernel, no network, no database, no runtime, no clock, no entropy, no file system.
//! Time, randomness and identity come in as arguments. Called by the client shell (`sealdrive`) and the tests only.

pub mod chunk;
pub mod commit_body;
pub mod diff;
pub mod extent;
pub mod history;
pub mod journal;
pub mod key_box;
pub mod keys;
pub mod kit;
pub mod local;
pub mod merge;
pub mod node;
pub mod overlay;
pub mod passphrase;
pub mod record;
pub mod reference;
pub mod seal;
pub mod secret;
pub mod slot;
pub mod tree;
pub mod view;
