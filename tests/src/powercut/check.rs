//! The verifier: every promise is there, and what is there besides is what somebody began.
//!
//! Invariant: between the last promise and the last step begun everything goes, and nothing else does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::ledger::{Promise, Step};
use super::{PAGE, REPLACED, stamped};
use crate::made::bytes_of;

/// What is wrong in the directory, one line each.
pub fn check(files: &BTreeMap<&str, Vec<Promise>>, root: &Path) -> Vec<String> {
    let mut wrong = strangers(files, root);
    for (name, steps) in files {
        let found = match fs::read(root.join(name)) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if let Err(what) = judge(name, steps, found.as_deref()) {
            wrong.push(format!("{name}: {what}"));
        }
    }
    wrong
}

/// How many promises are held against the directory.
pub fn promises(files: &BTreeMap<&str, Vec<Promise>>) -> usize {
    let steps = files.values().flatten();
    steps.filter(|(_, promised)| *promised).count()
}

/// Names that no step made.
fn strangers(files: &BTreeMap<&str, Vec<Promise>>, root: &Path) -> Vec<String> {
    let listed = match fs::read_dir(root) {
        Ok(listed) => listed,
        Err(error) => return vec![format!("the directory itself: {error}")],
    };
    let names = listed.flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    // A file is opened, and made, before the step that grows or changes it is told.
    let known = |name: &str| {
        files.contains_key(name.strip_suffix(".new").unwrap_or(name))
            || name.starts_with("grown-")
            || name.starts_with("pages-")
    };
    let strange = names.filter(|name| !known(name));
    strange
        .map(|name| format!("{name}: nobody made it"))
        .collect()
}

fn judge(name: &str, steps: &[Promise], found: Option<&[u8]>) -> Result<(), String> {
    let promised = steps.iter().filter(|(_, promised)| *promised);
    let promised = promised.count();
    match steps[0].0 {
        Step::Whole { length, .. } => whole(name, length, steps, found),
        Step::Grow { .. } => grown(name, steps, found),
        Step::Replace { .. } => {
            let versions = steps.iter().filter_map(|(step, promised)| match step {
                Step::Replace { version, .. } => Some((*version, *promised)),
                _ => None,
            });
            match found {
                None if promised == 0 => Ok(()),
                None => Err("was promised and is not there".into()),
                Some(bytes) => version(name, REPLACED, versions, bytes),
            }
        }
        Step::Page { .. } => pages(name, steps, found.unwrap_or_default()),
        Step::Remove { .. } | Step::Sync => Err("begins with no step that makes it".into()),
    }
}

fn whole(name: &str, length: usize, steps: &[Promise], found: Option<&[u8]>) -> Result<(), String> {
    let written = steps[0].1;
    let removed = steps.get(1).map(|(_, promised)| *promised);
    match (found, removed) {
        (None, Some(_)) => Ok(()),
        (None, None) if !written => Ok(()),
        (None, None) => Err("was promised and is not there".into()),
        (Some(_), Some(true)) => Err("was removed and is there".into()),
        (Some(bytes), _) if written => {
            let right = bytes == bytes_of(name, 0, length);
            let said = || format!("{} of {length} promised bytes, or others", bytes.len());
            right.then_some(()).ok_or_else(said)
        }
        (Some(bytes), _) => begun(name, 0, length, bytes),
    }
}

/// Not promised: no more than was written, and of that the right bytes or none.
fn begun(name: &str, from: usize, most: usize, bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > most {
        return Err(format!("{} bytes, {most} were written", bytes.len()));
    }
    let right = bytes_of(name, 0, bytes.len());
    let mut pairs = bytes.iter().zip(&right).enumerate().skip(from);
    match pairs.find(|(_, (is, should))| is != should && **is != 0) {
        None => Ok(()),
        Some((at, _)) => Err(format!("a foreign byte at {at}")),
    }
}

fn grown(name: &str, steps: &[Promise], found: Option<&[u8]>) -> Result<(), String> {
    let mut floor = 0;
    let mut most = 0;
    for (step, promised) in steps {
        if let Step::Grow { to, .. } = step {
            most = most.max(*to);
            floor = if *promised { floor.max(*to) } else { floor };
        }
    }
    let bytes = found.unwrap_or_default();
    if bytes.len() < floor {
        return Err(format!("{} of {floor} promised bytes", bytes.len()));
    }
    if bytes[..floor] != bytes_of(name, 0, floor) {
        return Err(format!("other bytes below {floor}"));
    }
    begun(name, floor, most, bytes)
}

