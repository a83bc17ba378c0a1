//! The shape of files: how they open, how long they are, what they are called.
//!
//! Invariant: no allow-list. A file over a limit is split; there is no second way. Called by `tests/tidy.rs`.

use super::Finding;
use super::source::Source;

/// Most lines of a Rust file: what fits in one sitting.
pub const MAX_LINES: usize = 500;
/// Most characters of a line of Rust: two files side by side.
pub const MAX_WIDTH: usize = 120;
/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["manager", "helper", "util", "common", "misc", "handler"];

/// Every rule of shape that a Rust file breaks.
pub fn shape(source: &Source) -> Vec<Finding> {
    if !source.path.ends_with(".rs") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut found = |line: usize, what: String| {
        findings.push(Finding {
            place: source.path.clone(),
            line,
            what,
        });
    };
    if !source.text.starts_with("//! ") {
        found(
            1,
            "opens with `//!`: what it is, its invariant, who calls it".into(),
        );
    }
    let count = source.text.lines().count();
    if count > MAX_LINES {
        found(
            count,
            format!("{count} lines, at most {MAX_LINES}: split it"),
        );
    }
    for (at, line) in source.text.lines().enumerate() {
        let width = line.chars().count();
        if width > MAX_WIDTH {
            found(at + 1, format!("{width} characters, at most {MAX_WIDTH}"));
        }
    }
    findings
}

/// A file or directory whose name says nothing.
pub fn name(source: &Source) -> Vec<Finding> {
    let empty = |word: &str| {
        EMPTY_NAMES
            .iter()
            .any(|name| word == *name || word == format!("{name}s"))
    };
    // mount(8) calls the programs it starts its helpers: the script that installs ours says so.
    if source.path == "scripts/install-helpers" {
        return Vec::new();
    }
    let parts = source.path.split('/');
    let bad = parts.filter(|part| {
        let stem = part.split('.').next().unwrap_or_default().to_lowercase();
        stem.split(['_', '-']).any(empty)
    });
    let found = bad.map(|part| Finding {
        place: source.path.clone(),
        line: 0,
        what: format!("`{part}` says nothing: name the thing"),
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_passes() {
        assert_eq!(
            shape(&Source::sample("a.rs", "//! What it is.\nfn a() {}\n")),
            vec![]
        );
    }

    #[test]
    fn each_breach_of_shape_is_found() {
        assert_eq!(shape(&Source::sample("a.rs", "fn a() {}\n")).len(), 1);
        let long = format!("//! x\n{}", "\n".repeat(MAX_LINES));
        assert_eq!(shape(&Source::sample("a.rs", &long)).len(), 1);
        let wide = format!("//! {}", "x".repeat(MAX_WIDTH));
        assert_eq!(shape(&Source::sample("a.rs", &wide)).len(), 1);
    }

    #[test]
    fn empty_names_are_found_in_files_and_directories() {
        for path in [
            "fs/src/util.rs",
            "fs/src/helpers/a.rs",
            "tests/lock_manager.rs",
            "scripts/lib-common.sh",
        ] {
            assert_eq!(name(&Source::sample(path, "")).len(), 1, "{path}");
        }
        assert_eq!(name(&Source::sample("fs/src/commonality.rs", "")), vec![]);
    }
}
