//! What the outbox has lost: objects that are damaged or gone and that the server may not have.
//!
//! Invariant: what was promised and what never was are told apart by a witness. The index remembers how far each pack
//! was synced; only what lies before that counts as lost, because a power cut may leave of the rest any pieces in any
//! order. The witness may lag behind what was synced, never run ahead of it. What is found not to be good is noted in
//! the index together with how far the server has acknowledged, so that an acknowledgement of what stands behind it
//! never counts for it. Called when the store is opened.

use std::collections::HashSet;

use sealdrive_proto::id::Sid;

use super::StoreError;
use super::index::{Index, Marks};
use super::outbox::Outbox;
use super::packfile::{self, Bad};
use super::place::{Place, Row};

/// A stretch of an outbox pack that is known not to be good, and is not taken for sent when later ones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    /// Number of the pack.
    pub(super) pack: u64,
    /// Its first byte.
    pub(super) from: u64,
    /// The byte after its last.
    pub(super) to: u64,
    /// Whether it had been promised; else a power cut tore it before.
    pub(super) lost: bool,
}

impl Hole {
    /// Encoded length, bytes.
    pub(super) const LEN: usize = 25;

    /// Whether the whole pack was gone: no record begins at its first byte.
    fn is_whole_pack(&self) -> bool {
        self.from == 0
    }

    /// `pack u64 ‖ from u64 ‖ to u64 ‖ lost u8`, little-endian.
    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.pack.to_le_bytes());
        out[8..16].copy_from_slice(&self.from.to_le_bytes());
        out[16..24].copy_from_slice(&self.to.to_le_bytes());
        out[24] = u8::from(self.lost);
        out
    }

    /// Reads exactly 25 bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (pack, rest) = bytes.split_first_chunk::<8>()?;
        let (from, rest) = rest.split_first_chunk::<8>()?;
        let (to, rest) = rest.split_first_chunk::<8>()?;
        let &[lost @ (0 | 1)] = rest else { return None };
        Some(Self {
            pack: u64::from_le_bytes(*pack),
            from: u64::from_le_bytes(*from),
            to: u64::from_le_bytes(*to),
            lost: lost == 1,
        })
    }
}

/// Objects of an outbox pack that are damaged or gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    /// Number of the pack.
    pub pack: u64,
    /// Those whose id is known, and whether the server had acknowledged them.
    pub sids: Vec<(Sid, bool)>,
    /// Something that the server may not have cannot even be named.
    pub unknown: bool,
}

impl Lost {
    /// Whether the server may lack something of it.
    pub fn is_loss(&self) -> bool {
        self.unknown || self.sids.iter().any(|(_, acknowledged)| !acknowledged)
    }
}

/// All that is not good in the outbox.
#[derive(Default)]
pub(super) struct Damage {
    /// What was promised, by pack.
    pub(super) lost: Vec<Lost>,
    /// Stretches to be remembered.
    pub(super) holes: Vec<Hole>,
    /// Records that are not good and that the witness does not cover: torn by a power cut, most likely.
    pub(super) doubtful: Vec<Sid>,
}

