//! Writing one pack: append, sync, finish.
//!
//! Invariants: records follow one another without gaps; `durable` never runs ahead of a successful sync; the writer is
//! poisoned by any failure that leaves the content of the disk in doubt, and says so from then on. Running out of space
//! leaves no doubt: what was written of the failed append is cut off again. Called by the owner of a store, from one
//! thread.

use std::io::IoSlice;
use std::sync::Arc;

use crate::footer;
use crate::record::{ALIGN, Entry, MAX_PAYLOAD, PACK_HEADER_LEN, PackHeader, Record};
use crate::{Medium, MediumFile, PackError, Reader, Scan, file_name};

const ZEROS: [u8; ALIGN as usize] = [0; ALIGN as usize];

/// The pack being written.
pub struct Writer {
    file: Arc<dyn MediumFile>,
    header: PackHeader,
    len: u64,
    durable: u64,
    entries: Vec<Entry>,
    poisoned: bool,
}

impl Writer {
    /// Creates the pack. File and directory entry are durable on return, so that `sync` alone makes records durable.
    pub fn create(medium: &dyn Medium, header: PackHeader) -> Result<Self, PackError> {
        let name = file_name(header.id);
        let file = medium.create(&name).map_err(PackError::io("create pack"))?;
        let bytes = header.encode();
        let written = file
            .append(0, &mut [IoSlice::new(&bytes)])
            .and_then(|()| file.sync())
            .and_then(|()| medium.sync_dir());
        if let Err(error) = written {
            // Nothing is in it: another attempt must find the name free. A leftover is removed at the next start.
            let _ = medium.remove(&name);
            return Err(PackError::io("create pack")(error));
        }
        let len = PACK_HEADER_LEN as u64;
        Ok(Self {
            file,
            header,
            len,
            durable: len,
            entries: Vec::new(),
            poisoned: false,
        })
    }

    /// Goes on with a pack that was open when its writer stopped: cuts off the torn tail that `scan` found and makes
    /// the rest durable.
    pub fn resume(reader: Reader, scan: &Scan) -> Result<Self, PackError> {
        let Reader { file, .. } = &reader;
        // A pack that was cut short in what had been durable ends anywhere; the next record does not begin anywhere.
        let end = scan.end.next_multiple_of(ALIGN);
        if scan.torn > 0 || end > scan.end {
            file.truncate(end)
                .map_err(PackError::io("cut off torn tail"))?;
        }
        file.sync().map_err(PackError::io("sync pack"))?;
        Ok(Self {
            header: *reader.header(),
            file: Arc::clone(file),
            len: end,
            durable: end,
            entries: scan.entries.clone(),
            poisoned: false,
        })
    }

    /// Appends records, all or none. They are readable at once and durable after `sync`.
    pub fn append(&mut self, records: &[Record]) -> Result<Vec<Entry>, PackError> {
        self.check()?;
        let mut entries = Vec::with_capacity(records.len());
        let mut end = self.len;
        for record in records {
            if record.payload().len() > MAX_PAYLOAD {
                return Err(PackError::Damaged {
                    offset: end,
                    what: "payload too long to write",
                });
            }
            let entry = Entry {
                offset: end,
                header: record.header(self.durable),
            };
            end = entry.location().end();
            entries.push(entry);
        }
        let headers: Vec<_> = entries
            .iter()
            .map(|entry| entry.header.encode(&self.header.store, entry.offset))
            .collect();
        let mut parts = Vec::with_capacity(records.len() * 3);
        for (record, header) in records.iter().zip(&headers) {
            let padding =
                record.payload().len().next_multiple_of(ALIGN as usize) - record.payload().len();
            parts.push(IoSlice::new(header));
            parts.push(IoSlice::new(record.payload()));
            parts.push(IoSlice::new(&ZEROS[..padding]));
        }
        if let Err(error) = self.file.append(self.len, &mut parts) {
            return Err(self.undo(error));
        }
        self.len = end;
        self.entries.extend_from_slice(&entries);
        Ok(entries)
    }

    /// Makes everything appended so far durable.
    pub fn sync(&mut self) -> Result<(), PackError> {
        self.check()?;
        if self.durable < self.len {
            self.file
                .sync()
                .map_err(|error| self.poison("sync pack", error))?;
            self.durable = self.len;
        }
        Ok(())
    }

    /// Seals the pack: footer, sync. The pack is complete on disk when this returns; without it, it is found by scan.
    pub fn finish(mut self) -> Result<Vec<Entry>, PackError> {
        self.sync()?;
        let footer = footer::encode(&self.entries, self.len, &self.header.store);
        if let Err(error) = self.file.append(self.len, &mut [IoSlice::new(&footer)]) {
            return Err(self.undo(error));
        }
        self.file
            .sync()
            .map_err(|error| self.poison("sync pack", error))?;
        Ok(self.entries)
    }

    /// Reads the pack while it is being written.
    pub fn reader(&self) -> Reader {
        Reader::over(Arc::clone(&self.file), self.header)
    }

    /// Number of the pack.
    pub fn id(&self) -> u64 {
        self.header.id
    }

    /// Offset of the next record, bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no record in the pack.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Everything before this offset is durable, bytes.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// All records, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn check(&self) -> Result<(), PackError> {
        if self.poisoned {
            Err(PackError::Poisoned)
        } else {
            Ok(())
        }
    }

    /// A write failed half-way: cut off what it left. Only if that works, and the reason was space, is all well.
    fn undo(&mut self, error: std::io::Error) -> PackError {
        let cut = self.file.truncate(self.len);
        let error = PackError::io("append to pack")(error);
        if cut.is_err() || !matches!(error, PackError::NoSpace) {
            self.poisoned = true;
        }
        error
    }

    /// A sync failed. The pages may be marked clean without being on disk, so a retry could lie: never again.
    fn poison(&mut self, what: &'static str, source: std::io::Error) -> PackError {
        self.poisoned = true;
        PackError::Io { what, source }
    }
}
