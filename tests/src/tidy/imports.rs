//! The walls between crates: which package may stand on which, directly and at any depth.
//!
//! Invariant: `server` cannot link what opens an object, and the pure core cannot reach the outside world.
//! Called by `tests/tidy.rs` with the real dependency graph.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use super::Finding;

/// What one package stands on.
#[derive(Debug, Default, Clone)]
pub struct Ground {
    /// Named in its own manifest, development dependencies left out.
    pub named: BTreeSet<String>,
    /// Linked into it at any depth, with the features it alone asks for.
    pub linked: BTreeSet<String>,
}

/// Package → what it stands on.
pub type Graph = BTreeMap<String, Ground>;

/// What a package of this workspace may name directly among its siblings. Anything else is a hole in a wall.
const SIBLINGS: &[(&str, &[&str])] = &[
    ("sealdrive-proto", &[]),
    ("sealdrive-pack", &["sealdrive-proto"]),
    ("sealdrive-runtime", &[]),
    ("sealdrive-core", &["sealdrive-proto"]),
    (
        "sealdrive",
        &[
            "sealdrive-proto",
            "sealdrive-pack",
            "sealdrive-runtime",
            "sealdrive-core",
            "sealdrive-server",
        ],
    ),
    (
        "sealdrive-server",
        &["sealdrive-proto", "sealdrive-pack", "sealdrive-runtime"],
    ),
    (
        "sealdrive-tests",
        &[
            "sealdrive-proto",
            "sealdrive-pack",
            "sealdrive-runtime",
            "sealdrive-core",
            "sealdrive",
            "sealdrive-server",
        ],
    ),
];

/// What a package must not reach at any depth, and why.
const UNREACHABLE: &[(&str, &[&str], &str)] = &[
    (
        "sealdrive-server",
        &[
            "sealdrive-core",
            "sealdrive",
            "aes-siv",
            "chacha20poly1305",
            "fastcdc",
            "fuser",
        ],
        "the server cannot read files because it cannot link the code that opens them",
    ),
    (
        "sealdrive-core",
        &[
            "tokio",
            "fuser",
            "tonic",
            "prost",
            "redb",
            "rustix",
            "sealdrive-pack",
            "sealdrive-server",
        ],
        "the core is pure: no kernel, network, database or runtime",
    ),
    (
        "sealdrive-runtime",
        &["tonic", "prost", "redb", "fuser", "rustix"],
        "threads, time and tasks stand below everything else",
    ),
    (
        "sealdrive-pack",
        &[
            "tokio",
            "tonic",
            "prost",
            "redb",
            "sealdrive-core",
            "aes-siv",
            "chacha20poly1305",
        ],
        "pack files hold sealed bytes; both sides use them",
    ),
];

/// What a package must not name itself, though a library below it may.
const UNNAMED: &[(&str, &[&str], &str)] = &[(
    "sealdrive-core",
    &["rand", "rand_core", "getrandom"],
    "entropy comes into the core as an argument",
)];

/// Judges the graph of the workspace.
pub fn walls(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |place: &str, what: String| {
        findings.push(Finding {
            place: place.into(),
            line: 0,
            what,
        });
    };
    for package in graph.keys().filter(|name| name.starts_with("sealdrive")) {
        let Some((_, allowed)) = SIBLINGS.iter().find(|(name, _)| name == package) else {
            found(package, "a new package: give it a row in SIBLINGS".into());
            continue;
        };
        for sibling in graph[package]
            .named
            .iter()
            .filter(|name| name.starts_with("sealdrive"))
        {
            if !allowed.contains(&sibling.as_str()) {
                found(package, format!("must not import {sibling}"));
            }
        }
    }
    for (package, forbidden, why) in UNREACHABLE {
        let linked = graph.get(*package).map(|ground| &ground.linked);
        for name in forbidden
            .iter()
            .filter(|name| linked.is_some_and(|all| all.contains(**name)))
        {
            found(package, format!("links {name}: {why}"));
        }
    }
    for (package, forbidden, why) in UNNAMED {
        let named = graph.get(*package).map(|ground| &ground.named);
        for name in forbidden
            .iter()
            .filter(|name| named.is_some_and(|all| all.contains(**name)))
        {
            found(package, format!("names {name}: {why}"));
        }
    }
    findings
}

