//! `Remote` over gRPC: one drive's calls.
//!
//! Invariant: the bytes of a request are made anew for each attempt where they hold a call number; answers of the
//! wrong shape are `Tampered`. Called by the engine through `Remote`.

use std::time::Duration;

use bytes::Bytes;
use sealdrive_proto::id::{DeviceId, Sid};
use sealdrive_proto::limits::MAX_SUSPECTS;
use sealdrive_proto::transcript::Call;
use sealdrive_proto::v1;
use tokio::sync::mpsc;

use super::session::{Line, Ticket};
use super::{Grpc, accounts, drives, objects, sid_bytes, stream};
use crate::remote::{
    BoxFuture, ChainAnswer, CommitAnswer, Fetched, HeadAnswer, LeaseAnswer, Remote, RemoteError,
    UploadStream,
};

impl Grpc {
    /// A proof with a number of its own; made anew for each attempt, because the server takes each number once.
    fn prove(&self, call: &Call<'_>) -> Result<Option<v1::CallProof>, tonic::Status> {
        let call_seq = self.numbers.next().map_err(|error| {
            // Nothing was sent: the disk of this machine refused to reserve a number.
            tonic::Status::invalid_argument(format!("no call number: {error}"))
        })?;
        Ok(Some(self.line.identity.prove(
            &self.line.server,
            call,
            call_seq,
        )))
    }
}

