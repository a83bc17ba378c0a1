//! The ledger of the promises: one line when a step begins, one when fsync or `sealdrive sync` has answered.
//!
//! Invariant: a line that was cut off is no line. What is read here was written by `load.rs` and kept by the host.

use std::collections::BTreeMap;
use std::fmt;

/// What a writer does, and fsyncs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new file, written once.
    Whole {
        /// Its name.
        name: String,
        /// Its length, bytes.
        length: usize,
    },
    /// A file that only grows.
    Grow {
        /// Its name.
        name: String,
        /// Its length after this, bytes.
        to: usize,
    },
    /// A file written aside and renamed over the old one.
    Replace {
        /// Its name.
        name: String,
        /// Higher than all before.
        version: u64,
    },
    /// A page changed in place.
    Page {
        /// The file's name.
        name: String,
        /// Which page.
        page: u64,
        /// Higher than all before.
        version: u64,
    },
    /// A file removed, and its directory fsynced.
    Remove {
        /// Its name.
        name: String,
    },
    /// `sealdrive sync`: everything promised before it began is on the server.
    Sync,
}

impl Step {
    /// The file it is about.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Whole { name, .. }
            | Self::Grow { name, .. }
            | Self::Replace { name, .. }
            | Self::Page { name, .. }
            | Self::Remove { name } => Some(name),
            Self::Sync => None,
        }
    }

    fn parse(words: &[&str]) -> Option<Self> {
        let name = || words.get(1).map(|name| (*name).to_owned());
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        Some(match *words.first()? {
            "whole" => Self::Whole {
                name: name()?,
                length: number(2)? as usize,
            },
            "grow" => Self::Grow {
                name: name()?,
                to: number(2)? as usize,
            },
            "replace" => Self::Replace {
                name: name()?,
                version: number(2)?,
            },
            "page" => Self::Page {
                name: name()?,
                page: number(2)?,
                version: number(3)?,
            },
            "remove" => Self::Remove { name: name()? },
            "sync" => Self::Sync,
            _ => return None,
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole { name, length } => write!(f, "whole {name} {length}"),
            Self::Grow { name, to } => write!(f, "grow {name} {to}"),
            Self::Replace { name, version } => write!(f, "replace {name} {version}"),
            Self::Page {
                name,
                page,
                version,
            } => write!(f, "page {name} {page} {version}"),
            Self::Remove { name } => write!(f, "remove {name}"),
            Self::Sync => write!(f, "sync"),
        }
    }
}

/// What follows the step's number in a line: it begins, it was promised, it was refused.
const BEGIN: &str = "begin";
const DONE: &str = "done";
const FAILED: &str = "failed";
/// A line of its own: the machine has booted, and writes from here on.
pub const SESSION: &str = "session";

/// The line that a step begins.
pub fn begin(id: u64, step: &Step) -> String {
    format!("{id} {BEGIN} {step}\n")
}

/// The line that it was promised.
pub fn done(id: u64) -> String {
    format!("{id} {DONE}\n")
}

/// The line that it was refused.
pub fn failed(id: u64, why: &str) -> String {
    format!("{id} {FAILED} {}\n", why.replace('\n', " "))
}

/// A step, and the line in which it was promised.
struct Entry {
    step: Step,
    session: usize,
    begun: usize,
    done: Option<usize>,
}

/// A step on a file, and whether it was promised.
pub type Promise = (Step, bool);

/// Everything the writers said so far.
#[derive(Default)]
pub struct Ledger {
    entries: BTreeMap<u64, Entry>,
    sessions: usize,
    refused: Vec<String>,
}

