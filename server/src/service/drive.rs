//! DriveService: lease, head, commits.
//!
//! Invariant: what the book decides is durable before it is answered. Called by tonic.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_pack::RecordKind as PackKind;
use sealdrive_proto::commit::SignedCommit;
use sealdrive_proto::id::DriveId;
use sealdrive_proto::limits::{LEASE_LIFE_S, MAX_COMMITS};
use sealdrive_proto::transcript::Call;
use sealdrive_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{book_status, device, field, not_found, status, store_status};
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

    fn watched(
        core: &Core,
        caller: &Caller,
        drive: &DriveId,
    ) -> Result<v1::WatchHeadResponse, Status> {
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
        let _held = self.0.lock(&caller.account).await;
        let book = &self.0.book;
        let proof = (proof.call_seq, &proof.signature[..]);
        let decision = book
            .propose_lease(
                &caller.account,
                &caller.device,
                &call,
                proof,
                clock::unix_ms(),
            )
            .map_err(book_status)?;
        let answer = match decision {
            LeaseDecision::Renewed(lease) => lease_answer(&lease, true),
            LeaseDecision::Held(lease) => lease_answer(&lease, false),
            LeaseDecision::Grant(record, lease) => {
                self.0.change(&[record]).await.map_err(status)?;
                book.set_expiry(&drive, lease.expires_ms);
                lease_answer(&lease, true)
            }
        };
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
        let _held = self.0.lock(&caller.account).await;
        let proof = (proof.call_seq, &proof.signature[..]);
        let record = self
            .0
            .book
            .propose_release(&caller.account, &caller.device, &call, proof)
            .map_err(book_status)?;
        if let Some(record) = record {
            self.0.change(&[record]).await.map_err(status)?;
        }
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
            return Err(Status::failed_precondition(
                "the collection generation has moved on",
            ));
        }
        let commit = SignedCommit::parse(&asked.commit)
            .map_err(|_| Status::invalid_argument("not a commit of a known format"))?;
        let (drive, seq) = (commit.fields().drive, commit.fields().seq);
        let _held = self.0.lock(&caller.account).await;
        let book = &self.0.book;
        let proposed = book.propose_commit(&caller.account, &caller.device, &commit, &asked.body);
        let accepted = match proposed {
            Ok(None) => true,
            Ok(Some(record)) => {
                self.0.change(&[record]).await.map_err(status)?;
                true
            }
            // It may stand further back already: a lost answer, asked again after another commit or a take-over.
            Err(BookError::Stale(_) | BookError::Fenced) => self
                .stored(&drive, seq)
                .await?
                .is_some_and(|(bytes, _)| bytes[..] == commit.bytes()[..]),
            Err(error) => return Err(book_status(error)),
        };
        let lease_epoch = book
            .lease(&caller.account, &drive)
            .map_err(book_status)?
            .epoch;
        let head = if accepted {
            None
        } else {
            book.head(&caller.account, &drive).map_err(book_status)?
        };
        let head = head.map_or_else(Bytes::new, |head| {
            Bytes::copy_from_slice(head.commit.bytes())
        });
        Ok(Response::new(v1::CommitResponse {
            accepted,
            head,
            lease_epoch,
        }))
    }

    type WatchHeadStream = ReceiverStream<Result<v1::WatchHeadResponse, Status>>;

    async fn watch_head(
        &self,
        request: Request<v1::WatchHeadRequest>,
    ) -> Answer<Self::WatchHeadStream> {
        let caller = device(&self.0, &request)?;
        let drive: DriveId = field(&request.get_ref().drive, "drive")?;
        let first = Self::watched(&self.0, &caller, &drive)?;
        let (out, answers) = mpsc::channel(1);
        let mut changes = self.0.watch(&drive);
        let core = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut next = Ok(first);
            loop {
                let last = next.is_err();
                if out.send(next).await.is_err() || last {
                    return;
                }
                tokio::select! {
                    () = out.closed() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                next = Self::watched(&core, &caller, &drive);
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
