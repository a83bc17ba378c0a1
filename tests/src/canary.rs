//! Canaries: unique strings that must never be seen outside the plaintext, searched for in every form they could take.
//!
//! Invariant: a needle is found raw, in hex (both cases) and in base64 (both alphabets, all three alignments), anywhere
//! in a file, across any buffer border. Called by the canary suite.

use std::io;
use std::path::{Path, PathBuf};

/// Shortest needle: below this many bytes chance would find it.
pub const SHORTEST: usize = 12;

/// A canary: what it is called in a report, and its bytes.
#[derive(Debug, Clone)]
pub struct Needle {
    /// What leaked, should it be found.
    pub name: String,
    /// The forms searched for.
    forms: Vec<Vec<u8>>,
}

impl Needle {
    /// A needle and all its forms.
    pub fn new(name: impl Into<String>, bytes: &[u8]) -> Self {
        assert!(
            bytes.len() >= SHORTEST,
            "a needle of {} bytes proves nothing",
            bytes.len()
        );
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let mut forms = vec![
            bytes.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
        ];
        for skip in 0..3 {
            for alphabet in [STANDARD, URL] {
                forms.push(base64_core(bytes, skip, alphabet));
            }
        }
        forms.sort();
        forms.dedup();
        Self {
            name: name.into(),
            forms,
        }
    }

    /// Is it in these bytes, in any form?
    pub fn is_in(&self, haystack: &[u8]) -> bool {
        self.forms.iter().any(|form| contains(haystack, form))
    }
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The base64 digits that depend on `bytes` alone when `skip` bytes of something else stand before them.
fn base64_core(bytes: &[u8], skip: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let mut padded = vec![0; skip];
    padded.extend_from_slice(bytes);
    let whole = padded.len() / 3 * 3;
    let mut digits = Vec::new();
    for three in padded[..whole].chunks_exact(3) {
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        digits.extend([18, 12, 6, 0].map(|shift| alphabet[(bits >> shift & 63) as usize]));
    }
    // The digits mixed with what stands before are not ours to know.
    digits.split_off([0, 2, 3][skip])
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let (first, rest) = (needle[0], needle.len());
    let mut at = 0;
    while at + rest <= haystack.len() {
        let Some(step) = haystack[at..=haystack.len() - rest]
            .iter()
            .position(|b| *b == first)
        else {
            return false;
        };
        at += step;
        if &haystack[at..at + rest] == needle {
            return true;
        }
        at += 1;
    }
    false
}

/// Every needle found under a directory: in the content of files, in their names, in links.
pub fn search(root: &Path, needles: &[Needle]) -> io::Result<Searched> {
    let mut searched = Searched::default();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = path.symlink_metadata()?;
        let name = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        searched.judge(&path, name, needles);
        if meta.is_dir() {
            for entry in path.read_dir()? {
                open.push(entry?.path());
            }
        } else if meta.is_file() {
            searched.files += 1;
            searched.bytes += meta.len();
            searched.judge(&path, &std::fs::read(&path)?, needles);
        }
    }
    Ok(searched)
}

/// What a search saw.
#[derive(Debug, Default)]
pub struct Searched {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Needle and where it stood.
    pub found: Vec<(String, PathBuf)>,
}

impl Searched {
    fn judge(&mut self, place: &Path, bytes: &[u8], needles: &[Needle]) {
        for needle in needles.iter().filter(|needle| needle.is_in(bytes)) {
            self.found.push((needle.name.clone(), place.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_at_every_alignment() {
        let needle = Needle::new("n", b"canary-9f8e7d6c5b4a");
        for form in [
            "xxcanary-9f8e7d6c5b4ayy",
            "63616e6172792d39663865376436633562346100",
            "63616E6172792D396638653764366335623461",
            // base64 of "canary-9f8e7d6c5b4a", of "x" and of "xx" before it.
            "Y2FuYXJ5LTlmOGU3ZDZjNWI0YQ==",
            "eGNhbmFyeS05ZjhlN2Q2YzViNGE=",
            "eHhjYW5hcnktOWY4ZTdkNmM1YjRh",
        ] {
            assert!(needle.is_in(form.as_bytes()), "{form}");
        }
        assert!(!needle.is_in(b"canary-9f8e7d6c5b4"));
        assert!(!needle.is_in(b""));
    }

    #[test]
    fn names_contents_and_depth_are_searched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(
            dir.path().join("a/b/file"),
            [&[0u8; 100_000][..], b"canary-content-1"].concat(),
        )
        .unwrap();
        std::fs::write(dir.path().join("a/canary-name-0001"), b"").unwrap();
        let needles = ["canary-content-1", "canary-name-0001", "canary-absent-1"]
            .map(|n| Needle::new(n, n.as_bytes()));
        let searched = search(dir.path(), &needles).unwrap();
        assert_eq!(
            (searched.files, searched.found.len()),
            (2, 2),
            "{searched:?}"
        );
    }
}