impl Ledger {
    /// Reads what the host kept; it may be padded with zero bytes to whole sectors.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('\0');
        let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
        let mut ledger = Self::default();
        for (at, line) in whole.lines().enumerate() {
            ledger
                .take(at, line)
                .ok_or_else(|| format!("line {} of the ledger: {line}", at + 1))?;
        }
        Ok(ledger)
    }

    fn take(&mut self, at: usize, line: &str) -> Option<()> {
        if line == SESSION {
            self.sessions += 1;
            return Some(());
        }
        let words: Vec<&str> = line.split(' ').collect();
        let id = words.first()?.parse().ok()?;
        match *words.get(1)? {
            BEGIN => {
                let entry = Entry {
                    step: Step::parse(&words[2..])?,
                    session: self.sessions,
                    begun: at,
                    done: None,
                };
                self.entries.insert(id, entry).is_none().then_some(())
            }
            DONE => {
                self.entries.get_mut(&id)?.done = Some(at);
                Some(())
            }
            FAILED => {
                self.refused.push(line.to_owned());
                Some(())
            }
            _ => None,
        }
    }

    /// A number that no step has yet.
    pub fn next(&self) -> u64 {
        self.entries.keys().next_back().map_or(1, |last| last + 1)
    }

    /// How often the machine was booted and written to.
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    /// What was refused; nothing may be.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// How many fsyncs and how many syncs were promised.
    pub fn promised(&self) -> (usize, usize) {
        let kept = self.entries.values().filter(|entry| entry.done.is_some());
        let (syncs, fsyncs): (Vec<_>, Vec<_>) = kept.partition(|entry| entry.step == Step::Sync);
        (fsyncs.len(), syncs.len())
    }

    /// Steps begun and not answered when the power went, and in how many sessions there were any.
    pub fn in_flight(&self) -> (usize, usize) {
        let open = self.entries.values().filter(|entry| entry.done.is_none());
        let mut sessions: Vec<usize> = open.map(|entry| entry.session).collect();
        let steps = sessions.len();
        sessions.dedup();
        (steps, sessions.len())
    }

    /// Each file's steps in order: what is on this machine.
    pub fn here(&self) -> BTreeMap<&str, Vec<Promise>> {
        self.until(usize::MAX)
    }

    /// The same as of the last `sync` that was promised: what is on the server. None was: nothing is promised.
    pub fn synced(&self) -> BTreeMap<&str, Vec<Promise>> {
        let mut syncs = self.entries.values().rev();
        let last = syncs.find(|entry| entry.step == Step::Sync && entry.done.is_some());
        self.until(last.map_or(0, |entry| entry.begun))
    }

    fn until(&self, line: usize) -> BTreeMap<&str, Vec<Promise>> {
        let mut files: BTreeMap<&str, Vec<Promise>> = BTreeMap::new();
        for entry in self.entries.values() {
            if let Some(name) = entry.step.name() {
                let promised = entry.done.is_some_and(|done| done < line);
                let steps = files.entry(name).or_default();
                steps.push((entry.step.clone(), promised));
            }
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "session\n1 begin whole w 10\n1 done\n2 begin sync\n3 begin grow g 5\n3 done\n2 done\n\
                        4 begin page p 3 4\nsession\n5 begin remove w\n5 failed no\n6 begin replace r 6\n6 do";

    #[test]
    fn what_is_promised_where() {
        let ledger = Ledger::parse(&format!("{TEXT}\0\0")).unwrap();
        assert_eq!((ledger.next(), ledger.sessions()), (7, 2));
        assert_eq!(ledger.promised(), (2, 1));
        assert_eq!(ledger.in_flight(), (3, 2));
        assert_eq!(ledger.refused(), ["5 failed no"]);
        let (here, there) = (ledger.here(), ledger.synced());
        assert!(here["w"][0].1 && here["g"][0].1 && !here["p"][0].1 && !here["r"][0].1);
        assert!(there["w"][0].1, "before the sync");
        assert!(!there["g"][0].1, "while it ran");
    }

    #[test]
    fn a_ledger_that_nobody_wrote_is_refused() {
        for text in [
            "x\n",
            "1 begin fly a\n",
            "1 done\n",
            "1 begin sync\n1 begin sync\n",
        ] {
            assert!(Ledger::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn steps_are_read_as_they_are_written() {
        let name = || "n".to_owned();
        for step in [
            Step::Whole {
                name: name(),
                length: 7,
            },
            Step::Grow {
                name: name(),
                to: 8,
            },
            Step::Replace {
                name: name(),
                version: 9,
            },
            Step::Page {
                name: name(),
                page: 1,
                version: 2,
            },
            Step::Remove { name: name() },
            Step::Sync,
        ] {
            let text = step.to_string();
            let words: Vec<&str> = text.split(' ').collect();
            assert_eq!(Step::parse(&words), Some(step));
        }
    }
}
