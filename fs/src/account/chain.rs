//! The account chain as this machine knows it: kept whole, extended from the server, never replaced.
//!
//! Invariant: what is kept verifies and is this account's; a server that shows another continuation of it, or a
//! shorter one, is not believed. Holds nothing secret (names are sealed). Called by the account flows and by mount.

use std::time::Duration;

use bytes::Bytes;
use sealdrive_proto::id::AccountId;
use sealdrive_proto::limits::MAX_LINK;
use sealdrive_proto::link::{AccountChain, Link};

use super::AccountError;
use crate::home::{Home, HomeError};
use crate::remote::{Remote, RemoteError};

/// Name of the file in the home directory: `(length u32 ‖ link)*`, oldest first.
const FILE: &str = "account-chain";

/// Writes a verified chain.
pub(super) fn store(home: &Home, links: &[Link]) -> Result<(), AccountError> {
    let mut file = Vec::new();
    for link in links {
        file.extend_from_slice(&(link.bytes().len() as u32).to_le_bytes());
        file.extend_from_slice(link.bytes());
    }
    Ok(home.replace(FILE, &file)?)
}

/// Reads and verifies the chain kept here.
pub(super) fn load(
    home: &Home,
    account: AccountId,
) -> Result<(AccountChain, Vec<Link>), AccountError> {
    let file = home.read(FILE)?;
    let damaged = |why: &str| {
        AccountError::from(HomeError::Damaged {
            path: home.dir().join(FILE),
            why: why.to_owned(),
        })
    };
    let mut rest = file.as_slice();
    let mut links = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_LINK || len > tail.len() {
            return Err(damaged("a link is cut short"));
        }
        let (link, tail) = tail.split_at(len);
        links.push(Link::parse(link).map_err(|_| damaged("not a link"))?);
        rest = tail;
    }
    let chain = AccountChain::replay(&links).map_err(|_| damaged("the chain does not verify"))?;
    if !rest.is_empty() || chain.account() != account {
        return Err(damaged("not the chain of this account"));
    }
    Ok((chain, links))
}

/// Asks the server for links that came since, and keeps them. Not reaching it within `patience` changes nothing; a
/// chain that went back or forked is an error.
pub(super) async fn refresh(
    home: &Home,
    account: AccountId,
    remote: &dyn Remote,
    patience: Duration,
) -> Result<AccountChain, AccountError> {
    let (mut chain, mut links) = load(home, account)?;
    // From our own head on, so that a server with another link in its place is found out.
    let from = chain.head_seq();
    let answer = match tokio::time::timeout(patience, remote.get_chain(from)).await {
        Err(_) | Ok(Err(RemoteError::Unreachable(_) | RemoteError::WrongServer(_))) => {
            return Ok(chain);
        }
        Ok(answer) => answer?,
    };
    if answer.links.first().map(Bytes::as_ref) != links.last().map(Link::bytes) {
        return Err(AccountError::Tampered(
            "the account chain went back or forked".to_owned(),
        ));
    }
    for bytes in &answer.links[1..] {
        let link = Link::parse(bytes)?;
        chain.append(&link)?;
        links.push(link);
    }
    if answer.links.len() > 1 {
        store(home, &links)?;
    }
    Ok(chain)
}
