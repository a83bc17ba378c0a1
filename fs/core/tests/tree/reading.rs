//! Lookups, ranges and views against the model, and nodes that stand in the wrong place.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use sealdrive_core::diff::{diff, differs_in};
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Edit, Key, KeyRange, Value};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{self, Root, TreeError};
use sealdrive_core::view::{Txn, View};

use crate::world::{Dice, Model, PROFILES, Store, apply_to_model, random_batch, random_key};

#[test]
fn lookups_and_ranges_equal_the_model() {
    for seed in 0..40u64 {
        let dice = &mut Dice(seed + 1000);
        let profile = PROFILES[(seed % 5) as usize];
        let store = Store::default();
        let mut model = Model::new();
        let edits = random_batch(dice, profile, &model, profile.keys);
        apply_to_model(&mut model, &edits);
        let root = store.apply(None, &edits);
        for _ in 0..50 {
            let key = random_key(dice, profile);
            let found = tree::get(&store, &root, &key).unwrap();
            assert_eq!(
                found.as_deref(),
                model.get(key.as_bytes()).map(|value| &value[..])
            );
            let range = random_key(dice, profile)..random_key(dice, profile);
            assert_eq!(
                tree_range(&store, &root, &range),
                model_range(&model, &range)
            );
        }
        assert_eq!(
            tree_range(&store, &root, &Key::everything()).len(),
            model.len()
        );
    }
}

#[test]
fn views_merge_overlays_newest_first() {
    for seed in 0..60u64 {
        let dice = &mut Dice(seed + 2000);
        let profile = PROFILES[(seed % 3) as usize];
        let store = Store::default();
        let (mut model, mut layers) = (Model::new(), Vec::new());
        for _ in 0..4 {
            let batch = random_batch(dice, profile, &model, 200);
            apply_to_model(&mut model, &batch);
            layers.push(batch);
        }
        let root = store.apply(None, &layers[0]);
        let overlays: Vec<Overlay> = layers[1..].iter().map(|batch| overlay(batch)).collect();
        let view = View::new(&overlays[1], Some(&overlays[0]), Some(&root), &store);
        let mut txn = Txn::new(view);
        for edit in &layers[3] {
            match edit.value() {
                Some(value) => txn.put(edit.key().clone(), value.clone()),
                None => txn.delete(edit.key().clone()),
            }
        }
        let view = txn.view();
        for _ in 0..40 {
            let key = random_key(dice, profile);
            assert_eq!(
                view.get(&key).unwrap().as_deref(),
                model.get(key.as_bytes()).map(|value| &value[..])
            );
            let range = random_key(dice, profile)..random_key(dice, profile);
            let expected = model_range(&model, &range);
            let found = view.collect(&range, usize::MAX).unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|(key, value)| (key.as_bytes().to_vec(), value.to_vec()))
                .collect();
            assert_eq!(found, expected);
            let last = view.last(&range).unwrap();
            assert_eq!(
                last.map(|(key, value)| (key.as_bytes().to_vec(), value.to_vec())),
                expected.last().cloned()
            );
        }
        assert_eq!(txn.finish(), layers[3]);
    }
}