impl Damage {
    /// Judges what recovery found in one pack. The index has heard of every id that was promised: one of which it has
    /// not is rotten itself, and what it was is found by its place.
    pub(super) fn judge(
        &mut self,
        number: u64,
        scan: &packfile::Scan,
        marks: &Marks,
        has_heard_of: impl Fn(&Sid) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let durable = marks.durable.iter().find(|end| end.pack == number);
        let durable = durable.map_or(0, |end| end.offset);
        // What was found to be cut short stays so: since then the index knows only how long it is.
        let lost = marks.holes.iter().filter(|h| h.pack == number && h.lost);
        let cut = lost.map(|hole| hole.to).max().unwrap_or(0);
        let was_cut = cut > scan.len;
        let durable = durable.max(cut);
        let is_acknowledged = |from, to| marks.is_acknowledged(number, from, to);
        let mut found = Lost {
            pack: number,
            sids: Vec::new(),
            unknown: false,
        };
        let mut lose = |bad: &Bad, acknowledged| {
            match bad.sid {
                Some(sid) if has_heard_of(&sid)? => found.sids.push((sid, acknowledged)),
                _ => found.unknown |= !acknowledged,
            }
            Ok::<_, StoreError>(())
        };
        for bad in &scan.bad {
            let is_it =
                |hole: &&Hole| hole.pack == number && hole.from <= bad.from && bad.to <= hole.to;
            let known = marks.holes.iter().find(is_it);
            // The server acknowledges in order; what was known to be missing then was stepped over.
            let acknowledged = known.is_none() && is_acknowledged(bad.from, bad.to);
            let promised = known.map_or(bad.from < durable, |hole| hole.lost);
            if promised {
                lose(bad, acknowledged)?;
            } else {
                self.doubtful.extend(bad.sid);
            }
            self.holes.push(Hole {
                pack: number,
                from: bad.from,
                to: bad.to,
                lost: promised && !acknowledged,
            });
        }
        // What looks like a torn tail had been synced: then it is damage.
        let is_cut = scan.len < durable;
        let has_it = |from, to| !was_cut && is_acknowledged(from, to);
        match &scan.tail {
            Some(bad) if is_cut => lose(bad, has_it(bad.from, bad.to))?,
            tail => self.doubtful.extend(tail.as_ref().and_then(|bad| bad.sid)),
        }
        if is_cut && !has_it(scan.len, durable) {
            found.unknown = true;
            self.holes.push(Hole {
                pack: number,
                from: scan.len,
                to: durable,
                lost: true,
            });
        }
        if found.unknown || !found.sids.is_empty() {
            self.lost.push(found);
        }
        Ok(())
    }

    /// Packs of the outbox that the index remembers and that are neither there nor in the cache. They are missed until
    /// a commit reaches past them.
    pub(super) fn miss_packs(&mut self, marks: &Marks, in_outbox: &[u64], in_cache: &[u64]) {
        let is_here = |pack: u64| {
            let mut all = in_outbox.iter().chain(in_cache);
            all.any(|number| *number == pack)
        };
        let known = marks.durable.iter().map(|end| Hole {
            pack: end.pack,
            from: 0,
            to: end.offset,
            lost: true,
        });
        let before = marks.holes.iter().filter(|hole| hole.is_whole_pack());
        for hole in known.chain(before.copied()).filter(|h| !is_here(h.pack)) {
            self.lost.push(Lost {
                pack: hole.pack,
                sids: Vec::new(),
                unknown: true,
            });
            self.holes.push(hole);
        }
    }

