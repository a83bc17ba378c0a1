//! The alphabet: what a program may do, in how many requests of the kernel, and every sequence of it that is possible.
//!
//! Invariant: the alphabet is fixed, so that a sequence's name runs it again. The idea is that of CrashMonkey and ACE
//! (Mohan et al., OSDI 2018): most crash bugs need three operations on a few names, so all of them can be tried. Called
//! by `mod.rs` and the model.

use sealdrive_proto::limits::MIN_CHUNK;

use super::model::Model;

/// Bytes that do not repeat, none of them zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub(super) seed: u64,
    pub(super) len: usize,
}

impl Content {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut out);
        out.iter_mut().for_each(|byte| *byte |= 1);
        out
    }
}

/// The attribute that is set.
pub(super) const XATTR: &[u8] = b"user.tried";

/// One request of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    Create(&'static str),
    /// For writing.
    Open(&'static str),
    /// What is open, if anything.
    Close,
    Write {
        path: &'static str,
        at: usize,
        content: Content,
    },
    SetSize(&'static str, usize),
    /// A hole, or zeros that may make the file longer.
    Zero {
        path: &'static str,
        at: usize,
        len: usize,
        grow: bool,
    },
    /// At least this long.
    Allocate(&'static str, usize),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
    Unlink(&'static str),
    Mkdir(&'static str),
    Rmdir(&'static str),
    Symlink(&'static str, &'static str),
    SetXattr(&'static str, &'static str),
    Fsync,
    /// Time for what is closed and long enough to be sealed.
    Pause,
}

/// Length of a file that goes into a chunk of its own.
const LARGE: usize = MIN_CHUNK + 10_000;

const fn write(path: &'static str, at: usize, seed: u64, len: usize) -> Request {
    Request::Write {
        path,
        at,
        content: Content { seed, len },
    }
}

/// What stands there before the sequence begins, all of it in a checkpoint: a file with a chunk, one that stands in the
/// tree itself, and a directory with a large one.
pub(super) const BEFORE: &[Request] = &[
    Request::Create("a"),
    write("a", 0, 1, 3000),
    Request::Create("b"),
    write("b", 0, 2, 200),
    Request::Mkdir("d"),
    Request::Create("d/c"),
    write("d/c", 0, 3, LARGE),
    Request::Close,
];

/// A step of a sequence: its name and its requests. What it leaves open stays open over the next ones.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) requests: &'static [Request],
}

const fn step(name: &'static str, requests: &'static [Request]) -> Step {
    Step { name, requests }
}

/// All of them.
pub(super) const ALPHABET: &[Step] = &[
    step("create-n", &[Request::Create("n")]),
    step(
        "overwrite-a",
        &[Request::Open("a"), write("a", 1000, 11, 700)],
    ),
    step("append-a", &[Request::Open("a"), write("a", 3000, 12, 500)]),
    step("append-b", &[Request::Open("b"), write("b", 200, 13, 400)]),
    step(
        "write-far-a",
        &[Request::Open("a"), write("a", 9000, 14, 100)],
    ),
    step(
        "large-n",
        &[
            Request::Create("n"),
            write("n", 0, 15, LARGE),
            Request::Close,
            Request::Pause,
        ],
    ),
    step(
        "overwrite-c",
        &[
            Request::Open("d/c"),
            write("d/c", 70_000, 16, LARGE),
            Request::Close,
            Request::Pause,
        ],
    ),
    step("shorten-a", &[Request::SetSize("a", 1200)]),
    step("lengthen-a", &[Request::SetSize("a", 5000)]),
    step("shorten-c", &[Request::SetSize("d/c", 100_000)]),
    step("rename-a-b", &[Request::Rename("a", "b")]),
    step("rename-b-c", &[Request::Rename("b", "d/c")]),
    step("rename-c-a", &[Request::Rename("d/c", "a")]),
    step("rename-d-e", &[Request::Rename("d", "e")]),
    step("link-a-l", &[Request::Link("a", "l")]),
    step("unlink-a", &[Request::Unlink("a")]),
    step("unlink-c", &[Request::Unlink("d/c")]),
    step("mkdir-e", &[Request::Mkdir("e")]),
    step("rmdir-d", &[Request::Rmdir("d")]),
    step("symlink-s", &[Request::Symlink("s", "a")]),
    step("setxattr-a", &[Request::SetXattr("a", "value")]),
    step(
        "punch-c",
        &[Request::Zero {
            path: "d/c",
            at: 30_000,
            len: 60_000,
            grow: false,
        }],
    ),
    step(
        "zero-a",
        &[Request::Zero {
            path: "a",
            at: 2500,
            len: 1000,
            grow: true,
        }],
    ),
    step("allocate-a", &[Request::Allocate("a", 8000)]),
    step("close", &[Request::Close]),
    step("fsync", &[Request::Fsync]),
];

/// The state before any sequence.
pub(super) fn before() -> Model {
    let mut model = Model::default();
    for request in BEFORE {
        model.apply(request).expect("possible");
    }
    model
}

/// Steps by their names, if all are known.
pub(super) fn parse(names: &str) -> Option<Vec<&'static Step>> {
    let find = |name| ALPHABET.iter().find(|step| step.name == name);
    names.split(',').map(find).collect()
}

/// Every sequence of one to `longest` steps that POSIX allows, in order. A fsync follows each anyway: none ends in one,
/// or begins with one, or has two in a row.
pub(super) fn sequences(longest: usize) -> Vec<Vec<&'static Step>> {
    let mut out = Vec::new();
    extend(&before(), &mut Vec::new(), longest, &mut out);
    out
}

fn extend(
    model: &Model,
    so_far: &mut Vec<&'static Step>,
    longest: usize,
    out: &mut Vec<Vec<&'static Step>>,
) {
    for step in ALPHABET {
        let idle = match step.name {
            "fsync" => so_far.last().is_none_or(|last| last.name == "fsync"),
            "close" => !model.has_open(),
            _ => false,
        };
        let mut next = model.clone();
        if idle || !step.requests.iter().all(|r| next.apply(r).is_some()) {
            continue;
        }
        so_far.push(step);
        if step.name != "fsync" {
            out.push(so_far.clone());
        }
        if so_far.len() < longest {
            extend(&next, so_far, longest, out);
        }
        so_far.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_have_names_and_are_all_different() {
        let all = sequences(3);
        let names = |steps: &[&Step]| {
            let names: Vec<_> = steps.iter().map(|step| step.name).collect();
            names.join(",")
        };
        let distinct: std::collections::BTreeSet<_> = all.iter().map(|s| names(s)).collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.len() > 5000 && sequences(1).len() == ALPHABET.len() - 3);
        for text in ["append-a,fsync,rename-a-b", "link-a-l,rename-a-b,append-a"] {
            let known = parse(text).map(|steps| names(&steps));
            assert_eq!(known.as_deref(), Some(text));
        }
        assert!(distinct.contains("append-a,fsync,rename-a-b"));
        assert!(!distinct.contains("rename-a-b,append-a,rename-b-c"));
        assert!(parse("append-a,nothing").is_none());
    }
}
