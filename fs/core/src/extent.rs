//! Extents of a file: what its ranges are made of, and how they change.
//!
//! Invariant: records of one file never overlap and hold no holes; every change looks at the records around its range
//! only, whatever the size of the file. Called by the drive inside a transaction. Ranges are cut at `MAX_FILE`.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use sealdrive_proto::limits::MAX_CHUNK;

use crate::record::{BadRecord, Extent, INLINE_MAX, Ino, Key, KeyRef, MAX_FILE};
use crate::view::{ReadError, Txn, View};

/// A range of a file and what it is made of; `what` covers exactly `len` bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub off: u64,
    /// What it is made of.
    pub what: Extent,
}

impl Segment {
    /// Length, bytes.
    pub fn len(&self) -> u64 {
        self.what.len()
    }

    /// Never: a segment covers at least one byte.
    pub fn is_empty(&self) -> bool {
        self.what.is_empty()
    }

    /// First byte behind it.
    pub fn end(&self) -> u64 {
        self.off + self.len()
    }
}

/// Bytes that became holes and bytes that are no holes any more, for `Inode::allocated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Bytes whose records went.
    pub removed: u64,
    /// Bytes that have records now.
    pub added: u64,
}

impl Change {
    /// What `allocated` becomes.
    pub fn applied_to(self, allocated: u64) -> u64 {
        allocated
            .saturating_sub(self.removed)
            .saturating_add(self.added)
    }
}

/// What `[off, off + len)` is made of: segments without gap or overlap, holes among them. Neighbours that are one run
/// of one chunk, or one hole, are one segment.
pub fn segments(view: &View<'_>, ino: Ino, off: u64, len: u64) -> Result<Vec<Segment>, ReadError> {
    let end = end_of(off, len);
    let mut found: Vec<Segment> = Vec::new();
    let mut at = off;
    for record in overlapping(view, ino, off, end)? {
        let (from, to) = (record.off.max(off), record.end().min(end));
        if at < from {
            found.push(Segment {
                off: at,
                what: Extent::Hole { len: from - at },
            });
        }
        let what = record.what.slice(from - record.off, to - record.off);
        match found
            .last_mut()
            .and_then(|last| joined(&last.what, &what).map(|both| (last, both)))
        {
            Some((last, both)) => last.what = both,
            None => found.push(Segment { off: from, what }),
        }
        at = to;
    }
    if at < end {
        found.push(Segment {
            off: at,
            what: Extent::Hole { len: end - at },
        });
    }
    Ok(found)
}

/// Makes `[off, off + len)` a hole and returns how many bytes were none.
pub fn punch(txn: &mut Txn<'_>, ino: Ino, off: u64, len: u64) -> Result<u64, ReadError> {
    let end = end_of(off, len);
    let mut removed = 0;
    for record in overlapping(&txn.view(), ino, off, end)? {
        removed += record.end().min(end) - record.off.max(off);
        if record.off < off {
            write(
                txn,
                ino,
                record.off,
                &record.what.slice(0, off - record.off),
            );
        } else {
            txn.delete(Key::extent(ino, record.off));
        }
        if record.end() > end {
            write(
                txn,
                ino,
                end,
                &record.what.slice(end - record.off, record.len()),
            );
        }
    }
    Ok(removed)
}

/// Puts an extent at `off`, over whatever was there. A hole is punched.
pub fn put(txn: &mut Txn<'_>, ino: Ino, off: u64, extent: &Extent) -> Result<Change, ReadError> {
    let removed = punch(txn, ino, off, extent.len())?;
    if matches!(extent, Extent::Hole { .. }) || extent.is_empty() {
        return Ok(Change { removed, added: 0 });
    }
    write(txn, ino, off, extent);
    Ok(Change {
        removed,
        added: extent.len(),
    })
}

/// Removes everything from `size` on.
pub fn truncate(txn: &mut Txn<'_>, ino: Ino, size: u64) -> Result<u64, ReadError> {
    punch(txn, ino, size, MAX_FILE.saturating_sub(size))
}

/// Makes a range of `to.0` from `to.1` on the same as `len` bytes of `from.0` from `from.1` on: extents are copied, not
/// bytes, and holes stay holes. The ranges may overlap: the result is as if the source had been read first.
pub fn clone_range(
    txn: &mut Txn<'_>,
    from: (Ino, u64),
    to: (Ino, u64),
    len: u64,
) -> Result<Change, ReadError> {
    let len = len
        .min(MAX_FILE.saturating_sub(from.1))
        .min(MAX_FILE.saturating_sub(to.1));
    let source = segments(&txn.view(), from.0, from.1, len)?;
    let mut change = Change {
        removed: punch(txn, to.0, to.1, len)?,
        added: 0,
    };
    for segment in source
        .iter()
        .filter(|segment| !matches!(segment.what, Extent::Hole { .. }))
    {
        write(txn, to.0, to.1 + (segment.off - from.1), &segment.what);
        change.added += segment.len();
    }
    Ok(change)
}