    /// The index knows the ids of what cannot be named any more from the packs alone, and what has been sealed again
    /// elsewhere since.
    pub(super) fn name(
        &mut self,
        index: &Index,
        outbox: &Outbox,
        marks: &Marks,
    ) -> Result<(), StoreError> {
        if self.lost.is_empty() {
            return Ok(());
        }
        let here: HashSet<(Sid, u64)> = outbox
            .places()
            .into_iter()
            .map(|(sid, place)| (sid, place.pack))
            .collect();
        let packs: Vec<u64> = self
            .lost
            .iter()
            .filter(|lost| lost.unknown)
            .map(|lost| lost.pack)
            .collect();
        let rows = match packs.is_empty() {
            true => Vec::new(),
            false => index.sids_in(&packs)?,
        };
        for (sid, place) in rows {
            let owner = self.lost.iter_mut().find(|lost| lost.pack == place.pack);
            if let Some(owner) = owner
                && !here.contains(&(sid, place.pack))
                && !owner.sids.iter().any(|(known, _)| *known == sid)
            {
                let to = packfile::end_of(place.offset, place.len);
                let acknowledged = marks.is_acknowledged(place.pack, place.offset, to);
                owner.sids.push((sid, acknowledged));
            }
        }
        for lost in &mut self.lost {
            let mut sids = Vec::with_capacity(lost.sids.len());
            for (sid, acknowledged) in std::mem::take(&mut lost.sids) {
                let elsewhere = match index.get(&sid)? {
                    Some(Row::Local(Place { pack, .. })) => pack != lost.pack,
                    Some(Row::Sent) => true,
                    Some(Row::Gone) | None => false,
                };
                if !elsewhere && !here.contains(&(sid, lost.pack)) {
                    sids.push((sid, acknowledged));
                }
            }
            lost.sids = sids;
        }
        self.lost
            .retain(|lost| lost.unknown || !lost.sids.is_empty());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sealdrive_pack::Directory;

    use super::super::packfile::{Entry, NOTE_LEN, PackWriter};
    use super::super::place::Position;
    use super::*;

    const SYNCED: usize = 3;

    /// Six records of which the first three had been synced; the file, its records and what the index says.
    fn rig(dir: &std::path::Path) -> (std::path::PathBuf, Vec<Entry>, Marks) {
        let mut writer = PackWriter::create(&Directory::open(dir).unwrap(), 1).unwrap();
        let mut object = vec![9; 400];
        object[..4].copy_from_slice(b"SDO1");
        let mut append = |n| {
            writer
                .append(Sid([n; 32]), &[n; NOTE_LEN], &object)
                .unwrap()
        };
        let entries: Vec<Entry> = (0..6).map(&mut append).collect();
        writer.flush().unwrap();
        let marks = Marks {
            durable: vec![Position::new(1, entries[SYNCED - 1].end())],
            ..Marks::default()
        };
        (dir.join(packfile::file_name(1)), entries, marks)
    }

    fn judge(dir: &std::path::Path, marks: &Marks) -> Damage {
        let dir: Arc<Directory> = Arc::new(Directory::open(dir).unwrap());
        let mut damage = Damage::default();
        let scan = packfile::recover(&*dir, 1).unwrap();
        damage.judge(1, &scan, marks, |_| Ok(true)).unwrap();
        damage
    }

    /// Writes that an ordinary power cut reordered or tore were called lost objects, at every second crash.
    #[test]
    fn only_what_had_been_synced_counts_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (path, entries, marks) = rig(dir.path());
        let good = std::fs::read(&path).unwrap();
        for at in 8..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let damage = judge(dir.path(), &marks);
            let number = entries.iter().position(|e| (at as u64) < e.end()).unwrap();
            assert_eq!(damage.lost.len(), usize::from(number < SYNCED), "byte {at}");
            for lost in &damage.lost {
                assert!(lost.is_loss());
                let sid = lost.sids.first().map(|(sid, _)| sid.0[0]);
                let in_sid = (8..40).contains(&(at as u64 - entries[number].offset));
                assert!(in_sid || sid.is_none_or(|sid| usize::from(sid) == number));
            }
            // The next mount, after the server has acknowledged what stands behind: still the same, and not sent.
            let later = Marks {
                durable: vec![Position::new(1, good.len() as u64)],
                acknowledged: Position::new(1, good.len() as u64),
                holes: damage.holes.clone(),
                ..marks.clone()
            };
            if number + 1 < entries.len() {
                let again = judge(dir.path(), &later);
                assert_eq!(again.lost, damage.lost, "byte {at}");
                assert_eq!(again.holes, damage.holes, "byte {at}");
            }
        }
        for len in 8..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            let damage = judge(dir.path(), &marks);
            let cut = (len as u64) < entries[SYNCED - 1].end();
            assert_eq!(damage.lost.len(), usize::from(cut), "{len} bytes");
        }
    }

    #[test]
    fn a_hole_is_read_as_it_was_written() {
        let hole = Hole {
            pack: 3,
            from: 8,
            to: 1 << 40,
            lost: true,
        };
        let bytes = hole.encode();
        assert_eq!(Hole::decode(&bytes), Some(hole));
        assert_eq!(Hole::decode(&bytes[1..]), None);
        let mut other = bytes;
        other[24] = 2;
        assert_eq!(Hole::decode(&other), None);
    }
}
