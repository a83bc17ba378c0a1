//! The same random operations on two directories, one of them the judge: every answer must be the same.
//!
//! Invariant: one seed is one run. The judge is the machine's own file system, which knows every rule of POSIX better
//! than a model written here would. Called by `tests/model.rs`.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, XattrFlags, fallocate, renameat_with};

use crate::made::Noise;

/// Few names, so that operations meet; the last two are mostly directories.
const NAMES: &[&str] = &["a", "b", "c", "D", "E"];
/// How many directories stand before the last name.
const DEPTHS: &[usize] = &[0, 0, 0, 1, 1, 2];
/// Longest file, bytes: past the longest chunk, so that files are cut.
const LONGEST: u64 = 3 << 20;

/// One operation, with everything it needs.
#[derive(Debug, Clone)]
pub enum Step {
    /// Write bytes of a seed at an offset, creating the file.
    Write(PathBuf, u64, usize, u64),
    /// Append.
    Append(PathBuf, usize, u64),
    /// Set the length.
    Truncate(PathBuf, u64),
    /// Make a hole.
    Punch(PathBuf, u64, u64),
    /// Reserve space, growing the file.
    Allocate(PathBuf, u64, u64),
    /// Copy a range between files.
    Copy(PathBuf, u64, PathBuf, u64, usize),
    /// Read a range and compare.
    Read(PathBuf, u64, usize),
    /// List and compare.
    List(PathBuf),
    /// Create exclusively.
    CreateNew(PathBuf),
    /// mkdir.
    Mkdir(PathBuf),
    /// rmdir.
    Rmdir(PathBuf),
    /// unlink.
    Unlink(PathBuf),
    /// rename with flags: 0 none, 1 no replace, 2 exchange.
    Rename(PathBuf, PathBuf, u32),
    /// link.
    Link(PathBuf, PathBuf),
    /// symlink with some target.
    Symlink(PathBuf, PathBuf),
    /// chmod.
    Chmod(PathBuf, u32),
    /// setxattr of a length; all of a file fit the one block that ext4 has for them.
    SetXattr(PathBuf, u64, usize),
    /// removexattr.
    RemoveXattr(PathBuf, u64),
    /// fsync.
    Fsync(PathBuf),
}

/// Draws a step.
pub fn draw(noise: &mut Noise) -> Step {
    let offset = |noise: &mut Noise| {
        let range = [64, 5000, 200_000, LONGEST][noise.below(4) as usize];
        noise.below(range)
    };
    let length = |noise: &mut Noise| {
        let range = [16, 5000, 70_000, 900_000][noise.below(4) as usize];
        noise.below(range) as usize + 1
    };
    let path = |noise: &mut Noise| {
        let mut path = PathBuf::new();
        for _ in 0..DEPTHS[noise.below(DEPTHS.len() as u64) as usize] {
            path.push(NAMES[3 + noise.below(2) as usize]);
        }
        path.push(NAMES[noise.below(NAMES.len() as u64) as usize]);
        path
    };
    let at = path(noise);
    match noise.below(40) {
        0..=7 => Step::Write(at, offset(noise), length(noise), noise.below(u64::MAX)),
        8..=9 => Step::Append(at, length(noise), noise.below(u64::MAX)),
        10..=11 => Step::Truncate(at, offset(noise)),
        12 => Step::Punch(at, offset(noise), length(noise) as u64),
        13 => Step::Allocate(at, offset(noise), length(noise) as u64),
        14..=15 => Step::Copy(at, offset(noise), path(noise), offset(noise), length(noise)),
        16..=19 => Step::Read(at, offset(noise), length(noise)),
        20..=21 => Step::List(at),
        22 => Step::CreateNew(at),
        23..=25 => Step::Mkdir(at),
        26 => Step::Rmdir(at),
        27..=28 => Step::Unlink(at),
        29..=31 => Step::Rename(at, path(noise), noise.below(3) as u32),
        32 => Step::Link(at, path(noise)),
        33 => Step::Symlink(at, path(noise)),
        34 => Step::Chmod(at, 0o600 | noise.below(0o200) as u32),
        35..=36 => Step::SetXattr(
            at,
            noise.below(3),
            [0, 5, 600, 1000][noise.below(4) as usize],
        ),
        37 => Step::RemoveXattr(at, noise.below(3)),
        _ => Step::Fsync(at),
    }
}

