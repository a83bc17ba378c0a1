//! The writer thread: takes puts in order, appends, syncs once for all that wait, then answers.
//!
//! Order of a group: append → sync → visible in the tail → acknowledge → hand to the indexer. While one sync runs, the
//! next group gathers by itself, so nobody waits for a timer. Invariant: a put is appended whole or not at all, and not
//! if its owner would then have more than the quota; after a failed sync nothing is acknowledged any more. Called by
//! `Store`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, PoisonError};

use sealdrive_pack::{Entry, HEADER_LEN, PackError, PackHeader, Record, RecordKind, Writer};
use sealdrive_runtime::channel::{SyncSender, recv_blocking};
use sealdrive_runtime::thread::{self, JoinHandle};
use tokio::sync::{mpsc, oneshot};

use super::indexer::Batch;
use super::open::Continuation;
use super::usage::Usage;
use super::{Job, Latest, Order, Put, Shared, StoreError};
use crate::clock::unix_ms;
use crate::index::{Checkpoint, IndexError, Row, RowKey};
use crate::limits::{CONTROL_PART, GROUP_BYTES};

struct Thread {
    shared: Arc<Shared>,
    batches: SyncSender<Batch>,
    pack: Option<Writer>,
    next_pack: u64,
    next_sequence: u64,
    usage: Usage,
}

/// Why one put is not in the group.
enum NotPlaced {
    /// That concerns only this put.
    Refused(StoreError),
    /// That is the end.
    Failed(PackError),
}

impl From<PackError> for NotPlaced {
    fn from(error: PackError) -> Self {
        match error {
            PackError::NoSpace => Self::Refused(StoreError::NoSpace),
            error => Self::Failed(error),
        }
    }
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
        usage: Usage::default(),
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
                Err(PackError::NoSpace.into())
            } else {
                self.place(records, &mut group)
            };
            match placed {
                Ok(placed) => group.answers.push((reply, placed)),
                Err(NotPlaced::Refused(why)) => drop(reply.send(Err(why))),
                Err(NotPlaced::Failed(error)) => return Err(error),
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
    fn place(&mut self, records: Vec<Record>, group: &mut Group) -> Result<Vec<Put>, NotPlaced> {
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
        self.check_quota(&new)?;
        self.append(&new, group)?;
        Ok(puts)
    }

    /// Refuses what would give an owner more than the quota. What stands already is not among `new`.
    fn check_quota(&mut self, new: &[Record]) -> Result<(), NotPlaced> {
        let Some(quota) = self.shared.options.quota else {
            return Ok(());
        };
        let mut more: BTreeMap<[u8; 32], u64> = BTreeMap::new();
        for object in new.iter().filter(|new| new.kind == RecordKind::Object) {
            *more.entry(object.owner).or_default() += object.payload().len() as u64;
        }
        for (owner, more) in more {
            let used = self.usage.of(&self.shared.index, &owner);
            if used.map_err(look_up)?.saturating_add(more) > quota {
                return Err(NotPlaced::Refused(StoreError::OverQuota));
            }
        }
        Ok(())
    }

    /// Counts what a record changes about its owner's objects, as the index will.
    fn count(&mut self, key: &RowKey, row: Option<Row>, group: &Group) -> Result<(), PackError> {
        if self.shared.options.quota.is_none() || key.kind != RecordKind::Object {
            return Ok(());
        }
        // An object is written only where none stands.
        let gone = match row {
            Some(_) => None,
            None => self.standing(key, group)?,
        };
        let len = |row: Option<Row>| row.map_or(0, |row| u64::from(row.location.len));
        let used = self.usage.of(&self.shared.index, &key.owner);
        let used = used.map_err(look_up)?;
        *used = used.saturating_add(len(row)).saturating_sub(len(gone));
        Ok(())
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
            self.count(&key, row, group)?;
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
        Ok(found.map_err(look_up)?[0])
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

fn look_up(error: IndexError) -> PackError {
    PackError::Io {
        what: "look up",
        source: io::Error::other(error),
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
