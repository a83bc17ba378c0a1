//! Doors: words that only named files may say, because behind each stands one outside world.
//!
//! Invariant: kernel, database, network, clock and entropy each enter a crate through one place. Called by
//! `tests/tidy.rs`. Tests are free: the rules are for the product.

use super::Finding;
use super::source::{Source, has_word};

/// A word, where the rule holds, and the files that may say it.
struct Door {
    word: &'static str,
    within: &'static [&'static str],
    allowed: &'static [&'static str],
    why: &'static str,
}

const EVERYWHERE: &[&str] = &["fs/", "server/", "proto/"];
/// Where durable state is written, but for `proto/pack/src/file.rs`, the one door.
const DURABLE: &[&str] = &[
    "fs/src/store/",
    "fs/src/journal/",
    "fs/src/engine/",
    "server/src/store/",
    "server/src/index.rs",
    "server/src/index/",
    "proto/pack/src/medium.rs",
    "proto/pack/src/writer.rs",
    "proto/pack/src/reader.rs",
    "proto/pack/src/scan.rs",
];
/// Writes files out for people: the simulated disk does not stand under those.
const EXPORT: &[&str] = &["fs/src/engine/branch/export.rs"];
/// The system's clock and entropy are asked in the runtime crate alone, and that by the clock.rs of either side.
const SYSTEM: &[&str] = &[
    "proto/runtime/src/time.rs",
    "proto/runtime/src/entropy.rs",
    "proto/runtime/src/simulation/scheduler.rs",
];
/// What else a file would need to wait without the runtime crate knowing: rooms that a simulation runs.
const SIMULATED: &[&str] = &[
    "fs/src/engine/",
    "fs/src/drive/",
    "fs/src/store/",
    "server/src/store/",
    "server/src/calls/",
    "server/src/book/",
    "server/src/core.rs",
    "server/src/index.rs",
    "server/src/index/",
    "server/src/sessions.rs",
];

const DOORS: &[Door] = &[
    Door {
        word: "std::thread",
        within: SIMULATED,
        allowed: &[],
        why: "a simulated world knows only what waits through sealdrive-runtime",
    },
    Door {
        word: "std::sync::mpsc",
        within: SIMULATED,
        allowed: &[],
        why: "a simulated world knows only what waits through sealdrive-runtime",
    },
    Door {
        word: "tokio::spawn",
        within: SIMULATED,
        allowed: &[],
        why: "a simulated world knows only what waits through sealdrive-runtime",
    },
    Door {
        word: "tokio::task",
        within: SIMULATED,
        allowed: &[],
        why: "a simulated world knows only what waits through sealdrive-runtime",
    },
    Door {
        word: "tokio::time",
        within: SIMULATED,
        allowed: &[],
        why: "a simulated world knows only what waits through sealdrive-runtime",
    },
    Door {
        word: "tokio::runtime",
        within: SIMULATED,
        allowed: &[],
        why: "a simulated world knows only what waits through sealdrive-runtime",
    },
    Door {
        word: "fuser",
        within: EVERYWHERE,
        allowed: &["fs/src/fuse/"],
        why: "the kernel's door is fs/src/fuse/",
    },
    Door {
        word: "redb",
        within: EVERYWHERE,
        allowed: &[
            "fs/src/store/index.rs",
            "fs/src/store/index/",
            "server/src/index.rs",
            "server/src/index/",
        ],
        why: "the database's doors are the two index.rs and what is below them",
    },
    Door {
        word: "tonic",
        within: &["fs/"],
        allowed: &["fs/src/remote/grpc"],
        why: "the client's network door is fs/src/remote/grpc",
    },
    Door {
        word: "tonic",
        within: &["server/"],
        allowed: &[
            "server/src/service/",
            "server/src/listen.rs",
            "server/src/running.rs",
        ],
        why: "the server's network doors are server/src/service/, listen.rs and running.rs",
    },
    Door {
        word: "SystemTime::now",
        within: EVERYWHERE,
        allowed: SYSTEM,
        why: "proto/runtime asks the clock; ask clock.rs",
    },
    Door {
        word: "Instant::now",
        within: EVERYWHERE,
        allowed: SYSTEM,
        why: "proto/runtime asks the clock; ask clock.rs",
    },
    Door {
        word: "getrandom",
        within: EVERYWHERE,
        allowed: SYSTEM,
        why: "proto/runtime asks for entropy; ask clock.rs",
    },
    Door {
        word: "rand::rngs",
        within: EVERYWHERE,
        allowed: SYSTEM,
        why: "proto/runtime asks for entropy; ask clock.rs",
    },
    Door {
        word: "std::fs",
        within: DURABLE,
        allowed: EXPORT,
        why: "what is durable goes through `sealdrive_pack::Medium`, so that a simulated disk can stand under it",
    },
    Door {
        word: "rustix::fs",
        within: DURABLE,
        allowed: EXPORT,
        why: "what is durable goes through `sealdrive_pack::Medium`, so that a simulated disk can stand under it",
    },
    Door {
        word: "std::fs",
        within: &["fs/core/"],
        allowed: &[],
        why: "the core is pure",
    },
    Door {
        word: "std::net",
        within: &["fs/core/"],
        allowed: &[],
        why: "the core is pure",
    },
    Door {
        word: "std::thread",
        within: &["fs/core/"],
        allowed: &[],
        why: "the core is pure",
    },
    Door {
        word: "std::process",
        within: &["fs/core/"],
        allowed: &[],
        why: "the core is pure",
    },
    Door {
        word: "std::env",
        within: &["fs/core/"],
        allowed: &[],
        why: "the core is pure",
    },
];