fn pages(name: &str, steps: &[Promise], bytes: &[u8]) -> Result<(), String> {
    let mut numbers = BTreeSet::new();
    for (step, _) in steps {
        if let Step::Page { page, .. } = step {
            numbers.insert(*page);
        }
    }
    for number in numbers {
        let versions = steps.iter().filter_map(|(step, promised)| match step {
            Step::Page { page, version, .. } => (*page == number).then_some((*version, *promised)),
            _ => None,
        });
        let start = (number as usize * PAGE).min(bytes.len());
        let end = (start + PAGE).min(bytes.len());
        let mut there = bytes[start..end].to_vec();
        there.resize(PAGE, 0);
        if there.iter().all(|byte| *byte == 0) {
            if versions.clone().any(|(_, promised)| promised) {
                return Err(format!("page {number} was promised and is empty"));
            }
            continue;
        }
        version(name, PAGE, versions, &there).map_err(|what| format!("page {number}: {what}"))?;
    }
    Ok(())
}

/// One of the versions begun, no older than the last one promised, and nothing of any other.
fn version(
    name: &str,
    length: usize,
    versions: impl Iterator<Item = (u64, bool)>,
    bytes: &[u8],
) -> Result<(), String> {
    let all: Vec<(u64, bool)> = versions.collect();
    let kept = all.iter().filter(|(_, promised)| *promised);
    let floor = kept.map(|(version, _)| *version).max().unwrap_or(0);
    let Some(stamp) = bytes.get(..8) else {
        return Err(format!("{} bytes", bytes.len()));
    };
    let found = u64::from_le_bytes(stamp.try_into().unwrap());
    if found < floor {
        return Err(format!("version {found}, and {floor} was promised"));
    }
    if !all.iter().any(|(version, _)| *version == found) {
        return Err(format!("version {found}, which nobody wrote"));
    }
    if bytes != stamped(name, found, length) {
        return Err(format!("version {found} is torn"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::powercut::ledger::Ledger;

    const TEXT: &str = "1 begin whole w 9000\n1 done\n2 begin grow g 500\n2 done\n3 begin grow g 900\n\
         4 begin replace r 4\n4 done\n5 begin replace r 5\n6 begin page p 1 6\n6 done\n7 begin page p 1 7\n\
         8 begin whole x 10\n8 done\n9 begin remove x\n9 done\n10 begin whole y 40\n";

    fn wrong(change: impl FnOnce(&Path)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut page = vec![0; PAGE];
        page.extend(stamped("p", 7, PAGE));
        for (name, bytes) in [
            ("w", bytes_of("w", 0, 9000)),
            ("g", bytes_of("g", 0, 700)),
            ("r", stamped("r", 5, REPLACED)),
            ("p", page),
            ("y", vec![0; 30]),
        ] {
            fs::write(root.join(name), bytes).unwrap();
        }
        change(root);
        let ledger = Ledger::parse(TEXT).unwrap();
        let here = ledger.here();
        assert_eq!(promises(&here), 6);
        check(&here, root)
    }

    #[test]
    fn between_the_promise_and_the_last_step_everything_goes() {
        assert_eq!(wrong(|_| ()), Vec::<String>::new());
        let older = |root: &Path| {
            fs::write(root.join("g"), bytes_of("g", 0, 500)).unwrap();
            fs::write(root.join("r"), stamped("r", 4, REPLACED)).unwrap();
            fs::remove_file(root.join("y")).unwrap();
            fs::write(root.join("r.new"), b"torn").unwrap();
        };
        assert_eq!(wrong(older), Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_found() {
        type Case<'a> = (&'a str, &'a dyn Fn(&Path));
        let cases: &[Case<'_>] = &[
            ("w: was promised", &|root| {
                fs::remove_file(root.join("w")).unwrap()
            }),
            ("w: 3 of 9000", &|root| {
                fs::write(root.join("w"), b"abc").unwrap()
            }),
            ("g: 499 of 500", &|root| {
                fs::write(root.join("g"), bytes_of("g", 0, 499)).unwrap()
            }),
            ("g: other bytes", &|root| {
                fs::write(root.join("g"), vec![0; 500]).unwrap()
            }),
            ("g: 901 bytes", &|root| {
                fs::write(root.join("g"), bytes_of("g", 0, 901)).unwrap()
            }),
            ("r: version 3", &|root| {
                fs::write(root.join("r"), stamped("r", 3, REPLACED)).unwrap()
            }),
            ("r: version 8", &|root| {
                fs::write(root.join("r"), stamped("r", 8, REPLACED)).unwrap()
            }),
            ("r: version 5 is torn", &|root| {
                fs::write(root.join("r"), stamped("r", 5, 99)).unwrap()
            }),
            ("p: page 1 was promised", &|root| {
                fs::write(root.join("p"), b"").unwrap()
            }),
            ("x: was removed", &|root| {
                fs::write(root.join("x"), b"").unwrap()
            }),
            ("y: a foreign byte", &|root| {
                fs::write(root.join("y"), b"\xffforeign").unwrap()
            }),
            ("z: nobody", &|root| fs::write(root.join("z"), b"").unwrap()),
        ];
        for (what, change) in cases {
            let found = wrong(change);
            assert!(
                found.len() == 1 && found[0].starts_with(what),
                "{what}: {found:?}"
            );
        }
    }
}
