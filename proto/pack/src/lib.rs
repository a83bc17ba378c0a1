//! Append-only pack files of typed, self-describing records. FORMAT.md, "Packs".
//!
//! Invariants: a record is never changed once appended; a read checks header and payload; a failed fsync is never
//! retried (the writer is poisoned); a sealed pack can be listed from its footer alone, and any pack from its records
//! alone. What a record means, when to sync and when to seal is the caller's business: the server keeps its storage in
//! packs, and a client may keep its outbox and cache in them. All disk access goes through [`Medium`].

mod file;
mod footer;
mod medium;
mod reader;
mod record;
mod reserve;
mod scan;
mod writer;

pub use file::Directory;
pub use medium::{Medium, MediumFile, is_no_space};
pub use reader::{Found, Reader};
pub use record::{
    Entry, HEADER_LEN, Location, MAX_PAYLOAD, PackHeader, Record, RecordHeader, RecordKind,
};
pub use reserve::{Reserve, Reserved};
pub use scan::{Damage, Scan};
pub use writer::Writer;

/// Name of the file of pack `id`: sixteen hex digits, so that names sort as numbers.
pub fn file_name(id: u64) -> String {
    format!("{id:016x}.pack")
}

/// The pack a file name stands for; `None` for any other file.
pub fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".pack")?;
    let id = u64::from_str_radix(digits, 16).ok()?;
    (file_name(id) == name).then_some(id)
}

/// What went wrong with a pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// No space or quota left. Nothing was appended; the writer goes on when there is space again.
    #[error("no space left for the pack")]
    NoSpace,
    /// The medium failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the medium said.
        source: std::io::Error,
    },
    /// An earlier write or sync failed, so nobody knows what is on disk: reopen and scan.
    #[error("the pack has failed and takes no more records")]
    Poisoned,
    /// Not a pack, or a pack of a newer format.
    #[error("not a pack of a known format")]
    Format,
    /// A record (or footer) is not what was written.
    #[error("damaged at offset {offset}: {what}")]
    Damaged {
        /// Where, bytes from the start of the pack.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
}

impl PackError {
    fn io(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| {
            if is_no_space(&source) {
                Self::NoSpace
            } else {
                Self::Io { what, source }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_exact() {
        assert_eq!(file_name(0x1f), "000000000000001f.pack");
        assert_eq!(parse_file_name(&file_name(u64::MAX)), Some(u64::MAX));
        for other in [
            "1f.pack",
            "000000000000001F.pack",
            "+00000000000001f.pack",
            "x",
            "000000000000001f.pack.bad",
        ] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }
}
