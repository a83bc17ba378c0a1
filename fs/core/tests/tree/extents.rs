//! Extents against a model that knows, for every unit of a file, where it came from.

use bytes::Bytes;
use sealdrive_core::extent::{self, Change, Segment};
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Edit, Extent, INLINE_MAX, Ino, Key, KeyRef, MAX_FILE};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::Root;
use sealdrive_core::view::{ReadError, Txn, View};
use sealdrive_proto::id::{Cid, Epoch};
use sealdrive_proto::limits::MAX_CHUNK;

use crate::world::{Dice, Store};

/// Where one unit of a file came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Hole,
    /// Chunk number and unit within it.
    Chunk(u64, u64),
    Inline(u8),
}

/// Units of one file in the model.
const SPAN: u64 = 400;

struct World {
    unit: u64,
    store: Store,
    root: Root,
    active: Overlay,
    frozen: Option<Overlay>,
    files: [Vec<Origin>; 2],
}

impl World {
    fn new(unit: u64) -> Self {
        let store = Store::default();
        let root = store.apply(None, &[]);
        let files = [
            vec![Origin::Hole; SPAN as usize],
            vec![Origin::Hole; SPAN as usize],
        ];
        Self {
            unit,
            store,
            root,
            active: Overlay::new(),
            frozen: None,
            files,
        }
    }

    fn view(&self) -> View<'_> {
        View::new(
            &self.active,
            self.frozen.as_ref(),
            Some(&self.root),
            &self.store,
        )
    }

    fn change(&mut self, act: impl FnOnce(&mut Txn<'_>) -> Change) {
        let mut txn = Txn::new(self.view());
        let before: u64 = [1, 2]
            .into_iter()
            .map(|ino| allocated(&txn.view(), ino))
            .sum();
        let change = act(&mut txn);
        let after: u64 = [1, 2]
            .into_iter()
            .map(|ino| allocated(&txn.view(), ino))
            .sum();
        assert_eq!(
            change.applied_to(before),
            after,
            "bytes gained and lost are told"
        );
        let edits = txn.finish();
        edits.into_iter().for_each(|edit| self.active.apply(edit));
    }

    /// Layers move down now and then, as in a checkpoint.
    fn age(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            let edits: Vec<Edit> = frozen.into_edits().collect();
            self.root = self.store.apply(Some(&self.root), &edits);
        }
        self.frozen = Some(std::mem::take(&mut self.active));
    }

    fn origins(&self, segments: &[Segment]) -> Vec<Origin> {
        let mut found = Vec::new();
        for segment in segments {
            for at in 0..segment.len() / self.unit {
                found.push(match &segment.what {
                    Extent::Hole { .. } => Origin::Hole,
                    Extent::Inline(bytes) => Origin::Inline(bytes[at as usize]),
                    Extent::Chunk {
                        reference, skip, ..
                    } => {
                        let number = u64::from_le_bytes(reference.cid.0[..8].try_into().unwrap());
                        Origin::Chunk(number, u64::from(*skip) / self.unit + at)
                    }
                });
            }
        }
        found
    }

    fn check(&self, dice: &mut Dice) {
        for file in 0..2 {
            let from = dice.below(SPAN);
            let len = dice.below(SPAN - from) + 1;
            let ino = file as Ino + 1;
            let (off, bytes) = (from * self.unit, len * self.unit);
            let found = extent::segments(&self.view(), ino, off, bytes).unwrap();
            let mut at = off;
            for (index, segment) in found.iter().enumerate() {
                assert_eq!(segment.off, at, "no gap, no overlap");
                let hole = |segment: &Segment| matches!(segment.what, Extent::Hole { .. });
                assert!(
                    index == 0 || !(hole(segment) && hole(&found[index - 1])),
                    "one hole is one segment"
                );
                at = segment.end();
            }
            assert_eq!(at, off + bytes, "covers what was asked");
            let expected = &self.files[file][from as usize..][..len as usize];
            assert_eq!(self.origins(&found), expected);
            let tail = &self.files[file][from as usize..];
            let data = tail
                .iter()
                .position(|origin| *origin != Origin::Hole)
                .map(|at| off + at as u64 * self.unit);
            assert_eq!(extent::next_data(&self.view(), ino, off).unwrap(), data);
            let hole = tail
                .iter()
                .position(|origin| *origin == Origin::Hole)
                .unwrap_or(tail.len());
            assert_eq!(
                extent::next_hole(&self.view(), ino, off).unwrap(),
                off + hole as u64 * self.unit
            );
        }
    }
}

