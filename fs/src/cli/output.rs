//! How commands speak: results on stdout (text or one JSON object per line), news and failures on stderr.
//!
//! Invariant: with `--json`, stdout holds JSON and nothing else; a closed pipe is no panic. Called by every command.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::exit::Failure;

/// The way of speaking chosen on the command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// A result: `value` as JSON, or `text` for people.
    pub(super) fn result(self, value: &impl Serialize, text: impl FnOnce() -> String) {
        let line = if self.json {
            serde_json::to_string(value)
                .unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
        } else {
            text()
        };
        // A reader that has seen enough (`| head -1`) closes the pipe: nothing to report to nobody.
        drop(writeln!(std::io::stdout(), "{line}"));
    }

    /// What a person may want to know meanwhile.
    pub(super) fn news(self, text: &str) {
        if !self.quiet && !self.json {
            drop(writeln!(std::io::stderr(), "{text}"));
        }
    }

    /// What a person must know although the command goes on.
    pub(super) fn warn(self, text: &str) {
        drop(writeln!(std::io::stderr(), "sealdrive: {text}"));
    }

    /// Why it was not done.
    pub(super) fn failure(self, failure: &Failure) {
        let mut err = std::io::stderr();
        if self.json {
            drop(writeln!(err, "{}", failure.to_json()));
        } else if err.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) {
            drop(writeln!(err, "\x1b[1;31msealdrive:\x1b[0m {failure}"));
        } else {
            drop(writeln!(err, "sealdrive: {failure}"));
        }
    }

    /// Whether to draw progress: a bar on a terminal, lines otherwise, nothing when told to be quiet.
    pub(super) fn progress(self) -> super::progress::Style {
        use super::progress::Style;
        match (self.quiet, self.json, std::io::stderr().is_terminal()) {
            (true, ..) => Style::None,
            (_, true, _) => Style::Json,
            (_, _, true) => Style::Bar,
            _ => Style::Lines,
        }
    }
}

/// Bytes for people: three digits and a binary unit.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A duration for people, to the second.
pub(super) fn age(ms: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(ms / 1000)).to_string()
}
