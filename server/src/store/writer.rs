//! The writer thread: takes puts in order, appends, syncs once for all that wait, then answers.
//!
//! Order of a group: append → sync → visible in the tail → acknowledge → hand to the indexer. While one sync runs, the
//! next group gathers by itself, so nobody waits for a timer. Invariant: a put is appended whole or not at all; after a
//! failed sync nothing is acknowledged any more. Called by `Store`.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError};

use sealdrive_pack::{Entry, HEADER_LEN, PackError, PackHeader, Record, RecordKind, Writer};
use sealdrive_runtime::channel::{SyncSender, recv_blocking};
use sealdrive_runtime::thread::{self, JoinHandle};
use tokio::sync::{mpsc, oneshot};

use super::indexer::Batch;
use super::open::Continuation;
use super::{Job, Latest, Order, Put, Shared, StoreError};
use crate::clock::unix_ms;
use crate::index::{Checkpoint, Row, RowKey};
use crate::limits::{CONTROL_PART, GROUP_BYTES};

struct Thread {
    shared: Arc<Shared>,
    batches: SyncSender<Batch>,
    pack: Option<Writer>,
    next_pack: u64,
    next_sequence: u64,
}

/// Where a caller waits for what became of its records.
type Reply = oneshot::Sender<Result<Vec<Put>, StoreError>>;

/// What one group has done so far.
#[derive(Default)]
struct Group {
    written: Vec<(u64, Entry)>,
    /// What this group changes: visible to its later puts, not yet to anyone else.
    pending: HashMap<RowKey, Latest>,
    answers: Vec<(Reply, Vec<Put>)>,
}

pub(super) fn start(
    shared: Arc<Shared>,
    from: Continuation,
    queue: mpsc::Receiver<Order>,
    batches: SyncSender<Batch>,
) -> io::Result<JoinHandle<()>> {
    let Continuation {
        writer,
        next_pack,
        next_sequence,
    } = from;
    let mut thread = Thread {
        shared,
        batches,
        pack: writer,
        next_pack,
        next_sequence,
    };
    thread::spawn("pack-writer", move || thread.run(queue))
}

impl Thread {
    fn run(&mut self, mut queue: mpsc::Receiver<Order>) {
        while let Some((puts, close)) = gather(&mut queue) {
            if self.shared.is_abandoned() {
                return;
            }
            if let Err(error) = self.group(puts) {
                self.shared.fail(error);
                return;
            }
            if close {
                return;
            }
        }
    }

    /// Does all puts of one group. An error is final; what concerns only one put is answered to it.
    fn group(&mut self, puts: Vec<Job>) -> Result<(), PackError> {
        let mut group = Group::default();
        let free = self.free()?;
        for put in puts {
            let Job {
                records,
                reply,
                _room,
            } = put;
            let placed = if free < self.needs(&records) {
                Err(PackError::NoSpace)
            } else {
                self.place(records, &mut group)
            };
            match placed {
                Ok(placed) => group.answers.push((reply, placed)),
                Err(PackError::NoSpace) => drop(reply.send(Err(StoreError::NoSpace))),
                Err(error) => return Err(error),
            }
        }
        if !group.written.is_empty()
            && let Some(pack) = &mut self.pack
        {
            self.shared.options.reached("server.appended");
            pack.sync()?;
            self.shared.options.reached("server.synced");
        }
        self.publish(group);
        Ok(())
    }

    fn free(&self) -> Result<u64, PackError> {
        let free = self.shared.packs.medium().free();
        free.map_err(|source| PackError::Io {
            what: "ask for free space",
            source,
        })
    }

    /// What must be free for these. Leases and commits go on when objects do not.
    fn needs(&self, records: &[Record]) -> u64 {
        let reserve = self.shared.options.reserve_bytes;
        let is_object = |record: &Record| record.kind == RecordKind::Object;
        match records {
            [] => 0,
            some if some.iter().any(is_object) => reserve,
            _ => reserve / CONTROL_PART,
        }
    }

    /// Appends what is new of one put, all or nothing.
    fn place(&mut self, records: Vec<Record>, group: &mut Group) -> Result<Vec<Put>, PackError> {
        let mut puts: Vec<Put> = Vec::with_capacity(records.len());
        let mut new: Vec<Record> = Vec::with_capacity(records.len());
        let mut within: HashMap<RowKey, [u8; 32]> = HashMap::new();
        for mut record in records {
            let key = RowKey {
                kind: record.kind,
                owner: record.owner,
                id: record.id,
            };
            if record.kind == RecordKind::Object {
                let earlier = within.get(&key).copied();
                let standing = match earlier {
                    None => self.standing(&key, group)?.map(|row| row.hash),
                    found => found,
                };
                if let Some(hash) = standing {
                    puts.push(Put::Exists { hash });
                    continue;
                }
                within.insert(key, *record.hash());
            }
            record.sequence = self.next_sequence + new.len() as u64;
            record.received_ms = unix_ms();
            puts.push(Put::Stored);
            new.push(record);
        }
        self.append(&new, group)?;
        Ok(puts)
    }