#[test]
fn a_difference_is_what_the_models_differ_in() {
    for seed in 0..100u64 {
        let dice = &mut Dice(seed + 4000);
        let profile = PROFILES[(seed % 5) as usize];
        let store = Store::default();
        let mut old = Model::new();
        let first = random_batch(dice, profile, &old, profile.keys);
        apply_to_model(&mut old, &first);
        let old_root = store.apply(None, &first);
        let (mut new, mut new_root) = (old.clone(), old_root);
        for _ in 0..dice.below(4) {
            let most = if dice.below(3) == 0 { profile.keys } else { 6 };
            let batch = random_batch(dice, profile, &new, most);
            apply_to_model(&mut new, &batch);
            new_root = store.apply(Some(&new_root), &batch);
        }
        type Sides = (Option<Vec<u8>>, Option<Vec<u8>>);
        let mut expected: BTreeMap<Vec<u8>, Sides> = BTreeMap::new();
        for (key, value) in &old {
            expected.entry(key.clone()).or_default().0 = Some(value.clone());
        }
        for (key, value) in &new {
            expected.entry(key.clone()).or_default().1 = Some(value.clone());
        }
        expected.retain(|_, (old, new)| old != new);
        for _ in 0..40 {
            let (a, b) = (random_key(dice, profile), random_key(dice, profile));
            let (start, end) = if a <= b { (a, b) } else { (b, a) };
            let range = KeyRange { start, end };
            let inside = range.start.as_bytes().to_vec()..range.end.as_bytes().to_vec();
            assert_eq!(
                differs_in(&store, &old_root, &new_root, &range).unwrap(),
                expected.range(inside).next().is_some(),
                "seed {seed}, {range:?}"
            );
        }
        let mut found = Vec::new();
        diff(&store, &old_root, &new_root, |difference| {
            let of = |value: Option<&[u8]>| value.map(<[u8]>::to_vec);
            found.push((
                difference.key.to_vec(),
                (of(difference.old), of(difference.new)),
            ));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(
            found,
            expected.into_iter().collect::<Vec<_>>(),
            "seed {seed}"
        );
    }
}

#[test]
fn a_small_difference_reads_a_small_part() {
    let dice = &mut Dice(6);
    let store = Store::default();
    let edits: Vec<Edit> = (0..20_000u64)
        .map(|n| {
            Edit::Put(
                Key::drive(9, &n.to_be_bytes()),
                Value::from(&dice.roll().to_le_bytes().repeat(5)[..]),
            )
        })
        .collect();
    let root = store.apply(None, &edits);
    for _ in 0..50 {
        let key = Key::drive(9, &dice.below(20_000).to_be_bytes());
        let other = store.apply(Some(&root), &[Edit::Delete(key.clone())]);
        let before = store.gets.get();
        let mut found = 0;
        diff(&store, &root, &other, |difference| {
            assert!(difference.key == key.as_bytes() && difference.new.is_none());
            found += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(found, 1);
        assert!(
            store.gets.get() - before <= 24,
            "{} nodes read",
            store.gets.get() - before
        );
    }
}

#[test]
fn nodes_in_the_wrong_place_are_damage() {
    let store = Store::default();
    let leaf = |keys: &[u64]| {
        let entries: Vec<u8> = keys
            .iter()
            .flat_map(|n| {
                let key = Key::drive(9, &n.to_be_bytes());
                [&[17, 0, 1, 0][..], key.as_bytes(), b"v"].concat()
            })
            .collect();
        store
            .put(&[&[2, 0, keys.len() as u8, 0][..], &entries].concat())
            .unwrap()
    };
    let inner = |level: u8, children: &[(u64, Reference)]| {
        let entries: Vec<u8> = children
            .iter()
            .flat_map(|(n, child)| {
                [
                    &[17, 0][..],
                    Key::drive(9, &n.to_be_bytes()).as_bytes(),
                    &child.encode(),
                ]
                .concat()
            })
            .collect();
        Root(
            store
                .put(&[&[2, level, children.len() as u8, 0][..], &entries].concat())
                .unwrap(),
        )
    };
    let key = |n: u64| Key::drive(9, &n.to_be_bytes());
    let (low, high) = (leaf(&[1, 2]), leaf(&[5, 6]));
    let good = inner(1, &[(2, low), (6, high)]);
    assert_eq!(
        tree::get(&store, &good, &key(5)).unwrap().as_deref(),
        Some(&b"v"[..])
    );
    let overlapping = leaf(&[2, 6]);
    for (what, bad) in [
        ("another last key", inner(1, &[(2, low), (7, high)])),
        (
            "reaches to the left",
            inner(1, &[(2, low), (6, overlapping)]),
        ),
        ("skips a level", inner(2, &[(2, low), (6, high)])),
        ("an only child", inner(1, &[(6, high)])),
        (
            "an inner node as a leaf",
            inner(1, &[(2, low), (6, good.0)]),
        ),
    ] {
        assert!(
            matches!(tree::get(&store, &bad, &key(5)), Err(TreeError::Damaged(_))),
            "{what}"
        );
        assert!(matches!(
            tree::range(&store, &bad, &Key::everything(), |_, _| {
                ControlFlow::Continue(())
            }),
            Err(TreeError::Damaged(_))
        ));
    }
    let left = inner(1, &[(2, low), (6, high)]).0;
    let right = inner(1, &[(7, leaf(&[4, 7])), (9, leaf(&[8, 9]))]).0;
    let crossing = inner(2, &[(6, left), (9, right)]);
    assert!(
        matches!(
            tree::get(&store, &crossing, &key(7)),
            Err(TreeError::Damaged(_))
        ),
        "crosses its uncle"
    );
}

fn overlay(batch: &[Edit]) -> Overlay {
    let mut overlay = Overlay::new();
    batch.iter().cloned().for_each(|edit| overlay.apply(edit));
    overlay
}

fn tree_range(store: &Store, root: &Root, range: &KeyRange) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    tree::range(store, root, range, |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn model_range(model: &Model, range: &KeyRange) -> Vec<(Vec<u8>, Vec<u8>)> {
    if range.start >= range.end {
        return Vec::new();
    }
    let (from, to) = (
        range.start.as_bytes().to_vec(),
        range.end.as_bytes().to_vec(),
    );
    model
        .range(from..to)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
