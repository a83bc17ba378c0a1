//! The account's own calls: register, slot, chain. Not for one drive, so not part of `Remote`.
//!
//! Invariant: as `grpc`: bytes out, verified by the caller. Called by the account flows.

use bytes::Bytes;
use sealdrive_proto::v1;

use super::session::{Line, Ticket};
use super::{Identity, Server, accounts, drive};
use crate::remote::{ChainAnswer, RemoteError};

/// Longest chain followed, links: far beyond the devices and drives an account may have.
const MAX_CHAIN: usize = 100_000;

/// What registering takes.
#[derive(Clone)]
pub struct Registration {
    /// One-time right from the connect string.
    pub invite: [u8; 16],
    /// First link of the account chain.
    pub genesis: Bytes,
    /// Login slot.
    pub slot: Bytes,
    /// Domain secrets under the account root.
    pub key_box: Bytes,
}

/// What the login slot's owner gets back.
pub struct SlotAnswer {
    /// Login slot.
    pub slot: Bytes,
    /// Domain secrets under the account root.
    pub key_box: Bytes,
}

/// One account on one server.
pub struct Account {
    line: Line,
}

impl Account {
    /// Nothing is connected yet: the first call does that.
    pub fn new(server: Server, identity: Identity) -> Self {
        Self {
            line: Line::new(server, identity),
        }
    }

    /// Connects and checks that the server is the pinned one, without logging in. Yields the fingerprint of the
    /// certificate it showed, if it showed one.
    pub async fn verify_server(&self) -> Result<Option<[u8; 32]>, RemoteError> {
        self.line.verify_server().await
    }

    /// Creates the account. Idempotent for the same genesis.
    pub async fn register(&self, registration: &Registration) -> Result<(), RemoteError> {
        let message = v1::RegisterRequest {
            invite_code: Bytes::copy_from_slice(&registration.invite),
            genesis: registration.genesis.clone(),
            slot: registration.slot.clone(),
            key_box: registration.key_box.clone(),
        };
        self.line
            .anonymous(|channel| async move { accounts(channel).register(message).await })
            .await
            .map(drop)
    }

    /// The login slot and key box.
    pub async fn slot(&self) -> Result<SlotAnswer, RemoteError> {
        let answer = self
            .line
            .call(|ticket: Ticket| async move {
                accounts(ticket.channel.clone())
                    .get_slot(ticket.request(v1::GetSlotRequest {}))
                    .await
            })
            .await?
            .into_inner();
        Ok(SlotAnswer {
            slot: answer.slot,
            key_box: answer.key_box,
        })
    }

    /// The whole account chain.
    pub async fn chain(&self) -> Result<Vec<Bytes>, RemoteError> {
        let mut links = Vec::new();
        loop {
            let ChainAnswer {
                links: more,
                head_seq,
            } = drive::chain(&self.line, links.len() as u64).await?;
            let ended = more.is_empty();
            links.extend(more);
            if links.len() as u64 > head_seq {
                return Ok(links);
            }
            if ended || links.len() > MAX_CHAIN {
                return Err(RemoteError::Tampered(
                    "the account chain has no end".to_owned(),
                ));
            }
        }
    }

    /// Appends one signed link. `Refused` if it does not continue the head.
    pub async fn append(&self, link: &[u8]) -> Result<(), RemoteError> {
        let link = Bytes::copy_from_slice(link);
        self.line
            .call(|ticket: Ticket| {
                let request = ticket.request(v1::AppendLinkRequest { link: link.clone() });
                async move { accounts(ticket.channel.clone()).append_link(request).await }
            })
            .await
            .map(drop)
    }
}
