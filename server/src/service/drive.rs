//! DriveService: lease, head, commits.
//!
//! Invariant: what the book decides is durable before it is answered. Called by tonic.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_pack::RecordKind as PackKind;
use sealdrive_proto::commit::SignedCommit;
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::DriveId;
use sealdrive_proto::limits::{LEASE_LIFE_S, MAX_COMMITS, MAX_SUSPECTS};
use sealdrive_proto::transcript::Call;
use sealdrive_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::{
    book_status, change_status, not_found, old_generation, stopping, store_status,
};
use super::{device, field, uninterrupted};
use crate::book::{BookError, GC_GENERATION, Lease, LeaseDecision, numbered, split_commit};
use crate::clock;
use crate::core::Core;
use crate::sessions::Caller;

pub(super) struct Drives(pub(super) Arc<Core>);

type Answer<T> = Result<Response<T>, Status>;

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

impl Drives {
    /// A stored commit record: signed bytes and body.
    async fn stored(&self, drive: &DriveId, seq: u64) -> Result<Option<(Bytes, Bytes)>, Status> {
        let found = self
            .0
            .store
            .read(PackKind::Commit, &drive.0, &numbered(seq))
            .await
            .map_err(store_status)?;
        found
            .map(|payload| split_commit(&payload).map_err(book_status))
            .transpose()
    }

