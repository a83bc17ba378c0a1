//! A source file as the rules see it: its text, and its product code without comments and test modules.
//!
//! Invariant: line numbers of `product` are those of the file. Called by the rules and by `tests/tidy.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One file of the repository.
pub struct Source {
    /// Path relative to the repository, with `/`.
    pub path: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// A sample for a rule's own test.
    pub fn sample(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// Lines of product code with their numbers: comments cut off, `#[cfg(test)] mod` blocks left out.
    ///
    /// A lexer would be exact; this reads `//` outside quotes as a comment and ends a test module at the first line
    /// whose brace stands no deeper than the module's own, which rustfmt guarantees.
    pub fn product(&self) -> Vec<(usize, &str)> {
        let mut out = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            if line.trim() == "#[cfg(test)]" {
                let Some((_, next)) = lines.next() else { break };
                if next.trim_end().ends_with('{') {
                    let end = format!("{}}}", &next[..next.len() - next.trim_start().len()]);
                    for (_, inner) in lines.by_ref() {
                        if inner.trim_end() == end {
                            break;
                        }
                    }
                }
                continue;
            }
            let code = without_comment(line);
            if !code.trim().is_empty() {
                out.push((at + 1, code));
            }
        }
        out
    }

    /// Is this a test rather than product: the tests crate, a `tests/`, `benches/` or `examples/` directory, a
    /// `tests.rs` module?
    pub fn is_test(&self) -> bool {
        self.path
            .split('/')
            .any(|part| matches!(part, "tests" | "benches" | "examples" | "tests.rs"))
    }
}

fn without_comment(line: &str) -> &str {
    let bytes = line.as_bytes();
    let mut quoted = false;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'/' if !quoted && bytes.get(at + 1) == Some(&b'/') => return &line[..at],
            _ => {}
        }
        at += 1;
    }
    line
}

/// Does `line` contain `word` with no letter, digit or underscore on either side?
pub fn has_word(line: &str, word: &str) -> bool {
    let edge = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        edge(line[..at].chars().next_back()) && edge(line[at + word.len()..].chars().next())
    })
}

/// The repository this crate stands in.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository exists")
}

/// Every text file that git tracks or would track, with its content.
pub fn tracked(repository: &Path) -> Vec<Source> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(repository)
        .output()
        .expect("git is installed: it is how this repository was cloned");
    assert!(
        listed.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let names = String::from_utf8(listed.stdout).expect("file names of this repository are UTF-8");
    let read = |path: &str| {
        let text = std::fs::read_to_string(repository.join(path)).ok()?;
        Some(Source {
            path: path.into(),
            text,
        })
    };
    names.split_terminator('\0').filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_leaves_out_comments_and_test_modules() {
        let text = "//! doc
use a; // why
let s = \"http://x\";
\
            #[cfg(test)]
mod tests {
    fn f() {
    }
}
fn g() {}
";
        let source = Source::sample("a.rs", text);
        assert_eq!(
            source.product(),
            vec![
                (2, "use a; "),
                (3, "let s = \"http://x\";"),
                (9, "fn g() {}")
            ]
        );
    }

    #[test]
    fn words_have_edges() {
        assert!(has_word("use fuser::Filesystem;", "fuser"));
        assert!(!has_word("a_fuser_mount", "fuser"));
        assert!(!has_word("confuser", "fuser"));
        assert!(has_word("x(SystemTime::now())", "SystemTime::now"));
    }
}
