//! The drive's commit chain as this device has verified it, and whom to ask for what lies beyond.
//!
//! Invariant: pins move only by `sealdrive_core::history`, which checks every hash and signature on the way; nothing
//! else the server says of its head is believed. A signer or member this device has not heard of is looked for once in
//! the account's chain, which verifies itself. Called by open (a machine without memory) and by the commit thread.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealdrive_core::commit_body::CommitBody;
use sealdrive_core::history::{HistoryError, Pins, Verified, Walk};
use sealdrive_core::tree::Root;
use sealdrive_proto::commit::{CommitFields, SignedCommit};
use sealdrive_proto::id::{DriveId, LinkHash};
use sealdrive_proto::link::{AccountChain, Link};
use sealdrive_runtime::task::Handle;
use sealdrive_runtime::time::timeout;

use crate::limits::CALL_DEADLINE;
use crate::remote::{CommitAnswer, HeadAnswer, Remote, RemoteError};

/// Why a head is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The server was not reached, or refused.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// What it showed does not verify.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// Pins, and whom to ask for what lies beyond them.
pub(super) struct Chain {
    drive: DriveId,
    account: AccountChain,
    remote: Arc<dyn Remote>,
    runtime: Handle,
    pins: Pins,
}

impl Chain {
    /// The chain as far as `pins`.
    pub(super) fn new(
        drive: DriveId,
        account: AccountChain,
        remote: Arc<dyn Remote>,
        runtime: Handle,
        pins: Pins,
    ) -> Self {
        Self {
            drive,
            account,
            remote,
            runtime,
            pins,
        }
    }

    /// What has been verified.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Head of the account's chain, as commits name it.
    pub(super) fn membership(&self) -> LinkHash {
        self.account.head()
    }

    /// The server's head, unverified.
    pub(super) fn head(&self) -> Result<Option<HeadAnswer>, RemoteError> {
        self.head_within(CALL_DEADLINE)
    }

    /// The same, not waiting longer than this.
    pub(super) fn head_within(&self, at_most: Duration) -> Result<Option<HeadAnswer>, RemoteError> {
        self.call(at_most, self.remote.get_head())
    }

    /// Submits a commit.
    pub(super) fn submit(
        &self,
        commit: &SignedCommit,
        body: &Bytes,
        gc_generation: u64,
    ) -> Result<CommitAnswer, RemoteError> {
        let commit = Bytes::copy_from_slice(commit.bytes());
        self.call(
            CALL_DEADLINE,
            self.remote.commit(commit, body.clone(), gc_generation),
        )
    }

    /// Verifies a head: that it is signed, has this body, and continues what is pinned. Does not move the pins.
    pub(super) fn check_head(&mut self, head: &HeadAnswer) -> Result<Verified, ChainError> {
        match self.walk(head) {
            Err(ChainError::History(HistoryError::Signer)) => {
                self.refresh()?;
                self.walk(head)
            }
            done => done,
        }
    }

    /// Pins a verified head whose body was opened.
    pub(super) fn accept(&mut self, head: Verified, body: CommitBody) -> Result<&Pins, ChainError> {
        if self.account.position(&body.membership).is_none() {
            self.refresh()?;
        }
        let position = self
            .account
            .position(&body.membership)
            .ok_or(HistoryError::Forgetful)?;
        self.pins.accept(head, body, position)?;
        Ok(&self.pins)
    }

    /// Pins a commit of this device that the server has accepted.
    pub(super) fn advance(
        &mut self,
        own: &SignedCommit,
        body: CommitBody,
    ) -> Result<&Pins, ChainError> {
        let position = self.account.position(&body.membership);
        let membership = body.membership;
        self.pins.advance(own, body)?;
        if let Some(position) = position {
            self.pins.membership = (position, membership);
        }
        Ok(&self.pins)
    }

    /// Notes a number this device has signed with; it is never used again.
    pub(super) fn signed(&mut self, fields: &CommitFields) {
        self.pins.device_seq = self.pins.device_seq.max(fields.device_seq);
    }

    fn walk(&self, head: &HeadAnswer) -> Result<Verified, ChainError> {
        let mut walk = Walk::begin(
            &self.account,
            self.drive,
            &self.pins,
            &head.commit,
            &head.body,
        )?;
        while let Some(seq) = walk.wants() {
            let commits = self.call(CALL_DEADLINE, self.remote.get_commits(vec![seq]))?;
            walk.feed(commits.first().ok_or(HistoryError::Foreign)?)?;
        }
        Ok(walk.finish().ok_or(HistoryError::Foreign)?)
    }

    /// Takes what has been added to the account's chain since this device last looked.
    fn refresh(&mut self) -> Result<(), ChainError> {
        let broken = |e: String| RemoteError::Tampered(format!("account chain: {e}"));
        let mut account = self.account.clone();
        loop {
            let from = account.head_seq() + 1;
            let answer = self.call(CALL_DEADLINE, self.remote.get_chain(from))?;
            for bytes in &answer.links {
                let link = Link::parse(bytes).map_err(|e| broken(e.to_string()))?;
                account.append(&link).map_err(|e| broken(e.to_string()))?;
            }
            if answer.links.is_empty() || account.head_seq() >= answer.head_seq {
                break;
            }
        }
        self.account = account;
        Ok(())
    }

    fn call<T>(
        &self,
        at_most: Duration,
        call: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let late = |_| RemoteError::Unreachable("no answer in time".into());
        self.runtime
            .block_on(async { timeout(at_most, call).await.map_err(late)? })
    }
}

/// Tree of the newest commit that this device made or opened.
pub(super) fn root_of(pins: &Pins) -> Option<Root> {
    pins.body().map(|body| Root(body.root))
}
