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
    /// All up to here is on the server.
    committed: usize,
    /// Everything requested is on the server.
    settled: bool,
    /// The other machine has not been seen to have that.
    unseen: bool,
    /// What the server had that this machine's work stands on: as adopted, and as the other machine found it.
    bases: Vec<Tree>,
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
            committed: 0,
            settled: false,
            unseen: false,
            bases: vec![Tree::new()],
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
        self.settled = false;
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

    /// A sync with the server that began at `mark` was answered.
    pub(super) fn commit(&mut self, mark: usize) {
        self.promise(mark);
        self.committed = self.committed.max(mark);
        self.settled = mark == self.mark();
        // Without a change there is nothing to commit.
        self.unseen |= !self.bases.contains(&self.states[mark].tree);
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
        (self.safe, self.committed) = (0, 0);
        self.promises += std::mem::take(&mut self.unchecked);
        Ok(end)
    }

    /// The same where another machine writes the drive, too: `theirs` is its ledger, `aside` what was newly set aside,
    /// and `fair` that the server was reached. Returns what must be in the branch.
    pub(super) fn recovered_beside(
        &mut self,
        theirs: &mut Self,
        found: &Tree,
        aside: bool,
        fair: bool,
    ) -> Result<Option<Claim>, String> {
        if std::mem::take(&mut self.settled) && aside {
            return Err("a conflict of nothing: everything was on the server".to_owned());
        }
        let own = (self.safe..self.states.len()).rev();
        let own = own.into_iter().find(|n| self.states[*n].allows(found));
        let like = |n: &usize| theirs.states[*n].allows(found);
        let newest = (theirs.committed..theirs.states.len()).any(|n| like(&n));
        let taken = newest || (!fair && (0..theirs.committed).any(|n| like(&n)));
        if taken {
            theirs.bases.push(found.clone());
            theirs.unseen &= !newest;
        }
        if let (Some(end), false) = (own, aside) {
            if fair && theirs.unseen {
                return Err("what the other machine has committed is not here".to_owned());
            }
            if taken {
                // Nothing was done there, or the same.
                self.bases.push(found.clone());
            }
            self.states.truncate(end + 1);
            self.states[end] = State {
                tree: found.clone(),
                open: None,
            };
            self.safe = end;
            self.promises += std::mem::take(&mut self.unchecked);
            return Ok(None);
        }
        let back = self.bases.contains(found) || self.states.iter().any(|s| s.allows(found));
        if !taken && (!aside || !back || (fair && theirs.unseen)) {
            return Err(self.complaint(found));
        }
        if !aside && !self.bases.iter().any(|base| self.may_be(base)) {
            return Err("what was fsynced and not committed is neither here nor set aside".into());
        }
        let claim = aside.then(|| Claim {
            states: self.states[self.safe..].to_vec(),
            bases: self.bases.clone(),
        });
        self.states = vec![State {
            tree: found.clone(),
            open: None,
        }];
        self.bases = vec![found.clone()];
        (self.safe, self.committed, self.unseen) = (0, 0, false);
        self.promises += std::mem::take(&mut self.unchecked);
        Ok(claim)
    }

    fn may_be(&self, found: &Tree) -> bool {
        self.states[self.safe..].iter().any(|s| s.allows(found))
    }

    fn complaint(&self, found: &Tree) -> String {
        let early = (0..self.safe).rev();
        let lost = early.into_iter().find(|n| self.states[*n].allows(found));
        format!(
            "recovered is no prefix that holds what was promised: {} of {} requests were promised, \
             found is {}\n  found    {:?}\n  promised {:?}\n  last     {:?}",
            self.safe,
            self.mark(),
            lost.map_or("no prefix at all".into(), |n| format!("only the first {n}")),
            outline(found),
            outline(&self.states[self.safe].tree),
            outline(self.tree()),
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

/// What a machine had done when another took the drive over.
pub(super) struct Claim {
    /// The branch is one of these.
    states: Vec<State>,
    /// What it stands on.
    bases: Vec<Tree>,
}

impl Claim {
    /// Whether what was exported of a branch is all that it holds beside one of its bases.
    pub(super) fn is_met(&self, exported: &Tree) -> bool {
        let pairs = self
            .states
            .iter()
            .flat_map(|s| self.bases.iter().map(move |b| (s, b)));
        pairs
            .into_iter()
            .any(|(state, base)| state.is_exported(base, exported))
    }

    /// For a complaint.
    pub(super) fn files(&self) -> Vec<String> {
        let last = self.states.last();
        last.map_or(Vec::new(), |state| outline(&state.tree))
    }
}

impl State {
    fn is_exported(&self, base: &Tree, exported: &Tree) -> bool {
        let fits = |(name, ours): (&String, &Arc<Vec<u8>>)| {
            let theirs = exported.get(name).or_else(|| base.get(name));
            theirs.is_some_and(|theirs| {
                ours == theirs || (self.open.as_ref() == Some(name) && lacks_only(ours, theirs))
            })
        };
        self.tree.iter().all(fits) && exported.keys().all(|name| self.tree.contains_key(name))
    }
}

/// Names, lengths and hashes.
pub(super) fn outline(tree: &Tree) -> Vec<String> {
    let one = |(name, content): (&String, &Arc<Vec<u8>>)| {
        let hash = blake3::hash(content).to_hex();
        format!("{name}: {} bytes {}", content.len(), &hash.as_str()[..8])
    };
    tree.iter().map(one).collect()
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