/// What an operation answered: what it saw, or the error number.
pub type Answer = Result<Vec<u8>, i32>;

/// Does a step below a root.
pub fn apply(step: &Step, root: &Path) -> Answer {
    attempt(step, root).map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn attempt(step: &Step, root: &Path) -> io::Result<Vec<u8>> {
    let writable = |path: &Path| File::options().write(true).open(root.join(path));
    let attribute = |number: &u64| format!("user.x{number}");
    match step {
        Step::Write(path, at, length, seed) => {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(root.join(path))?;
            file.write_all_at(&Noise::new(*seed).bytes(*length), *at)?;
        }
        Step::Append(path, length, seed) => {
            let mut file = File::options().append(true).open(root.join(path))?;
            io::Write::write_all(&mut file, &Noise::new(*seed).bytes(*length))?;
        }
        Step::Truncate(path, length) => writable(path)?.set_len(*length)?,
        Step::Punch(path, at, length) => {
            fallocate(
                writable(path)?,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                *at,
                *length,
            )?;
        }
        Step::Allocate(path, at, length) => {
            fallocate(writable(path)?, FallocateFlags::empty(), *at, *length)?
        }
        Step::Copy(from, at, to, other, length) => {
            let (source, target) = (File::open(root.join(from))?, writable(to)?);
            let (mut at, mut other) = (*at, *other);
            let copied = rustix::fs::copy_file_range(
                &source,
                Some(&mut at),
                &target,
                Some(&mut other),
                *length,
            )?;
            return Ok(copied.to_le_bytes().to_vec());
        }
        Step::Read(path, at, length) => {
            let file = File::open(root.join(path))?;
            let mut buffer = vec![0; *length];
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read_at(&mut buffer[filled..], at + filled as u64)? {
                    0 => break,
                    n => filled += n,
                }
            }
            buffer.truncate(filled);
            return Ok(buffer);
        }
        Step::List(path) => {
            let mut names: Vec<_> = fs::read_dir(root.join(path))?
                .map(|entry| Ok(entry?.file_name().into_encoded_bytes()))
                .collect::<io::Result<_>>()?;
            names.sort();
            return Ok(names.join(&0));
        }
        Step::CreateNew(path) => drop(File::create_new(root.join(path))?),
        Step::Mkdir(path) => fs::create_dir(root.join(path))?,
        Step::Rmdir(path) => fs::remove_dir(root.join(path))?,
        Step::Unlink(path) => fs::remove_file(root.join(path))?,
        Step::Rename(from, to, flags) => {
            let flags = [
                RenameFlags::empty(),
                RenameFlags::NOREPLACE,
                RenameFlags::EXCHANGE,
            ][*flags as usize];
            renameat_with(CWD, root.join(from), CWD, root.join(to), flags)?;
        }
        Step::Link(from, to) => fs::hard_link(root.join(from), root.join(to))?,
        Step::Symlink(target, path) => symlink(target, root.join(path))?,
        Step::Chmod(path, mode) => {
            fs::set_permissions(root.join(path), PermissionsExt::from_mode(*mode))?
        }
        Step::SetXattr(path, number, length) => {
            let (name, value) = (attribute(number), Noise::new(*number).bytes(*length));
            rustix::fs::setxattr(root.join(path), name, &value, XattrFlags::empty())?;
        }
        Step::RemoveXattr(path, number) => {
            let name = CString::new(attribute(number))?;
            rustix::fs::removexattr(root.join(path), name)?;
        }
        Step::Fsync(path) => File::open(root.join(path))?.sync_all()?,
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_agrees_with_itself_and_most_steps_do_something() {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        fs::create_dir_all(&left).unwrap();
        fs::create_dir_all(&right).unwrap();
        let mut noise = Noise::new(1);
        let mut done = 0;
        for number in 0..1500 {
            let step = draw(&mut noise);
            let (a, b) = (apply(&step, &left), apply(&step, &right));
            assert!(a == b, "step {number}, {step:?}");
            done += u32::from(a.is_ok());
        }
        assert!(
            done > 400,
            "only {done} steps succeeded: the walk is too random to test anything"
        );
    }
}