/// Words said outside their door.
pub fn doors(source: &Source) -> Vec<Finding> {
    if source.is_test() || !source.path.ends_with(".rs") {
        return Vec::new();
    }
    let starts = |list: &[&str]| list.iter().any(|prefix| source.path.starts_with(prefix));
    let closed: Vec<&Door> = DOORS
        .iter()
        .filter(|door| starts(door.within) && !starts(door.allowed))
        .collect();
    let mut findings = Vec::new();
    for (line, code) in source.product() {
        for door in closed.iter().filter(|door| says(code, door.word)) {
            let what = format!("`{}`: {}", door.word, door.why);
            findings.push(Finding {
                place: source.path.clone(),
                line,
                what,
            });
        }
    }
    findings
}

/// A path is said wherever it stands; the name of a crate only where it is used as one (`state.redb` is a file name).
fn says(code: &str, word: &str) -> bool {
    let as_crate = || code.contains(&format!("{word}::")) || code.trim_start().starts_with("use ");
    has_word(code, word) && (word.contains("::") || as_crate())
}

/// Marks of unfinished work, and tests that do not run.
pub fn unfinished(source: &Source) -> Vec<Finding> {
    // Split, so that this file does not break its own rule.
    const MARKS: &[&str] = &[
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[ig", "nore"),
    ];
    if !source.path.ends_with(".rs") {
        return Vec::new();
    }
    let lines = source.text.lines().enumerate();
    let marked = lines.filter_map(|(at, line)| {
        let mark = MARKS.iter().find(|mark| line.contains(**mark))?;
        let what = format!("`{mark}`: what is landed works and is run");
        Some(Finding {
            place: source.path.clone(),
            line: at + 1,
            what,
        })
    });
    marked.collect()
}

/// Paths of somebody's machine.
pub fn machine_paths(source: &Source) -> Vec<Finding> {
    const ROOTS: &[&str] = &[
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
    ];
    let starts_path = |line: &str, root: &str| {
        line.match_indices(root).any(|(at, _)| {
            !line[..at]
                .chars()
                .next_back()
                .is_some_and(|c| c.is_alphanumeric() || "_-}.)>*".contains(c))
        })
    };
    let lines = source.text.lines().enumerate();
    let found = lines.filter_map(|(at, line)| {
        let root = ROOTS.iter().find(|root| starts_path(line, root))?;
        let what = format!("`{root}…` is a path of one machine");
        Some(Finding {
            place: source.path.clone(),
            line: at + 1,
            what,
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn each_door_is_shut_outside_its_files() {
        for (path, text) in [
            ("fs/src/mount.rs", "use fuser::Session;"),
            ("server/src/service/objects.rs", "use redb::Database;"),
            ("fs/src/engine/upload.rs", "use tonic::Status;"),
            ("server/src/store.rs", "fn f() -> tonic::Status {"),
            ("fs/src/drive/mod.rs", "let now = SystemTime::now();"),
            (
                "server/src/lease.rs",
                "let now = std::time::Instant::now();",
            ),
            ("fs/core/src/slot.rs", "getrandom::fill(&mut salt);"),
            ("fs/core/src/tree.rs", "use std::fs::File;"),
            ("fs/core/src/tree.rs", "std::thread::spawn(f);"),
            ("fs/core/src/tree.rs", "use std::net::TcpStream;"),
        ] {
            assert_eq!(
                lines(&doors(&Source::sample(path, text))),
                vec![1],
                "{path}: {text}"
            );
        }
    }

    #[test]
    fn doors_open_for_their_files_for_tests_and_for_words_in_comments() {
        for (path, text) in [
            ("fs/src/fuse/ops.rs", "use fuser::Session;"),
            ("server/src/index.rs", "use redb::Database;"),
            ("fs/src/remote/grpc.rs", "use tonic::Status;"),
            ("proto/runtime/src/time.rs", "SystemTime::now()"),
            ("fs/src/mount.rs", "//! The loops of fuser call this."),
            ("fs/src/store/mod.rs", "dir.join(\"state.redb\")"),
            ("fs/tests/mounted.rs", "Instant::now()"),
            ("tests/src/world.rs", "Instant::now()"),
            (
                "fs/src/a.rs",
                "fn a() {}\n#[cfg(test)]\nmod tests {\n    use redb::Database;\n}",
            ),
        ] {
            assert_eq!(doors(&Source::sample(path, text)), vec![], "{path}: {text}");
        }
    }

    #[test]
    fn unfinished_work_is_found_even_in_tests() {
        let text = concat!(
            "fn a() { to",
            "do!() }\n#[ig",
            "nore]\nfn b() { unimpl",
            "emented!(\"x\") }"
        );
        assert_eq!(
            lines(&unfinished(&Source::sample("tests/a.rs", text))),
            vec![1, 2, 3]
        );
    }

    #[test]
    fn machine_paths_are_found_and_longer_names_are_not() {
        let text = concat!(
            "cd /wo",
            "rk/x\n\"/ho",
            "me/me\"\n/net",
            "work/a\nvar/ro",
            "ot/b\n"
        );
        assert_eq!(
            lines(&machine_paths(&Source::sample("README.md", text))),
            vec![1, 2]
        );
    }
}
