//! Lease, head, commits, and the account chain that commits stand on.
//!
//! Invariant: what the book decides is durable before it is answered. Called by the drive and account services and the
//! simulation.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_pack::RecordKind as PackKind;
use sealdrive_proto::commit::SignedCommit;
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::{DriveId, Sid};
use sealdrive_proto::limits::{LEASE_LIFE_S, MAX_COMMITS, MAX_MESSAGE, MAX_SUSPECTS};
use sealdrive_proto::transcript::Call;
use sealdrive_proto::v1;
use sealdrive_runtime::task;

use super::{CallError, field, invalid, uninterrupted};
use crate::book::{BookError, GC_GENERATION, Lease, LeaseDecision, numbered, split_commit};
use crate::clock;
use crate::core::Core;
use crate::sessions::Caller;

fn lease_answer(lease: &Lease, granted: bool) -> v1::AcquireLeaseResponse {
    v1::AcquireLeaseResponse {
        lease_epoch: lease.epoch,
        lifetime_s: LEASE_LIFE_S as u32,
        gc_generation: GC_GENERATION,
        holder: Bytes::copy_from_slice(lease.holder.as_bytes()),
        granted,
        suspects: Vec::new(),
    }
}

/// Grants, renews or refuses the writer lease.
pub async fn acquire_lease(
    core: Arc<Core>,
    caller: Caller,
    asked: v1::AcquireLeaseRequest,
) -> Result<v1::AcquireLeaseResponse, CallError> {
    let drive: DriveId = field(&asked.drive, "drive")?;
    let call = Call::AcquireLease {
        drive,
        take_over: asked.take_over,
        held_epoch: asked.held_epoch,
    };
    let proof = asked.proof.unwrap_or_default();
    let (store, domain) = (core.store.clone(), caller.account.private_domain());
    let mut answer = uninterrupted(async move {
        let _held = core.lock(&caller.account).await;
        let proof = (proof.call_seq, &proof.signature[..]);
        let now = clock::steady_ms();
        let decision =
            core.book
                .propose_lease(&caller.account, &caller.device, &call, proof, now)?;
        Ok::<_, CallError>(match decision {
            LeaseDecision::Renewed(lease) => lease_answer(&lease, true),
            LeaseDecision::Held(lease) => lease_answer(&lease, false),
            LeaseDecision::Grant(record, lease) => {
                core.change(&[record]).await?;
                core.book.set_expiry(&drive, lease.expires_ms);
                lease_answer(&lease, true)
            }
        })
    })
    .await?;
    if answer.granted {
        // Only who may write can send them.
        let found = task::spawn_blocking(move || store.suspects(&domain, MAX_SUSPECTS));
        let found = found.await.unwrap_or_else(|_| Ok(Vec::new()))?;
        let bytes = |sid: &Sid| Bytes::copy_from_slice(sid.as_bytes());
        answer.suspects = found.iter().map(bytes).collect();
    }
    Ok(answer)
}

/// Takes the writer lease back.
pub async fn release_lease(
    core: Arc<Core>,
    caller: Caller,
    asked: v1::ReleaseLeaseRequest,
) -> Result<v1::ReleaseLeaseResponse, CallError> {
    let call = Call::ReleaseLease {
        drive: field(&asked.drive, "drive")?,
        lease_epoch: asked.lease_epoch,
    };
    let proof = asked.proof.unwrap_or_default();
    uninterrupted(async move {
        let _held = core.lock(&caller.account).await;
        let proof = (proof.call_seq, &proof.signature[..]);
        let record = core
            .book
            .propose_release(&caller.account, &caller.device, &call, proof)?;
        if let Some(record) = record {
            core.change(&[record]).await?;
        }
        Ok::<_, CallError>(v1::ReleaseLeaseResponse {})
    })
    .await
}

/// The newest commit; all empty if there is none.
pub async fn head(
    core: &Core,
    caller: &Caller,
    asked: &v1::GetHeadRequest,
) -> Result<v1::GetHeadResponse, CallError> {
    let drive = field(&asked.drive, "drive")?;
    let Some(head) = core.book.head(&caller.account, &drive)? else {
        return Ok(v1::GetHeadResponse::default());
    };
    let stored = stored(core, &drive, head.commit.fields().seq).await?;
    let (commit, body) = stored.ok_or(CallError::Damaged("the newest commit is damaged"))?;
    Ok(v1::GetHeadResponse {
        commit,
        body,
        received_ms: head.received_ms,
    })
}

