//! The control records of a store, as the book wants them at start.
//!
//! Invariant: in an order in which they apply: links, slots, leases, then commits; of each drive its newest commit, and
//! before it those that a later one may name with its skip hash. A damaged record is reported and left out. Called by
//! `Store::open_on`.

use std::io::ErrorKind;

use sealdrive_pack::PackError;
use sealdrive_proto::commit::skip_seq;

use super::OpenError;
use super::packs::Packs;
use crate::book::{Record, RecordKind, numbered};
use crate::core::pack_kind;
use crate::index::{Index, Row, RowKey};

pub(super) fn read(index: &Index, packs: &Packs) -> Result<Vec<(Record, u64)>, OpenError> {
    let mut records = Vec::new();
    for kind in [
        RecordKind::Link,
        RecordKind::Slot,
        RecordKind::Lease,
        RecordKind::Commit,
    ] {
        let mut rows = index.list(pack_kind(kind))?;
        if kind == RecordKind::Commit {
            rows = reachable(&rows);
        }
        for (key, row) in rows {
            match packs.read(row.pack, row.location) {
                Ok(found) => {
                    let record = Record {
                        kind,
                        owner: key.owner,
                        id: key.id,
                        payload: found.payload,
                    };
                    records.push((record, row.received_ms));
                }
                Err(error @ (PackError::Damaged { .. } | PackError::Format)) => {
                    tracing::error!(pack = row.pack, %error, "a control record is damaged");
                }
                Err(PackError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    tracing::error!(pack = row.pack, "a control record is lost with its pack");
                }
                Err(source) => {
                    return Err(OpenError::Pack {
                        id: row.pack,
                        source,
                    });
                }
            }
        }
    }
    Ok(records)
}

/// The newest commit of each owner and what it can skip back to, in rising order. Rows come sorted by owner and number.
fn reachable(rows: &[(RowKey, Row)]) -> Vec<(RowKey, Row)> {
    let mut kept = Vec::new();
    for chain in rows.chunk_by(|a, b| a.0.owner == b.0.owner) {
        let mut wanted = Vec::new();
        let mut seq = chain.last().map_or(0, |(key, _)| number(&key.id));
        while seq != 0 {
            wanted.push(numbered(seq));
            seq = skip_seq(seq);
        }
        kept.extend(chain.iter().filter(|(key, _)| wanted.contains(&key.id)));
    }
    kept
}

fn number(id: &[u8; 32]) -> u64 {
    id[24..]
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
