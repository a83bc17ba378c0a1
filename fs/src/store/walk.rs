//! The short way through an outbox pack that the index knows to its last byte: its record headers, without its chunks.
//!
//! Invariant: a pack that the index cannot vouch for record by record is read whole ([`packfile::recover`]): the walk
//! ends exactly at the end of the file, and every record lies where the index says that its object lies, which it says
//! only of what was synced. Every object short enough to be a tree node is read and checked, because a drive does not
//! open over a tree with a hole. What is left unread is chunks of content; they are checked by whoever reads them, and
//! by [`super::Outbox::check_after`]. Called when the outbox is opened.

use sealdrive_pack::Medium;
use sealdrive_proto::header::stored_len;
use sealdrive_proto::limits::MAX_NODE;

use super::StoreError;
use super::index::Index;
use super::packfile::{self, Entry, Read, Scan};
use super::place::{Place, Row};

/// Objects up to this length, bytes, are read and checked: no sealed tree node is longer.
pub(super) const READ_WHOLE: u32 = stored_len(MAX_NODE) as u32;

/// Walks the pack; none if it has to be read whole.
pub(super) fn walk(
    dir: &dyn Medium,
    number: u64,
    index: &Index,
) -> Result<Option<Scan>, StoreError> {
    let broken = |e| StoreError::Io("recovering an outbox pack", e);
    let file = dir.open(&packfile::file_name(number)).map_err(broken)?;
    let size = file.len().map_err(broken)?;
    let mut entries = Vec::new();
    let mut at = packfile::FIRST_RECORD;
    while at < size {
        let Some((len, sid)) = packfile::record_header(&*file, at, size).map_err(broken)? else {
            return Ok(None);
        };
        let place = Place {
            pack: number,
            offset: at,
            len,
            cached: false,
        };
        if index.get(&sid)? != Some(Row::Local(place)) {
            return Ok(None);
        }
        if len <= READ_WHOLE
            && let Read::Damaged = packfile::read(&*file, at, len).map_err(broken)?
        {
            return Ok(None);
        }
        let entry = Entry {
            sid,
            offset: at,
            len,
        };
        at = entry.end();
        entries.push(entry);
    }
    Ok(Some(Scan {
        file,
        entries,
        bad: Vec::new(),
        tail: None,
        len: size,
    }))
}
