//! What changes in the outbox under its lock: appending, closing packs, finding what comes next.
//!
//! Invariant: nothing here waits for the disk but buffered writes. Called by the outbox, with its lock held.

use std::io;
use std::sync::Arc;

use sealdrive_pack::{Medium, MediumFile, is_no_space};
use sealdrive_proto::id::Sid;

use super::{OutPack, PackHandle, State};
use crate::store::PackNumbers;
use crate::store::packfile::{Entry, NOTE_LEN, PackWriter};
use crate::store::place::{Place, Position};

impl State {
    pub(super) fn append(
        &mut self,
        dir: &dyn Medium,
        numbers: &PackNumbers,
        sid: Sid,
        note: &[u8; NOTE_LEN],
        object: &[u8],
    ) -> io::Result<Place> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.is_full() || numbers.lags(open.number()))
        {
            self.close()?;
        }
        if self.open.is_none() {
            let open = PackWriter::create(dir, numbers.take())?;
            let pack = OutPack {
                file: open.file(),
                entries: Vec::new(),
                len: open.len(),
                unread: false,
            };
            self.packs.insert(open.number(), pack);
            self.open = Some(open);
        }
        let open = self
            .open
            .as_mut()
            .ok_or_else(|| io::Error::other("no open pack"))?;
        let entry = open.append(sid, note, object)?;
        let place = Place {
            pack: open.number(),
            offset: entry.offset,
            len: entry.len,
            cached: false,
        };
        if let Some(pack) = self.packs.get_mut(&place.pack) {
            pack.len = open.len();
            pack.entries.push(entry);
        }
        self.pending_bytes += u64::from(place.len);
        self.pending_objects += 1;
        Ok(place)
    }

    /// Hands what is buffered to the kernel. A write that fails for anything but space is final: what the file holds is
    /// in doubt, so nothing is appended, synced or counted as durable behind it.
    fn flush(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed"));
        }
        let done = self.open.as_mut().map_or(Ok(()), PackWriter::flush);
        if let Err(e) = &done {
            self.failed = !is_no_space(e);
        }
        done
    }

    pub(super) fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some(open) = self.open.take()
            && Position::new(open.number(), open.len()) > self.synced
        {
            self.unsynced.push(open.file());
        }
        Ok(())
    }

    pub(super) fn begin_sync(&mut self) -> io::Result<(Vec<Arc<dyn MediumFile>>, Position)> {
        // Before anything is taken: a sync that could not begin has synced nothing, and the next one begins anew.
        self.flush()?;
        let mut files = std::mem::take(&mut self.unsynced);
        if let Some(open) = &self.open {
            let end = Position::new(open.number(), open.len());
            if end > self.synced {
                files.push(open.file());
            }
        }
        let end = self
            .packs
            .last_key_value()
            .map_or(self.synced, |(n, p)| Position::new(*n, p.len));
        Ok((files, end.max(self.synced)))
    }

    pub(super) fn make_readable(&mut self, place: &Place) -> io::Result<()> {
        match &self.open {
            Some(open) if open.number() == place.pack && place.end().offset > open.written() => {
                self.flush()
            }
            _ => Ok(()),
        }
    }

    pub(super) fn after(
        &mut self,
        cursor: Position,
        max_bytes: usize,
    ) -> io::Result<Vec<(u64, Entry, PackHandle)>> {
        let mut out = Vec::new();
        let mut bytes = 0;
        'packs: for (number, pack) in self.packs.range(cursor.pack..) {
            let from = if *number == cursor.pack {
                pack.entries
                    .partition_point(|entry| entry.end() <= cursor.offset)
            } else {
                0
            };
            let refused = |entry: &&Entry| {
                let end = Position::new(*number, entry.end());
                self.withheld.contains_key(&end)
            };
            for entry in pack.entries.iter().skip(from).filter(|e| !refused(e)) {
                out.push((*number, *entry, Arc::clone(&pack.file)));
                bytes += entry.len as usize;
                if bytes >= max_bytes {
                    break 'packs;
                }
            }
        }
        if let Some((number, entry, _)) = out.last()
            && let Some(open) = &self.open
            && open.number() == *number
            && entry.end() > open.written()
        {
            let (number, written) = (*number, open.written());
            match self.flush() {
                // A full disk: what it has can go, and makes room.
                Err(e) if is_no_space(&e) => {
                    out.retain(|(pack, entry, _)| *pack != number || entry.end() <= written);
                }
                done => done?,
            }
        }
        Ok(out)
    }
}
