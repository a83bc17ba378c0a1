//! The rules of the house as functions: text and dependency graph in, findings out.
//!
//! Invariant: every rule can fail; the unit tests below each rule feed it a bad sample. Called by `tests/tidy.rs`,
//! which runs the rules over this repository, and by nobody else.

use std::fmt;

pub mod documents;
pub mod imports;
pub mod shape;
pub mod source;
pub mod words;

/// One breach of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// File, relative to the repository, or the name of a package.
    pub place: String,
    /// Line, from 1; 0 for the whole file.
    pub line: usize,
    /// What is wrong, and what the rule is.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.place, self.line, self.what)
    }
}

/// Panics with every finding on a line of its own, so that one run shows all that is to be mended.
#[track_caller]
pub fn none(rule: &str, findings: &[Finding]) {
    let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(findings.is_empty(), "{rule}:\n  {}", list.join("\n  "));
}