fn reference(number: u64, plain_len: u32) -> Reference {
    let mut cid = [0; 32];
    cid[..8].copy_from_slice(&number.to_le_bytes());
    Reference {
        epoch: Epoch(1),
        cid: Cid(cid),
        plain_len,
        variant: 0,
    }
}

/// Sum of all records, which also must not overlap.
fn allocated(view: &View<'_>, ino: Ino) -> u64 {
    let (mut sum, mut end) = (0, 0);
    for (key, value) in view.collect(&Key::extents(ino), usize::MAX).unwrap() {
        let Ok(KeyRef::Extent(_, off)) = key.parse() else {
            panic!("a stray record")
        };
        let len = Extent::decode(&value).unwrap().len();
        assert!(off >= end, "records overlap");
        end = off + len;
        sum += len;
    }
    sum
}

/// One random operation on the world and on the model alike.
fn step(world: &mut World, dice: &mut Dice, number: u64) {
    let unit = world.unit;
    let file = dice.below(2) as usize;
    let ino = file as Ino + 1;
    let from = dice.below(SPAN);
    let len = (dice.below(60) + 1).min(SPAN - from);
    let range = from as usize..(from + len) as usize;
    match dice.below(8) {
        0 => {
            world.change(|txn| Change {
                removed: extent::punch(txn, ino, from * unit, len * unit).unwrap(),
                added: 0,
            });
            world.files[file][range].fill(Origin::Hole);
        }
        1 if dice.below(4) == 0 => {
            world.change(|txn| Change {
                removed: extent::truncate(txn, ino, from * unit).unwrap(),
                added: 0,
            });
            world.files[file][from as usize..].fill(Origin::Hole);
        }
        2 | 3 => {
            let (other, to) = (dice.below(2) as usize, dice.below(SPAN));
            let len = len.min(SPAN - to);
            let (source, target) = ((ino, from * unit), (other as Ino + 1, to * unit));
            world.change(|txn| extent::clone_range(txn, source, target, len * unit).unwrap());
            let copied = world.files[file][from as usize..][..len as usize].to_vec();
            world.files[other][to as usize..][..len as usize].copy_from_slice(&copied);
        }
        4 if unit == 1 => {
            let content: Vec<u8> = (0..len).map(|at| (number + at) as u8).collect();
            let inline = Extent::Inline(Bytes::from(content.clone()));
            world.change(|txn| extent::put(txn, ino, from, &inline).unwrap());
            for (origin, byte) in world.files[file][range].iter_mut().zip(content) {
                *origin = Origin::Inline(byte);
            }
        }
        _ => {
            let len = len.min(MAX_CHUNK as u64 / unit);
            let room = MAX_CHUNK as u64 / unit - len;
            let skip = if room > 0 {
                dice.below(room.min(40) + 1)
            } else {
                0
            };
            let whole = ((skip + len) * unit) as u32;
            let chunk = Extent::Chunk {
                reference: reference(number, whole),
                skip: (skip * unit) as u32,
                len: (len * unit) as u32,
            };
            world.change(|txn| extent::put(txn, ino, from * unit, &chunk).unwrap());
            for at in 0..len {
                world.files[file][(from + at) as usize] = Origin::Chunk(number, skip + at);
            }
        }
    }
}

#[test]
fn extents_equal_the_model() {
    // In units of 64 KiB the longest extents reach as far as the look-back does.
    for (unit, seeds) in [(1, 60u64), (64 << 10, 60)] {
        for seed in 0..seeds {
            let dice = &mut Dice(seed ^ unit);
            let mut world = World::new(unit);
            for number in 0..150 {
                step(&mut world, dice, number);
                world.check(dice);
                if dice.below(15) == 0 {
                    world.age();
                }
            }
        }
    }
}

#[test]
fn the_longest_extent_is_found_from_its_last_byte() {
    let store = Store::default();
    let active = Overlay::new();
    let mut txn = Txn::new(View::new(&active, None, None, &store));
    let whole = Extent::Chunk {
        reference: reference(1, MAX_CHUNK as u32),
        skip: 0,
        len: MAX_CHUNK as u32,
    };
    extent::put(&mut txn, 1, 7, &whole).unwrap();
    let last = extent::segments(&txn.view(), 1, 7 + MAX_CHUNK as u64 - 1, 2).unwrap();
    assert_eq!(last.len(), 2);
    assert!(
        matches!(last[0].what, Extent::Chunk { skip, len: 1, .. } if skip == MAX_CHUNK as u32 - 1)
    );
    assert!(matches!(last[1].what, Extent::Hole { len: 1 }));
}

