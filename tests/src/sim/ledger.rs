//! What a drive was asked to do and what was promised: the oracle.
//!
//! Invariant (promise 2): what is recovered is a prefix of the requests, holding all that was fsynced or committed. A
//! file open for writing at the end of that prefix may lack ranges that were not synced: zeros, or an earlier end;
//! never other bytes. Called by `world.rs`.

use std::sync::Arc;

use super::drive::Tree;

/// The drive after one request.
#[derive(Clone, Default)]
struct State {
    tree: Tree,
    /// Open for writing.
    open: Option<String>,
}

/// Every state since the last recovery. State 0 is what was recovered.
pub(super) struct Ledger {
    states: Vec<State>,
    /// All up to here must be found again on this machine.
    safe: usize,
    /// Requests made in all.
    pub(super) requests: u64,
    /// Answered fsyncs and commits that were checked by a recovery.
    pub(super) promises: u64,
    unchecked: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            states: vec![State::default()],
            safe: 0,
            requests: 0,
            promises: 0,
            unchecked: 0,
        }
    }
}

impl Ledger {
    pub(super) fn tree(&self) -> &Tree {
        &self.states.last().expect("never empty").tree
    }

    /// A request is about to be made that changes the tree like this.
    pub(super) fn request(&mut self, change: impl FnOnce(&mut Tree), open: Option<&str>) {
        let mut next = self.states.last().cloned().unwrap_or_default();
        change(&mut next.tree);
        next.open = open.map(str::to_owned);
        self.states.push(next);
        self.requests += 1;
    }

    /// The last request was refused: what is refused is not done.
    pub(super) fn refused(&mut self) {
        assert!(self.safe < self.mark(), "what was promised was refused");
        self.states.pop();
    }

    /// How many requests have been made since recovery.
    pub(super) fn mark(&self) -> usize {
        self.states.len() - 1
    }

    /// An fsync or commit that began at `mark` was answered.
    pub(super) fn promise(&mut self, mark: usize) {
        self.safe = self.safe.max(mark);
        self.unchecked += 1;
    }

    /// Judges what was recovered, and goes on from there. Returns which prefix it is.
    pub(super) fn recovered(&mut self, found: &Tree) -> Result<usize, String> {
        let mut ends = (self.safe..self.states.len()).rev();
        let Some(end) = ends.find(|end| self.states[*end].allows(found)) else {
            return Err(self.complaint(found));
        };
        self.states = vec![State {
            tree: found.clone(),
            open: None,
        }];
        self.safe = 0;
        self.promises += std::mem::take(&mut self.unchecked);
        Ok(end)
    }

    fn complaint(&self, found: &Tree) -> String {
        let list = |tree: &Tree| -> Vec<String> {
            let one = |(name, content): (&String, &Arc<Vec<u8>>)| {
                let hash = blake3::hash(content).to_hex();
                format!("{name}: {} bytes {}", content.len(), &hash.as_str()[..8])
            };
            tree.iter().map(one).collect()
        };
        let early = (0..self.safe).rev();
        let lost = early.into_iter().find(|n| self.states[*n].allows(found));
        format!(
            "recovered is no prefix that holds what was promised: {} of {} requests were promised, \
             found is {}\n  found    {:?}\n  promised {:?}\n  last     {:?}",
            self.safe,
            self.mark(),
            lost.map_or("no prefix at all".into(), |n| format!("only the first {n}")),
            list(found),
            list(&self.states[self.safe].tree),
            list(self.tree()),
        )
    }
}

impl State {
    fn allows(&self, found: &Tree) -> bool {
        self.tree.len() == found.len()
            && self
                .tree
                .iter()
                .zip(found)
                .all(|((name, ours), (other, theirs))| {
                    name == other
                        && (ours == theirs
                            || (self.open.as_ref() == Some(name) && lacks_only(ours, theirs)))
                })
    }
}

/// Whether `found` is `whole` with ranges missing.
fn lacks_only(whole: &[u8], found: &[u8]) -> bool {
    found.len() <= whole.len() && found.iter().zip(whole).all(|(f, w)| f == w || *f == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(name: &str, content: &[u8]) -> impl FnOnce(&mut Tree) {
        let (name, content) = (name.to_owned(), Arc::new(content.to_vec()));
        move |tree| drop(tree.insert(name, content))
    }

    fn tree(files: &[(&str, &[u8])]) -> Tree {
        let mut out = Tree::new();
        files
            .iter()
            .for_each(|(name, content)| put(name, content)(&mut out));
        out
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.request(put("a", b""), Some("a"));
        ledger.request(put("a", b"one"), Some("a"));
        ledger.request(put("a", b"one"), None);
        ledger.request(put("b", b"two"), None);
        ledger
    }

    #[test]
    fn prefixes_are_allowed_and_nothing_else() {
        let prefixes: [&[(&str, &[u8])]; 3] =
            [&[], &[("a", b"one")], &[("a", b"one"), ("b", b"two")]];
        for (found, end) in prefixes.iter().zip([0, 3, 4]) {
            assert_eq!(ledger().recovered(&tree(found)), Ok(end));
        }
        assert_eq!(
            ledger().recovered(&tree(&[("a", b"o\0e")])),
            Ok(2),
            "still open"
        );
        let wrong: [&[(&str, &[u8])]; 4] = [
            &[("b", b"two")],
            &[("a", b"two")],
            &[("a", b"one!")],
            &[("a", b"o\0e"), ("b", b"two")],
        ];
        for found in wrong {
            assert!(ledger().recovered(&tree(found)).is_err(), "{found:?}");
        }
    }

    #[test]
    fn a_promise_may_not_be_forgotten() {
        let mut ledger = ledger();
        ledger.promise(3);
        let error = ledger.recovered(&tree(&[])).unwrap_err();
        assert!(error.contains("only the first 0"), "{error}");
        assert_eq!(ledger.recovered(&tree(&[("a", b"one")])), Ok(3));
        assert_eq!((ledger.mark(), ledger.promises), (0, 1));
    }
}