    fn append(&mut self, new: &[Record], group: &mut Group) -> Result<(), PackError> {
        if new.is_empty() {
            return Ok(());
        }
        self.make_room(new)?;
        let pack = self.pack.as_mut().ok_or(PackError::Poisoned)?;
        let (id, entries) = (pack.id(), pack.append(new)?);
        assert_eq!(entries.len(), new.len(), "one entry for each record");
        self.next_sequence += entries.len() as u64;
        for entry in entries {
            let (key, row) = RowKey::changed_by(id, &entry);
            group.pending.insert(
                key,
                Latest {
                    sequence: entry.header.sequence,
                    row,
                },
            );
            group.written.push((id, entry));
        }
        Ok(())
    }

    /// The row under an object's id, whether durable or written earlier in this group.
    fn standing(&self, key: &RowKey, group: &Group) -> Result<Option<Row>, PackError> {
        if let Some(latest) = group.pending.get(key) {
            return Ok(latest.row);
        }
        let found = self.shared.lookup(std::slice::from_ref(key));
        let found = found.map_err(|error| PackError::Io {
            what: "look up",
            source: io::Error::other(error),
        })?;
        Ok(found[0])
    }

    /// Seals the open pack when it is full and opens the next one.
    fn make_room(&mut self, records: &[Record]) -> Result<(), PackError> {
        let need: u64 = records
            .iter()
            .map(|record| (record.payload().len() + HEADER_LEN + 8) as u64)
            .sum();
        let limit = self.shared.options.pack_bytes;
        let full = |pack: &Writer| !pack.is_empty() && pack.len() + need > limit;
        if self.pack.as_ref().is_some_and(full)
            && let Some(pack) = self.pack.take()
        {
            let id = pack.id();
            match pack.finish() {
                Ok(_) => tracing::debug!(pack = id, "sealed"),
                // All its records are durable; without a footer it is listed by a scan at the next start.
                Err(PackError::NoSpace) => tracing::warn!(pack = id, "no space for a footer"),
                Err(error) => return Err(error),
            }
            self.shared.options.reached("server.sealed");
        }
        if self.pack.is_none() {
            let header = PackHeader {
                id: self.next_pack,
                created_ms: unix_ms(),
                store: self.shared.packs.store(),
            };
            let pack = Writer::create(self.shared.packs.medium(), header)?;
            self.shared.options.reached("server.created");
            self.shared.packs.add(pack.id(), pack.reader());
            self.next_pack += 1;
            self.pack = Some(pack);
        }
        Ok(())
    }

    /// Everything of the group is durable: make it visible, acknowledge it, and let the index follow.
    fn publish(&mut self, group: Group) {
        let Group {
            written,
            pending,
            answers,
        } = group;
        if !pending.is_empty() {
            self.shared
                .tail
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(pending);
        }
        self.shared.options.reached("server.before-ack");
        for (reply, puts) in answers {
            // A caller that is gone needs no answer; its records are durable all the same.
            let _ = reply.send(Ok(puts));
        }
        self.shared.options.reached("server.acked");
        if let Some((pack, last)) = written.last().copied() {
            let offset = last.location().end();
            let checkpoint = Checkpoint {
                pack,
                offset,
                next_sequence: self.next_sequence,
            };
            // A stopped indexer has said why.
            let _ = self.batches.send(Batch {
                records: written,
                checkpoint,
            });
        }
    }
}

/// Waits for an order, then takes all that is there, up to the size of a group. `None`: nobody can order any more.
fn gather(queue: &mut mpsc::Receiver<Order>) -> Option<(Vec<Job>, bool)> {
    let mut next = Some(recv_blocking(queue)?);
    let (mut puts, mut bytes) = (Vec::new(), 0);
    while let Some(order) = next {
        match order {
            Order::Close => return Some((puts, true)),
            Order::Put(put) => {
                bytes += put
                    .records
                    .iter()
                    .map(|record| record.payload().len())
                    .sum::<usize>();
                puts.push(put);
            }
        }
        next = if bytes < GROUP_BYTES {
            queue.try_recv().ok()
        } else {
            None
        };
    }
    Some((puts, false))
}
