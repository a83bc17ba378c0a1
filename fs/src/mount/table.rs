//! The kernel's mount table, `/proc/self/mountinfo`: which Sealdrive mounts exist, where, under which device number.
//!
//! Invariant: nothing here touches the mounted file system itself (no stat), so it answers even when a drive hangs.
//! Called by the mount wiring, the umount helper and the run records.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The type under which our mounts appear.
pub const FS_TYPE: &str = "fuse.sealdrive";

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Mount id, unique while mounted.
    pub id: u64,
    /// Device as `major:minor`: the same for every bind mount of one drive.
    pub device: String,
    /// Where it is attached.
    pub mountpoint: PathBuf,
    /// File system type, e.g. `fuse.sealdrive`.
    pub fs_type: String,
    /// The source column.
    pub source: String,
}

/// Reads the table of this process's mount namespace, in mount order.
pub fn rows() -> io::Result<Vec<Row>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The topmost mount at exactly this path, whatever its type.
pub fn at(mountpoint: &Path) -> io::Result<Option<Row>> {
    Ok(rows()?
        .into_iter()
        .rev()
        .find(|row| row.mountpoint == mountpoint))
}

/// An absolute form of `path` without touching what is mounted there: only the parent is resolved.
/// Resolving the path itself would ask the mounted file system, which may be dead or waiting for the network.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => path.canonicalize(),
    }
}

fn parse(text: &[u8]) -> Vec<Row> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_row)
        .collect()
}

// proc_pid_mountinfo(5): id parent major:minor root mountpoint options [optional…] - type source super-options
fn parse_row(line: &[u8]) -> Option<Row> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8(fields.nth(1)?.to_vec()).ok()?;
    let mountpoint = PathBuf::from(unescape(fields.nth(1)?));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let source = unescape(fields.next()?).to_string_lossy().into_owned();
    Some(Row {
        id,
        device,
        mountpoint,
        fs_type,
        source,
    })
}

/// Undoes the `\040` form in which the kernel writes blanks and backslashes.
pub(super) fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = |digit: u8| digit.is_ascii_digit().then(|| digit.wrapping_sub(b'0'));
        if let (b'\\', [a, b, c, after @ ..]) = (byte, tail)
            && let (Some(a @ 0..=3), Some(b @ 0..=7), Some(c @ 0..=7)) =
                (octal(*a), octal(*b), octal(*c))
        {
            plain.push(a << 6 | b << 3 | c);
            rest = after;
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    OsString::from_vec(plain)
}

/// The form in which mount tables hold a path: blanks, tabs, newlines and backslashes as octal.
pub(super) fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                escaped.extend_from_slice(format!("\\{byte:03o}").as_bytes())
            }
            plain => escaped.push(plain),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_with_blanks_in_its_path() {
        let text = b"36 35 0:45 / /mnt/my\\040drive rw,nosuid shared:1 - fuse.sealdrive sealdrive:work rw,user_id=0\n\
            37 35 8:1 / / rw - ext4 /dev/sda1 rw\nbroken\n";
        let rows = parse(text);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].mountpoint, Path::new("/mnt/my drive"));
        assert_eq!((rows[0].id, rows[0].device.as_str()), (36, "0:45"));
        assert_eq!(
            (rows[0].fs_type.as_str(), rows[0].source.as_str()),
            (FS_TYPE, "sealdrive:work")
        );
        assert_eq!(rows[1].fs_type, "ext4");
    }

    #[test]
    fn escape_and_unescape_undo_each_other() {
        let path = Path::new("/a b\\c\td\ne/é");
        assert_eq!(unescape(&escape(path)), path.as_os_str());
        assert!(!escape(path).contains(&b' '));
    }

    #[test]
    fn this_machine_has_a_root_mount() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