/// Commits by number.
pub async fn commits(
    core: &Core,
    caller: &Caller,
    asked: &v1::GetCommitsRequest,
) -> Result<v1::GetCommitsResponse, CallError> {
    let drive = field(&asked.drive, "drive")?;
    core.book.lease(&caller.account, &drive)?; // the drive is the caller's
    if asked.seqs.len() > MAX_COMMITS {
        return Err(invalid("too many commits asked for at once"));
    }
    let mut commits = Vec::with_capacity(asked.seqs.len());
    for seq in &asked.seqs {
        let found = stored(core, &drive, *seq).await?;
        commits.push(found.ok_or(CallError::NotFound)?.0);
    }
    Ok(v1::GetCommitsResponse { commits })
}

/// A new head, if it follows the one that stands.
pub async fn commit(
    core: Arc<Core>,
    caller: Caller,
    asked: v1::CommitRequest,
) -> Result<v1::CommitResponse, CallError> {
    if asked.gc_generation != GC_GENERATION {
        return Err(CallError::OldGeneration);
    }
    let commit = SignedCommit::parse(&asked.commit)
        .map_err(|_| invalid("not a commit of a known format"))?;
    let body = ObjectHeader::parse(&asked.body)
        .map_err(|error| invalid(format!("commit body: {error}")))?;
    if body.domain != caller.account.private_domain() || body.epoch != commit.fields().key_epoch {
        return Err(invalid("commit body is of another domain or epoch"));
    }
    uninterrupted(async move { swap_head(&core, &caller, &commit, &asked.body).await }).await
}

/// Compare-and-swap of the head.
async fn swap_head(
    core: &Core,
    caller: &Caller,
    commit: &SignedCommit,
    body: &[u8],
) -> Result<v1::CommitResponse, CallError> {
    let drive = commit.fields().drive;
    let _held = core.lock(&caller.account).await;
    let proposed = core
        .book
        .propose_commit(&caller.account, &caller.device, commit, body);
    let accepted = match proposed {
        Ok(None) => true,
        Ok(Some(record)) => {
            core.change(&[record]).await?;
            true
        }
        // It may stand further back already: a lost answer, asked again after another commit or a take-over.
        Err(BookError::Stale(_) | BookError::Fenced) => {
            let standing = stored(core, &drive, commit.fields().seq).await?;
            standing.is_some_and(|(bytes, _)| bytes[..] == commit.bytes()[..])
        }
        Err(error) => return Err(error.into()),
    };
    let lease_epoch = core.book.lease(&caller.account, &drive)?.epoch;
    let head = if accepted {
        None
    } else {
        core.book.head(&caller.account, &drive)?
    };
    let head = head.map_or_else(Bytes::new, |head| {
        Bytes::copy_from_slice(head.commit.bytes())
    });
    Ok(v1::CommitResponse {
        accepted,
        head,
        lease_epoch,
    })
}

/// A stored commit record: signed bytes and body.
async fn stored(
    core: &Core,
    drive: &DriveId,
    seq: u64,
) -> Result<Option<(Bytes, Bytes)>, CallError> {
    let found = core
        .store
        .read(PackKind::Commit, &drive.0, &numbered(seq))
        .await?;
    Ok(found.map(|payload| split_commit(&payload)).transpose()?)
}

/// What a watcher of a drive is told now. A watch outlives its first look: the key must still be good.
pub fn watched(
    core: &Core,
    caller: &Caller,
    drive: &DriveId,
) -> Result<v1::WatchHeadResponse, CallError> {
    core.book
        .login_key(&caller.account, caller.role, &caller.device)
        .ok_or(CallError::NotFound)?;
    let head = core.book.head(&caller.account, drive)?;
    let lease = core.book.lease(&caller.account, drive)?;
    let commit = head.map_or_else(Bytes::new, |head| {
        Bytes::copy_from_slice(head.commit.bytes())
    });
    Ok(v1::WatchHeadResponse {
        commit,
        lease_epoch: lease.epoch,
    })
}

/// Links of the account chain, as many as fit a message.
pub fn chain(
    core: &Core,
    caller: &Caller,
    asked: &v1::GetChainRequest,
) -> Result<v1::GetChainResponse, CallError> {
    let (mut links, head_seq) = core.book.links(&caller.account, asked.from_seq)?;
    let mut room = MAX_MESSAGE / 2;
    let fitting = links.iter().take_while(|link| {
        let fits = link.len() <= room;
        room = room.saturating_sub(link.len());
        fits
    });
    let count = fitting.count();
    links.truncate(count);
    Ok(v1::GetChainResponse { links, head_seq })
}
