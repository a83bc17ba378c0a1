//! One device's line to the server: `Remote` over the server's own calls, and the streams in between.
//!
//! Invariant: a message of one stream never overtakes another; an error is the last item of a stream; what the server
//! says is read by the same code as over gRPC. Called by the engine, made by `world.rs`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealdrive::remote::grpc::ack;
use sealdrive::remote::{
    Ack, BoxFuture, ChainAnswer, CommitAnswer, Fetched, HeadAnswer, LeaseAnswer, Remote,
    RemoteError, UploadStream,
};
use sealdrive_proto::id::{DeviceId, Sid};
use sealdrive_proto::transcript::Call;
use sealdrive_proto::v1;
use sealdrive_runtime::{task, time};
use sealdrive_server::calls::{self, CallError};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::network::{DEAD_LINE, Ends, Network, refused, unreachable};

/// Objects in one message of an upload.
const BATCH: u64 = 4;
/// Messages under way in a stream.
const UNDER_WAY: usize = 4;

/// A line.
pub(super) struct Line(pub(super) Arc<Ends>);

/// Carries objects to the server until either side ends or the line breaks.
async fn carry_objects(
    network: Arc<Network>,
    mut objects: mpsc::Receiver<(u64, Bytes)>,
    to_server: mpsc::Sender<Result<v1::UploadRequest, CallError>>,
    broken: watch::Sender<bool>,
) {
    while let Some((sequence, first)) = objects.recv().await {
        let mut batch = vec![first];
        let most = 1 + network.world.below(BATCH);
        while (batch.len() as u64) < most
            && let Ok((_, object)) = objects.try_recv()
        {
            batch.push(object);
        }
        network.delay().await;
        if network.happens(|w| w.stalls) {
            network.count("stall", |c| &mut c.stalls);
            time::sleep(DEAD_LINE).await;
            broken.send_replace(true);
            return;
        }
        if network.happens(|w| w.cuts) {
            network.count("cut", |c| &mut c.cuts);
            broken.send_replace(true);
            return;
        }
        let request = v1::UploadRequest {
            open: None,
            sequence,
            objects: batch,
        };
        if to_server.send(Ok(request)).await.is_err() {
            return;
        }
    }
}

/// Carries acknowledgements back.
async fn carry_acks(
    network: Arc<Network>,
    mut answers: mpsc::Receiver<Result<v1::UploadResponse, CallError>>,
    acks: mpsc::Sender<Result<Ack, RemoteError>>,
    mut broken: watch::Receiver<bool>,
) {
    loop {
        let item = tokio::select! {
            biased;
            _ = broken.wait_for(|broken| *broken) => Err(unreachable("connection lost")),
            () = acks.closed() => return,
            answer = answers.recv() => match answer {
                Some(Ok(answer)) if !network.happens(|w| w.cuts) => ack(answer),
                Some(Ok(_)) => {
                    network.count("cut", |c| &mut c.cuts);
                    Err(unreachable("connection lost"))
                }
                Some(Err(error)) => Err(refused(error)),
                None => Err(unreachable("connection reset")),
            },
        };
        network.delay().await;
        let last = item.is_err();
        if acks.send(item).await.is_err() || last {
            return;
        }
    }
}

async fn carry_fetched(
    network: Arc<Network>,
    mut answers: mpsc::Receiver<Result<v1::FetchResponse, CallError>>,
    fetched: mpsc::Sender<Result<Fetched, RemoteError>>,
) {
    while let Some(answer) = answers.recv().await {
        let item = match answer {
            Ok(answer) if !network.happens(|w| w.cuts) => Ok(Fetched {
                index: answer.index,
                object: (!answer.object.is_empty()).then_some(answer.object),
            }),
            Ok(_) => {
                network.count("cut", |c| &mut c.cuts);
                Err(unreachable("connection lost"))
            }
            Err(error) => Err(refused(error)),
        };
        network.delay().await;
        let last = item.is_err();
        if fetched.send(item).await.is_err() || last {
            return;
        }
    }
}