    /// Compare-and-swap of the head.
    async fn swap_head(
        &self,
        caller: &Caller,
        commit: &SignedCommit,
        body: &[u8],
    ) -> Result<v1::CommitResponse, Status> {
        let (core, drive) = (&self.0, commit.fields().drive);
        let _held = core.lock(&caller.account).await;
        let accepted = match core
            .book
            .propose_commit(&caller.account, &caller.device, commit, body)
        {
            Ok(None) => true,
            Ok(Some(record)) => {
                core.change(&[record]).await.map_err(change_status)?;
                true
            }
            // It may stand further back already: a lost answer, asked again after another commit or a take-over.
            Err(BookError::Stale(_) | BookError::Fenced) => {
                let standing = self.stored(&drive, commit.fields().seq).await?;
                standing.is_some_and(|(bytes, _)| bytes[..] == commit.bytes()[..])
            }
            Err(error) => return Err(book_status(error)),
        };
        let lease_epoch = core
            .book
            .lease(&caller.account, &drive)
            .map_err(book_status)?
            .epoch;
        let head = if accepted {
            None
        } else {
            core.book
                .head(&caller.account, &drive)
                .map_err(book_status)?
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

    fn watched(
        core: &Core,
        caller: &Caller,
        drive: &DriveId,
    ) -> Result<v1::WatchHeadResponse, Status> {
        // A watch outlives its first look: the key must still be good.
        core.book
            .login_key(&caller.account, caller.role, &caller.device)
            .ok_or_else(not_found)?;
        let head = core
            .book
            .head(&caller.account, drive)
            .map_err(book_status)?;
        let lease = core
            .book
            .lease(&caller.account, drive)
            .map_err(book_status)?;
        let commit = head.map_or_else(Bytes::new, |head| {
            Bytes::copy_from_slice(head.commit.bytes())
        });
        Ok(v1::WatchHeadResponse {
            commit,
            lease_epoch: lease.epoch,
        })
    }
}

#[tonic::async_trait]
impl v1::drive_service_server::DriveService for Drives {
    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Answer<v1::AcquireLeaseResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let drive: DriveId = field(&asked.drive, "drive")?;
        let call = Call::AcquireLease {
            drive,
            take_over: asked.take_over,
            held_epoch: asked.held_epoch,
        };
        let proof = asked.proof.unwrap_or_default();
        let core = Arc::clone(&self.0);
        let domain = caller.account.private_domain();
        let answer = uninterrupted(async move {
            let _held = core.lock(&caller.account).await;
            let proof = (proof.call_seq, &proof.signature[..]);
            let decision = core
                .book
                .propose_lease(
                    &caller.account,
                    &caller.device,
                    &call,
                    proof,
                    clock::steady_ms(),
                )
                .map_err(book_status)?;
            Ok(match decision {
                LeaseDecision::Renewed(lease) => lease_answer(&lease, true),
                LeaseDecision::Held(lease) => lease_answer(&lease, false),
                LeaseDecision::Grant(record, lease) => {
                    core.change(&[record]).await.map_err(change_status)?;
                    core.book.set_expiry(&drive, lease.expires_ms);
                    lease_answer(&lease, true)
                }
            })
        });
        let mut answer = answer.await?;
        if answer.granted {
            // Only who may write can send them.
            let store = self.0.store.clone();
            let found = tokio::task::spawn_blocking(move || store.suspects(&domain, MAX_SUSPECTS));
            let found = found.await.unwrap_or_else(|_| Ok(Vec::new()));
            answer.suspects = found
                .map_err(store_status)?
                .iter()
                .map(|sid| Bytes::copy_from_slice(sid.as_bytes()))
                .collect();
        }
        Ok(Response::new(answer))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Answer<v1::ReleaseLeaseResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let drive = field(&asked.drive, "drive")?;
        let call = Call::ReleaseLease {
            drive,
            lease_epoch: asked.lease_epoch,
        };
        let proof = asked.proof.unwrap_or_default();
        let core = Arc::clone(&self.0);
        uninterrupted(async move {
            let _held = core.lock(&caller.account).await;
            let proof = (proof.call_seq, &proof.signature[..]);
            let record = core
                .book
                .propose_release(&caller.account, &caller.device, &call, proof)
                .map_err(book_status)?;
            match record {
                Some(record) => core.change(&[record]).await.map_err(change_status),
                None => Ok(()),
            }
        })
        .await?;
        Ok(Response::new(v1::ReleaseLeaseResponse {}))
    }

    async fn get_head(&self, request: Request<v1::GetHeadRequest>) -> Answer<v1::GetHeadResponse> {
        let caller = device(&self.0, &request)?;
        let drive = field(&request.get_ref().drive, "drive")?;
        let Some(head) = self
            .0
            .book
            .head(&caller.account, &drive)
            .map_err(book_status)?
        else {
            return Ok(Response::new(v1::GetHeadResponse::default()));
        };
        let stored = self.stored(&drive, head.commit.fields().seq).await?;
        let (commit, body) =
            stored.ok_or_else(|| Status::data_loss("the newest commit is damaged"))?;
        Ok(Response::new(v1::GetHeadResponse {
            commit,
            body,
            received_ms: head.received_ms,
        }))
    }

    async fn get_commits(
        &self,
        request: Request<v1::GetCommitsRequest>,
    ) -> Answer<v1::GetCommitsResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let drive = field(&asked.drive, "drive")?;
        self.0
            .book
            .lease(&caller.account, &drive)
            .map_err(book_status)?; // the drive is the caller's
        if asked.seqs.len() > MAX_COMMITS {
            return Err(Status::invalid_argument(
                "too many commits asked for at once",
            ));
        }
        let mut commits = Vec::with_capacity(asked.seqs.len());
        for seq in asked.seqs {
            commits.push(self.stored(&drive, seq).await?.ok_or_else(not_found)?.0);
        }
        Ok(Response::new(v1::GetCommitsResponse { commits }))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answer<v1::CommitResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        if asked.gc_generation != GC_GENERATION {
            return Err(old_generation());
        }
        let commit = SignedCommit::parse(&asked.commit)
            .map_err(|_| Status::invalid_argument("not a commit of a known format"))?;
        let body = ObjectHeader::parse(&asked.body)
            .map_err(|error| Status::invalid_argument(format!("commit body: {error}")))?;
        if body.domain != caller.account.private_domain() || body.epoch != commit.fields().key_epoch
        {
            return Err(Status::invalid_argument(
                "commit body is of another domain or epoch",
            ));
        }
        let drives = Self(Arc::clone(&self.0));
        let answer =
            uninterrupted(async move { drives.swap_head(&caller, &commit, &asked.body).await });
        Ok(Response::new(answer.await?))
    }

    type WatchHeadStream = ReceiverStream<Result<v1::WatchHeadResponse, Status>>;

    async fn watch_head(
        &self,
        request: Request<v1::WatchHeadRequest>,
    ) -> Answer<Self::WatchHeadStream> {
        let caller = device(&self.0, &request)?;
        let drive: DriveId = field(&request.get_ref().drive, "drive")?;
        let mut changes = self.0.watch(&drive);
        // Looked up after the watch began, so that no change falls in between.
        let first = Self::watched(&self.0, &caller, &drive)?;
        let (out, answers) = mpsc::channel(1);
        let core = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut next = Ok(first);
            loop {
                let last = next.is_err();
                if out.send(next).await.is_err() || last {
                    return;
                }
                next = tokio::select! {
                    () = out.closed() => return,
                    () = core.stopping() => Err(stopping()),
                    changed = changes.changed() => match changed {
                        Ok(()) => Self::watched(&core, &caller, &drive),
                        Err(_) => return,
                    },
                };
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
