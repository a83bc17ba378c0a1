//! The rules of the house, run over this repository: walls between crates, doors, shape and names of files.
//!
//! Each rule is a function of `sealdrive_tests::tidy`, where its own tests show that it can fail.

use sealdrive_tests::tidy::source::{Source, repository, tracked};
use sealdrive_tests::tidy::{Finding, documents, imports, none, shape, words};

fn judge(rule: impl Fn(&Source) -> Vec<Finding>) -> Vec<Finding> {
    let files = tracked(&repository());
    assert!(
        files.len() > 15,
        "the repository was read: {} files",
        files.len()
    );
    files.iter().flat_map(rule).collect()
}

#[test]
fn crates_import_only_what_the_walls_allow() {
    let graph = imports::resolved(&repository());
    assert!(graph.contains_key("sealdrive-server") && graph.contains_key("sealdrive-core"));
    none(
        "walls between crates (ARCHITECTURE.md)",
        &imports::walls(&graph),
    );
}

#[test]
fn no_ordinary_build_has_the_simulation_in_it() {
    let simulates = |selection: &[&str]| imports::simulates(&repository(), selection);
    assert!(!simulates(&["--workspace"]));
    assert!(!simulates(&["--package", "sealdrive"]));
    assert!(!simulates(&["--package", "sealdrive-server"]));
    let asked_for = ["--package", "sealdrive-tests", "--features", "simulation"];
    assert!(simulates(&asked_for), "and this test can tell");
}

#[test]
fn each_outside_world_has_one_door() {
    none("doors (ARCHITECTURE.md)", &judge(words::doors));
}

#[test]
fn files_open_with_their_purpose_and_stay_short() {
    none("shape of files", &judge(shape::shape));
}

#[test]
fn nothing_unfinished_is_landed() {
    none("unfinished", &judge(words::unfinished));
}

#[test]
fn names_say_what_is_inside() {
    none("file names", &judge(shape::name));
}

#[test]
fn no_path_of_one_machine() {
    none("machine paths", &judge(words::machine_paths));
}

#[test]
fn documents_name_what_exists() {
    let root = repository();
    let exists = |path: &std::path::Path| root.join(path).exists();
    none(
        "documents",
        &judge(|source| documents::documents(source, exists)),
    );
}
