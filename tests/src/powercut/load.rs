//! The writers: each step is told outside before it begins and when it was promised, until the power goes.
//!
//! Invariant: a step is called done only after fsync (or `sealdrive sync`) answered 0. Called in the virtual machine.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::ledger::{Ledger, SESSION, Step, begin, done, failed};
use super::{PAGE, REPLACED, stamped};
use crate::made::{Noise, bytes_of};

/// Threads that write.
const WRITERS: u64 = 3;
/// Whole files of one writer at a time; above that the oldest is removed.
const LIVE: usize = 12;
/// Longest whole file, bytes: several pages of the kernel's cache, less than one chunk and more.
const LONGEST: u64 = 400_000;
/// Pages of a file that is changed in place.
const PAGES: u64 = 64;
/// Most bytes that one step adds to a growing file.
const GROWTH: u64 = 9000;

/// Where the lines go, and the next step's number.
struct Outside {
    port: File,
    next: u64,
    /// Something was refused: all end.
    over: bool,
}

impl Outside {
    fn say(&mut self, line: &str) -> io::Result<()> {
        self.port.write_all(line.as_bytes())
    }
}

/// Writes to the drive at `root`, and runs `sync` again and again, until something is refused.
pub fn load(root: &Path, past: &Ledger, port: File, sync: &[String], seed: u64) -> io::Result<()> {
    let first = past.next();
    let outside = Mutex::new(Outside {
        port,
        next: first,
        over: false,
    });
    outside.lock().unwrap().say(&format!("{SESSION}\n"))?;
    thread::scope(|scope| {
        let mut all = Vec::new();
        for number in 0..WRITERS {
            let writer = Writer {
                root,
                outside: &outside,
                number,
                session: first,
                live: live(past, number),
                noise: Noise::new(seed ^ first ^ number << 32),
            };
            all.push(scope.spawn(move || writer.write()));
        }
        let (outside, noise) = (&outside, Noise::new(seed ^ first));
        all.push(scope.spawn(move || syncs(outside, sync, noise)));
        all.into_iter().try_for_each(|one| one.join().unwrap())
    })
}

/// Whole files of this writer that are there and may be removed.
fn live(past: &Ledger, writer: u64) -> Vec<String> {
    let prefix = format!("whole-{writer}-");
    let here = past.here();
    let mine = here.iter().filter(|(name, _)| name.starts_with(&prefix));
    let there = mine.filter(|(_, steps)| steps.len() == 1 && steps[0].1);
    there.map(|(name, _)| (*name).to_owned()).collect()
}

/// Tells of one step, does it, and tells of its end.
fn told(
    outside: &Mutex<Outside>,
    step: impl FnOnce(u64) -> Step,
    act: impl FnOnce(&Step) -> io::Result<()>,
) -> io::Result<()> {
    let (id, step) = {
        let mut outside = outside.lock().unwrap();
        if outside.over {
            return Err(io::Error::other("another was refused something"));
        }
        let id = outside.next;
        outside.next += 1;
        let step = step(id);
        outside.say(&begin(id, &step))?;
        (id, step)
    };
    let result = act(&step);
    let line = match &result {
        Ok(()) => done(id),
        Err(error) => failed(id, &error.to_string()),
    };
    let mut outside = outside.lock().unwrap();
    outside.over |= result.is_err();
    outside.say(&line)?;
    result
}

fn syncs(outside: &Mutex<Outside>, words: &[String], mut noise: Noise) -> io::Result<()> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    loop {
        thread::sleep(Duration::from_millis(100 + noise.below(1500)));
        let run = |_: &Step| {
            let said = Command::new(program).args(arguments).output()?;
            if said.status.success() {
                return Ok(());
            }
            let why = String::from_utf8_lossy(&said.stderr);
            Err(io::Error::other(format!("{}: {why}", said.status)))
        };
        told(outside, |_| Step::Sync, run)?;
    }
}

struct Writer<'a> {
    root: &'a Path,
    outside: &'a Mutex<Outside>,
    number: u64,
    session: u64,
    live: Vec<String>,
    noise: Noise,
}