#[test]
fn a_file_of_a_hundred_thousand_extents_is_edited_locally() {
    let store = Store::default();
    let piece = |n: u64| Extent::Chunk {
        reference: reference(n, 4096),
        skip: 0,
        len: 4096,
    };
    let edits: Vec<Edit> = (0..100_000)
        .map(|n| Edit::Put(Key::extent(5, n * 4096), piece(n).encode().unwrap()))
        .collect();
    let root = store.apply(None, &edits);
    let active = Overlay::new();
    let dice = &mut Dice(4);
    for _ in 0..300 {
        let mut txn = Txn::new(View::new(&active, None, Some(&root), &store));
        let before = store.gets.get();
        extent::put(&mut txn, 5, dice.below(100_000 * 4096), &piece(7)).unwrap();
        assert!(
            store.gets.get() - before < 20,
            "{} nodes read for one write",
            store.gets.get() - before
        );
        assert!((2..=4).contains(&txn.len()), "{} edits", txn.len());
    }
    // Appending in sequence, all in one transaction.
    let mut txn = Txn::new(View::new(&active, None, Some(&root), &store));
    for n in 100_000..120_000 {
        extent::put(&mut txn, 5, n * 4096, &piece(n)).unwrap();
    }
    assert_eq!(txn.len(), 20_000);
    assert_eq!(
        extent::next_hole(&txn.view(), 5, 0).unwrap(),
        120_000 * 4096
    );
    assert_eq!(
        extent::truncate(&mut txn, 5, 10).unwrap(),
        120_000 * 4096 - 10
    );
}

#[test]
fn neighbours_of_one_chunk_read_as_one() {
    let store = Store::default();
    let active = Overlay::new();
    let mut txn = Txn::new(View::new(&active, None, None, &store));
    let run = |skip, len| Extent::Chunk {
        reference: reference(1, 1000),
        skip,
        len,
    };
    for (off, skip, len) in [(0, 0, 10), (10, 10, 20), (30, 40, 5)] {
        extent::put(&mut txn, 1, off, &run(skip, len)).unwrap();
    }
    let found = extent::segments(&txn.view(), 1, 0, 35).unwrap();
    let expected = [
        Segment {
            off: 0,
            what: run(0, 30),
        },
        Segment {
            off: 30,
            what: run(40, 5),
        },
    ];
    assert_eq!(found, expected);
}

#[test]
fn ranges_end_with_the_longest_file() {
    let store = Store::default();
    let active = Overlay::new();
    let mut txn = Txn::new(View::new(&active, None, None, &store));
    extent::put(
        &mut txn,
        1,
        MAX_FILE - 3,
        &Extent::Inline(Bytes::from_static(b"end")),
    )
    .unwrap();
    assert_eq!(
        extent::segments(&txn.view(), 1, MAX_FILE - 4, u64::MAX)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        extent::next_hole(&txn.view(), 1, MAX_FILE - 3).unwrap(),
        MAX_FILE
    );
    assert_eq!(extent::segments(&txn.view(), 1, MAX_FILE, 10).unwrap(), []);
    assert_eq!(
        extent::clone_range(&mut txn, (1, 0), (2, MAX_FILE), 10).unwrap(),
        Change::default()
    );
    assert_eq!(extent::truncate(&mut txn, 1, 0).unwrap(), 3);
}

#[test]
fn overlapping_records_are_damage() {
    let store = Store::default();
    let mut active = Overlay::new();
    let run = Extent::Chunk {
        reference: reference(1, 100),
        skip: 0,
        len: 100,
    };
    active.put(Key::extent(1, 0), run.encode().unwrap());
    active.put(Key::extent(1, 50), run.encode().unwrap());
    let view = View::new(&active, None, None, &store);
    assert_eq!(extent::segments(&view, 1, 10, 80), Err(ReadError::Damaged));
}

#[test]
fn a_long_symlink_target_comes_back() {
    let store = Store::default();
    let active = Overlay::new();
    let mut txn = Txn::new(View::new(&active, None, None, &store));
    for len in [4095, INLINE_MAX, 1, INLINE_MAX + 1] {
        let target = Bytes::from(vec![b't'; len]);
        extent::write_inline(&mut txn, 9, &target).unwrap();
        assert_eq!(
            extent::read_inline(&txn.view(), 9, len as u64).unwrap(),
            target
        );
        assert_eq!(
            extent::next_hole(&txn.view(), 9, 0).unwrap(),
            len as u64,
            "nothing of an older one is left"
        );
        assert_eq!(
            extent::read_inline(&txn.view(), 9, len as u64 + 1),
            Err(ReadError::Damaged)
        );
    }
}