/// The first byte at or after `off` that is no hole.
pub fn next_data(view: &View<'_>, ino: Ino, off: u64) -> Result<Option<u64>, ReadError> {
    if covering(view, ino, off)?.is_some() {
        return Ok(Some(off));
    }
    let mut found = None;
    view.range(&Key::extents_between(ino, off, MAX_FILE), |key, _| {
        found = Some(offset_in(key));
        ControlFlow::Break(())
    })?;
    found.transpose().map_err(Into::into)
}

/// The first byte at or after `off` that is a hole; behind the last record everything is.
pub fn next_hole(view: &View<'_>, ino: Ino, off: u64) -> Result<u64, ReadError> {
    let mut at = covering(view, ino, off)?.map_or(off, |segment| segment.end());
    let mut bad = None;
    view.range(
        &Key::extents_between(ino, at, MAX_FILE),
        |key, value| match parse(key, value) {
            Ok(segment) if segment.off == at => {
                at = segment.end();
                ControlFlow::Continue(())
            }
            Ok(_) => ControlFlow::Break(()),
            Err(error) => {
                bad = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    bad.map_or(Ok(at), |error| Err(error.into()))
}

/// Replaces all content of `ino` by these bytes, in the records themselves: long symlink targets.
pub fn write_inline(txn: &mut Txn<'_>, ino: Ino, content: &Bytes) -> Result<(), ReadError> {
    truncate(txn, ino, 0)?;
    for (index, piece) in content.chunks(INLINE_MAX).enumerate() {
        write(
            txn,
            ino,
            (index * INLINE_MAX) as u64,
            &Extent::Inline(content.slice_ref(piece)),
        );
    }
    Ok(())
}

/// The first `len` bytes of what [`write_inline`] wrote. Anything but inline extents there is damage.
pub fn read_inline(view: &View<'_>, ino: Ino, len: u64) -> Result<Bytes, ReadError> {
    let mut content = BytesMut::new();
    for segment in segments(view, ino, 0, len)? {
        let Extent::Inline(bytes) = segment.what else {
            return Err(ReadError::Damaged);
        };
        content.extend_from_slice(&bytes);
    }
    Ok(content.freeze())
}

/// The records that touch `[off, end)`, whole, in order.
fn overlapping(view: &View<'_>, ino: Ino, off: u64, end: u64) -> Result<Vec<Segment>, ReadError> {
    if off >= end {
        return Ok(Vec::new());
    }
    let mut found = Vec::from_iter(before(view, ino, off)?.filter(|segment| segment.end() > off));
    let mut bad = None;
    view.range(
        &Key::extents_between(ino, off, end),
        |key, value| match parse(key, value) {
            Ok(segment) if found.last().is_none_or(|last| last.end() <= segment.off) => {
                found.push(segment);
                ControlFlow::Continue(())
            }
            // Two records for one byte: which one is read would be chance.
            Ok(_) => {
                bad = Some(ReadError::Damaged);
                ControlFlow::Break(())
            }
            Err(error) => {
                bad = Some(error.into());
                ControlFlow::Break(())
            }
        },
    )?;
    bad.map_or(Ok(found), Err)
}

/// The record that holds the byte at `off`.
fn covering(view: &View<'_>, ino: Ino, off: u64) -> Result<Option<Segment>, ReadError> {
    Ok(overlapping(view, ino, off, end_of(off, 1))?.pop())
}

/// The last record that begins before `off`, if it begins near enough to reach it: none is longer than a chunk.
fn before(view: &View<'_>, ino: Ino, off: u64) -> Result<Option<Segment>, ReadError> {
    let near = off.saturating_sub(MAX_CHUNK as u64 - 1);
    let last = view.last(&Key::extents_between(ino, near, off))?;
    last.map(|(key, value)| parse(key.as_bytes(), &value))
        .transpose()
        .map_err(Into::into)
}

fn parse(key: &[u8], value: &[u8]) -> Result<Segment, BadRecord> {
    Ok(Segment {
        off: offset_in(key)?,
        what: Extent::decode(value)?,
    })
}

fn offset_in(key: &[u8]) -> Result<u64, BadRecord> {
    match KeyRef::parse(key)? {
        KeyRef::Extent(_, off) => Ok(off),
        _ => Err(BadRecord("extent")),
    }
}

/// Writes a record where nothing stands any more.
fn write(txn: &mut Txn<'_>, ino: Ino, off: u64, extent: &Extent) {
    if let Some(value) = extent.encode() {
        txn.put(Key::extent(ino, off), value);
    }
}

/// Two neighbours as one, if they are one run of one chunk.
fn joined(left: &Extent, right: &Extent) -> Option<Extent> {
    match (left, right) {
        (
            Extent::Chunk {
                reference,
                skip,
                len,
            },
            Extent::Chunk {
                reference: next,
                skip: from,
                len: more,
            },
        ) if reference == next && skip + len == *from => Some(Extent::Chunk {
            reference: *reference,
            skip: *skip,
            len: len + more,
        }),
        _ => None,
    }
}

fn end_of(off: u64, len: u64) -> u64 {
    off.saturating_add(len).min(MAX_FILE)
}