impl Writer<'_> {
    fn write(mut self) -> io::Result<()> {
        loop {
            match self.noise.below(5) {
                0 if self.live.len() < LIVE => self.whole()?,
                0 => self.remove()?,
                1 => self.grow()?,
                2 => self.replace()?,
                _ => self.page()?,
            }
        }
    }

    fn whole(&mut self) -> io::Result<()> {
        let (number, length) = (self.number, self.noise.below(LONGEST) as usize);
        let mut named = String::new();
        let step = |id| {
            named = format!("whole-{number}-{id:08}");
            let name = named.clone();
            Step::Whole { name, length }
        };
        let act = |step: &Step| {
            let name = step.name().unwrap();
            let mut file = File::create_new(self.root.join(name))?;
            file.write_all(&bytes_of(name, 0, length))?;
            file.sync_all()
        };
        told(self.outside, step, act)?;
        self.live.push(named);
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        let name = self.live.remove(0);
        let act = |step: &Step| {
            fs::remove_file(self.root.join(step.name().unwrap()))?;
            File::open(self.root)?.sync_all()
        };
        told(self.outside, |_| Step::Remove { name }, act)
    }

    /// A file of this session's own: whatever the last one left behind its promised length stays as it is.
    fn grow(&mut self) -> io::Result<()> {
        let name = format!("grown-{}-{}", self.session, self.number);
        let mut options = File::options();
        let mut file = options
            .append(true)
            .create(true)
            .open(self.root.join(&name))?;
        let before = file.metadata()?.len() as usize;
        let to = before + 1 + self.noise.below(GROWTH) as usize;
        let bytes = bytes_of(&name, 0, to).split_off(before);
        let act = |_: &Step| {
            file.write_all(&bytes)?;
            file.sync_data()
        };
        told(self.outside, |_| Step::Grow { name, to }, act)
    }

    fn replace(&mut self) -> io::Result<()> {
        let name = format!("replaced-{}", self.number);
        let path = self.root.join(&name);
        let aside = self.root.join(format!("{name}.new"));
        let step = |version| Step::Replace { name, version };
        let act = |step: &Step| {
            let Step::Replace { name, version } = step else {
                unreachable!("as begun")
            };
            let mut file = File::create(&aside)?;
            file.write_all(&stamped(name, *version, REPLACED))?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            File::open(self.root)?.sync_all()
        };
        told(self.outside, step, act)
    }

    fn page(&mut self) -> io::Result<()> {
        let name = format!("pages-{}", self.number);
        let page = self.noise.below(PAGES);
        let mut options = File::options();
        let open = options.write(true).create(true).truncate(false);
        let file = open.open(self.root.join(&name))?;
        let step = |version| Step::Page {
            name,
            page,
            version,
        };
        let act = |step: &Step| {
            let Step::Page { name, version, .. } = step else {
                unreachable!("as begun")
            };
            file.write_all_at(&stamped(name, *version, PAGE), page * PAGE as u64)?;
            file.sync_data()
        };
        told(self.outside, step, act)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::powercut::check::check;

    /// On a file system that nobody takes the power from; the sync that is refused ends the load.
    #[test]
    fn what_the_writers_say_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let said = dir.path().join("said");
        for session in 1..=2 {
            let text = fs::read_to_string(&said).unwrap_or_default();
            let past = Ledger::parse(&text).unwrap();
            let port = File::options()
                .append(true)
                .create(true)
                .open(&said)
                .unwrap();
            // The writers end when the directory is taken away; then it is put back.
            let away = dir.path().join("away");
            thread::scope(|scope| {
                scope.spawn(|| load(&root, &past, port, &["true".into()], 1).unwrap_err());
                thread::sleep(Duration::from_millis(700));
                fs::rename(&root, &away).unwrap();
            });
            fs::rename(&away, &root).unwrap();
            let ledger = Ledger::parse(&fs::read_to_string(&said).unwrap()).unwrap();
            assert_eq!(ledger.sessions(), session);
            assert!(ledger.promised().0 > 10, "{:?}", ledger.promised());
            for promises in [ledger.here(), ledger.synced()] {
                assert_eq!(check(&promises, &root), Vec::<String>::new());
            }
        }
    }
}