impl Remote for Line {
    fn open_upload(
        &self,
        lease_epoch: u64,
        gc_generation: u64,
    ) -> BoxFuture<'_, Result<UploadStream, RemoteError>> {
        Box::pin(async move {
            let open = v1::UploadOpen {
                drive: self.0.drive_bytes(),
                lease_epoch,
                gc_generation,
            };
            let served = self.0.call("upload", |core, caller| {
                let open = open.clone();
                async move {
                    let (to_server, messages) = mpsc::channel(UNDER_WAY);
                    let messages = ReceiverStream::new(messages);
                    let answers = calls::upload(core, caller, Some(open), messages)?;
                    Ok((to_server, answers))
                }
            });
            let (to_server, answers) = served.await?;
            let (objects, queue) = mpsc::channel(UNDER_WAY);
            let (sender, acks) = mpsc::channel(UNDER_WAY);
            let (broken, breaks) = watch::channel(false);
            let network = &self.0.network;
            task::spawn(carry_objects(Arc::clone(network), queue, to_server, broken));
            task::spawn(carry_acks(Arc::clone(network), answers, sender, breaks));
            Ok(UploadStream { objects, acks })
        })
    }

    fn fetch(
        &self,
        sids: Vec<Sid>,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Result<Fetched, RemoteError>>, RemoteError>> {
        Box::pin(async move {
            let message = v1::FetchRequest {
                domain: self.0.domain_bytes(),
                sids: bytes_of(&sids),
            };
            let served = self.0.call("fetch", |core, caller| {
                let message = message.clone();
                async move { calls::fetch::<CallError>(&core, &caller, &message) }
            });
            let answers = served.await?;
            let (sender, fetched) = mpsc::channel(UNDER_WAY);
            let network = Arc::clone(&self.0.network);
            task::spawn(carry_fetched(network, answers, sender));
            Ok(fetched)
        })
    }

    fn find_missing(&self, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<u32>, RemoteError>> {
        Box::pin(async move {
            let message = v1::FindMissingRequest {
                domain: self.0.domain_bytes(),
                sids: bytes_of(&sids),
            };
            let served = self.0.call("find", |core, caller| {
                let message = message.clone();
                async move { calls::find_missing(&core, &caller, &message).await }
            });
            Ok(served.await?.missing)
        })
    }

    fn acquire_lease(
        &self,
        take_over: bool,
        held_epoch: u64,
    ) -> BoxFuture<'_, Result<LeaseAnswer, RemoteError>> {
        Box::pin(async move {
            let drive = self.0.drive;
            let served = self.0.call("lease", |core, caller| {
                let ends = Arc::clone(&self.0);
                async move {
                    let call = Call::AcquireLease {
                        drive,
                        take_over,
                        held_epoch,
                    };
                    let message = v1::AcquireLeaseRequest {
                        drive: ends.drive_bytes(),
                        take_over,
                        held_epoch,
                        proof: ends.prove(&core, &call),
                    };
                    calls::acquire_lease(core, caller, message).await
                }
            });
            let answer = served.await?;
            let holder = DeviceId::try_from(answer.holder.as_ref())
                .map_err(|error| RemoteError::Tampered(error.to_string()))?;
            Ok(LeaseAnswer {
                granted: answer.granted,
                lease_epoch: answer.lease_epoch,
                lifetime: Duration::from_secs(answer.lifetime_s.into()),
                gc_generation: answer.gc_generation,
                holder,
                suspects: answer
                    .suspects
                    .iter()
                    .filter_map(|sid| Sid::try_from(sid.as_ref()).ok())
                    .collect(),
            })
        })
    }

    fn release_lease(&self, lease_epoch: u64) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async move {
            let drive = self.0.drive;
            let served = self.0.call("release", |core, caller| {
                let ends = Arc::clone(&self.0);
                async move {
                    let call = Call::ReleaseLease { drive, lease_epoch };
                    let message = v1::ReleaseLeaseRequest {
                        drive: ends.drive_bytes(),
                        lease_epoch,
                        proof: ends.prove(&core, &call),
                    };
                    calls::release_lease(core, caller, message).await
                }
            });
            served.await.map(drop)
        })
    }

    fn get_head(&self) -> BoxFuture<'_, Result<Option<HeadAnswer>, RemoteError>> {
        Box::pin(async move {
            let message = v1::GetHeadRequest {
                drive: self.0.drive_bytes(),
            };
            let served = self.0.call("head", |core, caller| {
                let message = message.clone();
                async move { calls::head(&core, &caller, &message).await }
            });
            let answer = served.await?;
            Ok((!answer.commit.is_empty()).then_some(HeadAnswer {
                commit: answer.commit,
                body: answer.body,
                received_ms: answer.received_ms,
            }))
        })
    }

    fn get_commits(&self, seqs: Vec<u64>) -> BoxFuture<'_, Result<Vec<Bytes>, RemoteError>> {
        Box::pin(async move {
            let message = v1::GetCommitsRequest {
                drive: self.0.drive_bytes(),
                seqs,
            };
            let served = self.0.call("commits", |core, caller| {
                let message = message.clone();
                async move { calls::commits(&core, &caller, &message).await }
            });
            Ok(served.await?.commits)
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
            let served = self.0.call("commit", |core, caller| {
                calls::commit(core, caller, message.clone())
            });
            let answer = served.await?;
            Ok(CommitAnswer {
                accepted: answer.accepted,
                head: (!answer.head.is_empty()).then_some(answer.head),
                lease_epoch: answer.lease_epoch,
            })
        })
    }

    fn get_chain(&self, from_seq: u64) -> BoxFuture<'_, Result<ChainAnswer, RemoteError>> {
        Box::pin(async move {
            let message = v1::GetChainRequest { from_seq };
            let served = self.0.call("chain", |core, caller| async move {
                calls::chain(&core, &caller, &message)
            });
            let answer = served.await?;
            Ok(ChainAnswer {
                links: answer.links,
                head_seq: answer.head_seq,
            })
        })
    }
}

fn bytes_of(sids: &[Sid]) -> Vec<Bytes> {
    sids.iter()
        .map(|sid| Bytes::copy_from_slice(sid.as_bytes()))
        .collect()
}