/// The graph as cargo resolves it, offline.
///
/// `cargo metadata` gives one graph with the features of all packages together, in which even the pure core seems to
/// link tonic (through the `rpc` feature of the wire crate). So what is linked is asked of `cargo tree`, by package.
pub fn resolved(repository: &Path) -> Graph {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(repository)
        .no_deps()
        .other_options(["--offline".into()])
        .exec()
        .expect("cargo metadata");
    let ground = |package: &cargo_metadata::Package| {
        let product = |dep: &&cargo_metadata::Dependency| {
            dep.kind != cargo_metadata::DependencyKind::Development
        };
        let named = package
            .dependencies
            .iter()
            .filter(product)
            .map(|dep| dep.name.clone())
            .collect();
        Ground {
            named,
            linked: linked(repository, &package.name),
        }
    };
    metadata
        .packages
        .iter()
        .map(|package| (package.name.to_string(), ground(package)))
        .collect()
}

fn linked(repository: &Path, package: &str) -> BTreeSet<String> {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--no-dedupe",
            "--package",
            package,
        ])
        .current_dir(repository)
        .output()
        .expect("cargo tree");
    assert!(
        tree.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let text = String::from_utf8_lossy(&tree.stdout);
    let names = text.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| *name != package)
        .map(str::to_owned)
        .collect()
}

/// Whether a build with these arguments has the scheduler of the simulation in it.
pub fn simulates(repository: &Path, selection: &[&str]) -> bool {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "features"])
        .args(["--invert", "sealdrive-runtime"])
        .args(selection)
        .current_dir(repository)
        .output()
        .expect("cargo tree");
    assert!(
        tree.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&tree.stderr)
    );
    String::from_utf8_lossy(&tree.stdout).contains("sealdrive-runtime feature \"simulation\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packages with what they name; what they link follows the named edges.
    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let named = |from: &str| -> Vec<String> {
            let row = edges.iter().find(|(name, _)| *name == from);
            row.map(|(_, to)| to.iter().map(|name| (*name).to_owned()).collect())
                .unwrap_or_default()
        };
        let mut graph = Graph::new();
        for (package, _) in edges {
            let mut linked = BTreeSet::new();
            let mut open = named(package);
            while let Some(next) = open.pop() {
                open.extend(named(&next));
                linked.insert(next);
            }
            let named = named(package).into_iter().collect();
            graph.insert((*package).to_owned(), Ground { named, linked });
        }
        graph
    }

    #[test]
    fn allowed_edges_pass() {
        let good = graph(&[
            ("sealdrive-proto", &["blake3"]),
            ("sealdrive-core", &["sealdrive-proto", "aes-siv"]),
            ("sealdrive-server", &["sealdrive-proto", "tonic"]),
            (
                "sealdrive",
                &["sealdrive-core", "sealdrive-server", "fuser"],
            ),
        ]);
        assert_eq!(walls(&good), vec![]);
    }

    #[test]
    fn a_direct_hole_is_found() {
        let found = walls(&graph(&[("sealdrive-server", &["sealdrive-core"])]));
        assert_eq!(found.len(), 2, "as a sibling and as linked: {found:?}");
    }

    #[test]
    fn a_hole_behind_another_package_is_found() {
        let found = walls(&graph(&[
            ("sealdrive-server", &["innocent"]),
            ("innocent", &["chacha20poly1305"]),
            ("sealdrive-core", &["innocent2"]),
            ("innocent2", &["tokio"]),
        ]));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn entropy_named_by_the_core_and_an_unknown_package_are_found() {
        let found = walls(&graph(&[
            ("sealdrive-core", &["getrandom"]),
            ("sealdrive-new", &[]),
        ]));
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