impl Remote for Grpc {
    fn open_upload(
        &self,
        lease_epoch: u64,
        gc_generation: u64,
    ) -> BoxFuture<'_, Result<UploadStream, RemoteError>> {
        Box::pin(async move {
            let open = v1::UploadOpen {
                drive: self.drive_bytes(),
                lease_epoch,
                gc_generation,
            };
            self.bulk
                .call(|ticket: Ticket| {
                    let open = open.clone();
                    async move {
                        let (objects_in, queue) = mpsc::channel(stream::QUEUE);
                        let request = ticket.request(stream::batches(open, queue));
                        let answers = objects(ticket.channel.clone()).upload(request).await?;
                        let acks = stream::acknowledgements(answers.into_inner());
                        Ok(UploadStream {
                            objects: objects_in,
                            acks,
                        })
                    }
                })
                .await
        })
    }

    fn fetch(
        &self,
        sids: Vec<Sid>,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Result<Fetched, RemoteError>>, RemoteError>> {
        Box::pin(async move {
            let asked = sids.len();
            let message = v1::FetchRequest {
                domain: self.domain_bytes(),
                sids: sid_bytes(&sids),
            };
            self.line
                .call(|ticket: Ticket| {
                    let request = ticket.request(message.clone());
                    async move {
                        let answers = objects(ticket.channel.clone()).fetch(request).await?;
                        Ok(stream::fetched(answers.into_inner(), asked))
                    }
                })
                .await
        })
    }

    fn find_missing(&self, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<u32>, RemoteError>> {
        Box::pin(async move {
            let asked = sids.len();
            let message = v1::FindMissingRequest {
                domain: self.domain_bytes(),
                sids: sid_bytes(&sids),
            };
            let answer = self
                .line
                .call(|ticket: Ticket| {
                    let request = ticket.request(message.clone());
                    async move { objects(ticket.channel.clone()).find_missing(request).await }
                })
                .await?
                .into_inner();
            if answer.missing.iter().any(|&index| index as usize >= asked) {
                return Err(RemoteError::Tampered(
                    "misses an id nobody asked for".to_owned(),
                ));
            }
            Ok(answer.missing)
        })
    }

    fn acquire_lease(
        &self,
        take_over: bool,
        held_epoch: u64,
    ) -> BoxFuture<'_, Result<LeaseAnswer, RemoteError>> {
        Box::pin(async move {
            let call = Call::AcquireLease {
                drive: self.drive,
                take_over,
                held_epoch,
            };
            let answer = self
                .line
                .call(|ticket: Ticket| {
                    let call = &call;
                    async move {
                        let message = v1::AcquireLeaseRequest {
                            drive: self.drive_bytes(),
                            take_over,
                            held_epoch,
                            proof: self.prove(call)?,
                        };
                        drives(ticket.channel.clone())
                            .acquire_lease(ticket.request(message))
                            .await
                    }
                })
                .await?
                .into_inner();
            let holder = DeviceId::try_from(answer.holder.as_ref())
                .map_err(|error| RemoteError::Tampered(format!("lease holder: {error}")))?;
            Ok(LeaseAnswer {
                granted: answer.granted,
                lease_epoch: answer.lease_epoch,
                lifetime: Duration::from_secs(answer.lifetime_s.into()),
                gc_generation: answer.gc_generation,
                holder,
                // What is no id is nothing we could have.
                suspects: answer
                    .suspects
                    .iter()
                    .filter_map(|sid| Sid::try_from(sid.as_ref()).ok())
                    .take(MAX_SUSPECTS)
                    .collect(),
            })
        })
    }

    fn release_lease(&self, lease_epoch: u64) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async move {
            let call = Call::ReleaseLease {
                drive: self.drive,
                lease_epoch,
            };
            self.line
                .call(|ticket: Ticket| {
                    let call = &call;
                    async move {
                        let message = v1::ReleaseLeaseRequest {
                            drive: self.drive_bytes(),
                            lease_epoch,
                            proof: self.prove(call)?,
                        };
                        drives(ticket.channel.clone())
                            .release_lease(ticket.request(message))
                            .await
                    }
                })
                .await
                .map(drop)
        })
    }

    fn get_head(&self) -> BoxFuture<'_, Result<Option<HeadAnswer>, RemoteError>> {
        Box::pin(async move {
            let answer = self
                .line
                .call(|ticket: Ticket| async move {
                    let message = v1::GetHeadRequest {
                        drive: self.drive_bytes(),
                    };
                    drives(ticket.channel.clone())
                        .get_head(ticket.request(message))
                        .await
                })
                .await?
                .into_inner();
            Ok((!answer.commit.is_empty()).then_some(HeadAnswer {
                commit: answer.commit,
                body: answer.body,
                received_ms: answer.received_ms,
            }))
        })
    }

    fn get_commits(&self, seqs: Vec<u64>) -> BoxFuture<'_, Result<Vec<Bytes>, RemoteError>> {
        Box::pin(async move {
            let answer = self
                .line
                .call(|ticket: Ticket| {
                    let message = v1::GetCommitsRequest {
                        drive: self.drive_bytes(),
                        seqs: seqs.clone(),
                    };
                    async move {
                        drives(ticket.channel.clone())
                            .get_commits(ticket.request(message))
                            .await
                    }
                })
                .await?
                .into_inner();
            if answer.commits.len() != seqs.len() {
                return Err(RemoteError::Tampered(
                    "not as many commits as asked for".to_owned(),
                ));
            }
            Ok(answer.commits)
        })
    }

    fn commit(
        &self,
        commit: Bytes,
        body: Bytes,
        gc_generation: u64,
    ) -> BoxFuture<'_, Result<CommitAnswer, RemoteError>> {
        Box::pin(async move {
            let message = v1::CommitRequest {
                commit,
                body,
                gc_generation,
            };
            let answer = self
                .line
                .call(|ticket: Ticket| {
                    // Cheap: the payloads are shared, not copied.
                    let request = ticket.request(message.clone());
                    async move { drives(ticket.channel.clone()).commit(request).await }
                })
                .await?
                .into_inner();
            Ok(CommitAnswer {
                accepted: answer.accepted,
                head: (!answer.head.is_empty()).then_some(answer.head),
                lease_epoch: answer.lease_epoch,
            })
        })
    }

    fn get_chain(&self, from_seq: u64) -> BoxFuture<'_, Result<ChainAnswer, RemoteError>> {
        Box::pin(chain(&self.line, from_seq))
    }
}

/// Links of the account chain, as any identity of the account may ask.
pub(super) async fn chain(line: &Line, from_seq: u64) -> Result<ChainAnswer, RemoteError> {
    let answer = line
        .call(|ticket: Ticket| async move {
            let message = v1::GetChainRequest { from_seq };
            accounts(ticket.channel.clone())
                .get_chain(ticket.request(message))
                .await
        })
        .await?
        .into_inner();
    Ok(ChainAnswer {
        links: answer.links,
        head_seq: answer.head_seq,
    })
}
