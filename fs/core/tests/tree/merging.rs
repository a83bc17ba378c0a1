//! The merge: incremental ≡ rebuild, small edits stay small, retries succeed.

use std::cell::RefCell;

use sealdrive_core::merge;
use sealdrive_core::record::{Edit, Key, Value};
use sealdrive_core::tree::{Nodes, TreeError};

use crate::world::{
    Dice, Fetched, Model, NODE_KEY, PROFILES, Store, TALL, apply_to_model, name, puts,
    random_batch, random_key, rebuild,
};

#[test]
fn incremental_equals_rebuild() {
    let mut highest = 0;
    for seed in 0..400u64 {
        let dice = &mut Dice(seed);
        // Few of the tall ones: they take long.
        let (profile, many) = match seed % 50 {
            7 => (TALL, TALL.keys),
            _ => (PROFILES[(seed % 5) as usize], 3000),
        };
        let store = Store::default();
        let mut model = Model::new();
        let mut root = store.apply(None, &[]);
        assert_eq!(root.0, rebuild(&model));
        for step in 0..12 {
            let most = if step % 4 == 0 {
                profile.keys.min(many)
            } else {
                8
            };
            let edits = random_batch(dice, profile, &model, most);
            apply_to_model(&mut model, &edits);
            root = store.apply(Some(&root), &edits);
            assert_eq!(
                root.0,
                rebuild(&model),
                "seed {seed}, step {step}, {} records",
                model.len()
            );
        }
        highest = highest.max(store.get(&root.0).unwrap().level());
        let all: Vec<Edit> = model
            .keys()
            .map(|key| Edit::Delete(Key::from_bytes(key).unwrap()))
            .collect();
        let (most, rest) = all.split_at(all.len().saturating_sub(seed as usize % 7));
        // The nodes put by this very merge are not to be had from outside, as for a client that is still sealing them.
        let old = Fetched {
            store: &store,
            here: RefCell::new(store.nodes.borrow().keys().copied().collect()),
        };
        let sorted = most.iter().map(|edit| (edit.key(), edit.value()));
        let few = merge::apply(&old, Some(&root), sorted, &NODE_KEY, &mut |bytes| {
            store.put(bytes)
        })
        .unwrap();
        apply_to_model(&mut model, most);
        assert_eq!(
            few.0,
            rebuild(&model),
            "seed {seed}: the tree becomes lower"
        );
        assert_eq!(
            store.apply(Some(&few), rest).0,
            name(&[2, 0, 0, 0]),
            "the empty map is an empty leaf"
        );
    }
    assert!(
        highest >= 3,
        "the cases must reach inner levels, got {highest}"
    );
}

#[test]
fn many_tiny_edits_at_every_border() {
    // Change, delete and insert before each single entry of a tree with many nodes cut by length.
    for profile in [PROFILES[4], PROFILES[1]] {
        let dice = &mut Dice(99);
        let store = Store::default();
        let mut model = Model::new();
        for _ in 0..300 {
            model.insert(
                random_key(dice, profile).as_bytes().to_vec(),
                vec![3; 1900 - dice.below(900) as usize],
            );
        }
        let root = store.apply(None, &puts(&model));
        for key in model.keys().cloned().collect::<Vec<_>>() {
            let before = Key::drive(9, &key[9..key.len() - 1]);
            for edit in [
                Edit::Delete(Key::from_bytes(&key).unwrap()),
                Edit::Put(Key::from_bytes(&key).unwrap(), Value::from(vec![1; 5])),
                Edit::Put(Key::from_bytes(&key).unwrap(), Value::from(vec![1; 2048])),
                Edit::Put(before, Value::from(&b"x"[..])),
            ] {
                let mut edited = model.clone();
                apply_to_model(&mut edited, std::slice::from_ref(&edit));
                assert_eq!(store.apply(Some(&root), &[edit]).0, rebuild(&edited));
            }
        }
    }
}

#[test]
fn a_small_edit_touches_a_small_part() {
    let profile = PROFILES[3];
    let store = Store::default();
    let model: Model = (0..profile.keys)
        .map(|n| {
            (
                Key::drive(9, &n.to_be_bytes()).as_bytes().to_vec(),
                n.to_le_bytes().repeat(6).to_vec(),
            )
        })
        .collect();
    let root = store.apply(None, &puts(&model));
    let (total, height) = (
        store.nodes.borrow().len(),
        usize::from(store.get(&root.0).unwrap().level()) + 1,
    );
    assert!(
        total > 150 && height == 3,
        "{total} nodes in {height} levels"
    );
    let dice = &mut Dice(5);
    for _ in 0..200 {
        let key = Key::drive(9, &dice.below(profile.keys).to_be_bytes());
        let (gets, puts) = (store.gets.get(), store.puts.get());
        store.apply(Some(&root), &[Edit::Put(key, Value::from(&b"new"[..]))]);
        assert!(
            store.puts.get() - puts <= 3 * height,
            "{} nodes written",
            store.puts.get() - puts
        );
        assert!(
            store.gets.get() - gets <= 30,
            "{} nodes read",
            store.gets.get() - gets
        );
    }
    let same: Vec<Edit> = puts(&model).into_iter().step_by(50).collect();
    let before = store.puts.get();
    assert_eq!(store.apply(Some(&root), &same), root);
    assert_eq!(
        store.puts.get(),
        before,
        "edits that change nothing store nothing"
    );
}

#[test]
fn missing_nodes_are_named_and_a_retry_succeeds() {
    for seed in 0..30u64 {
        let dice = &mut Dice(seed + 3000);
        let profile = PROFILES[2 + (seed % 3) as usize];
        let store = Store::default();
        let mut model = Model::new();
        let edits = random_batch(dice, profile, &model, profile.keys);
        apply_to_model(&mut model, &edits);
        let root = store.apply(None, &edits);
        let edits = random_batch(dice, profile, &model, 30);
        apply_to_model(&mut model, &edits);
        let cold = Fetched {
            store: &store,
            here: RefCell::default(),
        };
        loop {
            let wanted =
                merge::wanted(&cold, &root, edits.iter().map(|edit| edit.key()), 10).unwrap();
            assert!(wanted.len() <= 10);
            if wanted.is_empty() {
                break;
            }
            let new = wanted
                .iter()
                .filter(|reference| cold.here.borrow_mut().insert(**reference))
                .count();
            assert_eq!(new, wanted.len(), "nothing is asked for twice");
        }
        let mut retries = 0;
        let new = loop {
            let sorted = edits.iter().map(|edit| (edit.key(), edit.value()));
            match merge::apply(&cold, Some(&root), sorted, &NODE_KEY, &mut |bytes| {
                store.put(bytes)
            }) {
                Ok(root) => break root,
                Err(TreeError::Missing(reference)) => {
                    assert!(cold.here.borrow_mut().insert(reference))
                }
                Err(damaged) => panic!("{damaged}"),
            }
            retries += 1;
        };
        assert!(
            retries <= 3 * edits.len() + 5,
            "only neighbours were left to fetch"
        );
        assert_eq!(new.0, rebuild(&model));
    }
}
