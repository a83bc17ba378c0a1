//! Documents that stay true: a path they name exists, and they stay short enough to be read.

use std::path::Path;

use super::Finding;
use super::source::Source;

/// Most lines of ARCHITECTURE.md: what a newcomer reads before looking for the file he wants.
const MAX_ARCHITECTURE: usize = 200;
/// Top-level directories; a path in code marks that begins with one of these is meant to exist.
const ROOMS: &[&str] = &["proto/", "fs/", "server/", "tests/", "scripts/"];

/// Paths in code marks or links that lead nowhere, and an ARCHITECTURE.md that grew too long.
pub fn documents(source: &Source, exists: impl Fn(&Path) -> bool) -> Vec<Finding> {
    if !source.path.ends_with(".md") {
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
    for (at, line) in source.text.lines().enumerate() {
        for word in line.split(['`', '(', ')', ' ', ',']) {
            let path = word.trim_end_matches(['.', ':', ';']);
            let is_path =
                ROOMS.iter().any(|room| path.starts_with(room)) && !path.contains(['*', '<', '…']);
            if is_path && !exists(Path::new(path)) {
                found(at + 1, format!("`{path}` does not exist"));
            }
        }
    }
    let count = source.text.lines().count();
    if source.path == "ARCHITECTURE.md" && count > MAX_ARCHITECTURE {
        found(count, format!("{count} lines, at most {MAX_ARCHITECTURE}"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_nowhere_are_found() {
        let text = "see `fs/src/gone.rs` and [here](proto/there.md), `a fs/is` word\n";
        let found = documents(&Source::sample("A.md", text), |path| {
            path == Path::new("proto/there.md")
        });
        assert_eq!(found.len(), 2, "{found:?}");
        let long = "x\n".repeat(MAX_ARCHITECTURE + 1);
        assert_eq!(
            documents(&Source::sample("ARCHITECTURE.md", &long), |_| true).len(),
            1
        );
    }
}
