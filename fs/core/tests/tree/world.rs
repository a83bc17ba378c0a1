//! What the tree tests share: a store of nodes, random maps and edits, and the root of a map by the letter of
//! FORMAT.md.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use sealdrive_core::merge;
use sealdrive_core::node::Node;
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Edit, Key, Value};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Missing, Nodes, Root, TreeError};
use sealdrive_proto::id::{Cid, Epoch};
use sealdrive_proto::limits::MAX_NODE;

pub(crate) const NODE_KEY: [u8; 32] = [0x4e; 32];

pub(crate) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// SplitMix64: the same cases on every machine.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// Every node ever put, and how often nodes are asked for.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) nodes: RefCell<HashMap<Reference, Arc<Node>>>,
    pub(crate) gets: Cell<usize>,
    pub(crate) puts: Cell<usize>,
}

impl Store {
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Reference, TreeError> {
        let reference = name(bytes);
        assert!(bytes.len() <= MAX_NODE);
        let node =
            Node::decode(Bytes::copy_from_slice(bytes)).expect("what the merge writes must decode");
        self.nodes.borrow_mut().insert(reference, Arc::new(node));
        self.puts.set(self.puts.get() + 1);
        Ok(reference)
    }

    pub(crate) fn apply(&self, root: Option<&Root>, edits: &[Edit]) -> Root {
        let edits = edits.iter().map(|edit| (edit.key(), edit.value()));
        merge::apply(self, root, edits, &NODE_KEY, &mut |bytes| self.put(bytes))
            .expect("nothing is missing")
    }
}

impl Nodes for Store {
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing> {
        self.gets.set(self.gets.get() + 1);
        self.nodes
            .borrow()
            .get(reference)
            .cloned()
            .ok_or(Missing(*reference))
    }
}

pub(crate) fn name(bytes: &[u8]) -> Reference {
    let cid = Cid(*blake3::hash(bytes).as_bytes());
    Reference {
        epoch: Epoch(1),
        cid,
        plain_len: bytes.len() as u32,
        variant: 0,
    }
}

/// The root of a map, by the letter of FORMAT.md.
pub(crate) fn rebuild(model: &Model) -> Reference {
    let mut level = 0u8;
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = model
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    loop {
        let mut nodes: Vec<(u16, Vec<u8>, Vec<u8>)> = Vec::new();
        let mut open = false;
        for (key, value) in &entries {
            let mut entry = (key.len() as u16).to_le_bytes().to_vec();
            if level == 0 {
                entry.extend((value.len() as u16).to_le_bytes());
            }
            entry.extend(key);
            entry.extend(value);
            if !open || 4 + nodes.last().unwrap().1.len() + entry.len() > 24576 {
                nodes.push((0, Vec::new(), Vec::new()));
            }
            let node = nodes.last_mut().unwrap();
            node.0 += 1;
            node.1.extend(&entry);
            node.2 = key.clone();
            let hash = blake3::keyed_hash(&NODE_KEY, &[&[level], &key[..]].concat());
            let hash = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap());
            let mean = if level == 0 { 10240 } else { 6144 };
            let threshold =
                u64::try_from(entry.len() as u128 * ((1u128 << 64) / mean)).unwrap_or(u64::MAX);
            open = !(hash < threshold && (level == 0 || node.0 >= 2));
        }
        if nodes.is_empty() {
            return name(&[2, 0, 0, 0]);
        }
        let named: Vec<_> = nodes
            .into_iter()
            .map(|(count, body, last)| {
                let bytes = [&[2, level][..], &count.to_le_bytes(), &body].concat();
                (last, name(&bytes))
            })
            .collect();
        if let [(_, root)] = &named[..] {
            return *root;
        }
        entries = named
            .into_iter()
            .map(|(last, reference)| (last, reference.encode().to_vec()))
            .collect();
        level += 1;
    }
}

/// How keys and values of a case look: the profiles differ in fan-out and so in height.
#[derive(Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) keys: u64,
    pub(crate) key_pad: usize,
    pub(crate) value_max: u64,
}

pub(crate) const PROFILES: [Profile; 5] = [
    Profile {
        keys: 30,
        key_pad: 0,
        value_max: 40,
    },
    Profile {
        keys: 400,
        key_pad: 4,
        value_max: 2048,
    },
    Profile {
        keys: 3000,
        key_pad: 250,
        value_max: 300,
    },
    Profile {
        keys: 20_000,
        key_pad: 8,
        value_max: 60,
    },
    Profile {
        keys: 600,
        key_pad: 255,
        value_max: 2048,
    },
];

/// Long keys and values, and many: enough for two levels of inner nodes below the root.
pub(crate) const TALL: Profile = Profile {
    keys: 12_000,
    key_pad: 255,
    value_max: 2048,
};

pub(crate) fn random_key(dice: &mut Dice, profile: Profile) -> Key {
    let number = dice.below(profile.keys).to_be_bytes();
    Key::drive(9, &[&number[..], &vec![7; profile.key_pad]].concat())
}

pub(crate) fn random_value(dice: &mut Dice, profile: Profile) -> Value {
    let len = dice.below(profile.value_max + 1) as usize;
    // Mostly short with a few long ones, so that nodes are also cut by their length.
    let len = if dice.below(4) == 0 { len } else { len / 8 };
    Value::from(vec![dice.roll() as u8; len])
}

/// A batch of edits, sorted, one per key: scattered, in a stretch, or a deletion of a stretch.
pub(crate) fn random_batch(
    dice: &mut Dice,
    profile: Profile,
    model: &Model,
    most: u64,
) -> Vec<Edit> {
    let mut batch = Overlay::new();
    let count = dice.below(most) + 1;
    match dice.below(6) {
        0 => {
            let first = random_key(dice, profile);
            for (key, _) in model
                .range(first.as_bytes().to_vec()..)
                .take(count as usize)
            {
                batch.delete(Key::from_bytes(key).unwrap());
            }
        }
        1 => {
            let first = random_key(dice, profile);
            for (key, _) in model
                .range(first.as_bytes().to_vec()..)
                .take(count as usize)
            {
                batch.put(Key::from_bytes(key).unwrap(), random_value(dice, profile));
            }
        }
        2 if !model.is_empty() => {
            for _ in 0..count {
                let at = dice.below(model.len() as u64) as usize;
                let key = model.keys().nth(at).unwrap();
                batch.delete(Key::from_bytes(key).unwrap());
            }
        }
        _ => {
            for _ in 0..count {
                let key = random_key(dice, profile);
                if dice.below(4) == 0 {
                    batch.delete(key);
                } else {
                    batch.put(key, random_value(dice, profile));
                }
            }
        }
    }
    batch.into_edits().collect()
}

pub(crate) fn apply_to_model(model: &mut Model, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Put(key, value) => model.insert(key.as_bytes().to_vec(), value.to_vec()),
            Edit::Delete(key) => model.remove(key.as_bytes()),
        };
    }
}

/// Only what was fetched is there.
pub(crate) struct Fetched<'s> {
    pub(crate) store: &'s Store,
    pub(crate) here: RefCell<HashSet<Reference>>,
}

impl Nodes for Fetched<'_> {
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing> {
        if self.here.borrow().contains(reference) {
            self.store.get(reference)
        } else {
            Err(Missing(*reference))
        }
    }
}

pub(crate) fn puts(model: &Model) -> Vec<Edit> {
    model
        .iter()
        .map(|(key, value)| Edit::Put(Key::from_bytes(key).unwrap(), Value::from(&value[..])))
        .collect()
}
