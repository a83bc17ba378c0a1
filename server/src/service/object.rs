//! ObjectService: find, upload, fetch.
//!
//! Invariant: an acknowledgement goes out after the object is durable, in the order of the stream. Back-pressure is the
//! store's: while it is busy nothing more is read from the connection. Called by tonic.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_pack::{Record, RecordKind as PackKind};
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::{DomainId, DriveId, Sid};
use sealdrive_proto::limits::{MAX_FETCH, MAX_FIND};
use sealdrive_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{book_status, device, field, not_found, store_status};
use crate::book::GC_GENERATION;
use crate::core::Core;
use crate::sessions::Caller;
use crate::store::{Put, StoreError};

/// Upload messages of one stream that are being stored at once; each holds at most 4 MiB.
const IN_FLIGHT: usize = 8;
/// Answers of one stream that wait for the network.
const ANSWERS: usize = 8;

pub(super) struct Objects(pub(super) Arc<Core>);

type Answer<T> = Result<Response<T>, Status>;

/// A message on its way to the disk.
struct Storing {
    last_sequence: u64,
    count: u64,
    result: JoinHandle<Result<Vec<Put>, StoreError>>,
}

/// One upload stream.
struct Upload {
    core: Arc<Core>,
    caller: Caller,
    drive: DriveId,
    lease_epoch: u64,
    domain: DomainId,
    next: u64,
}

impl Upload {
    fn open(core: Arc<Core>, caller: Caller, open: Option<v1::UploadOpen>) -> Result<Self, Status> {
        let open =
            open.ok_or_else(|| Status::invalid_argument("the first message must open the stream"))?;
        if open.gc_generation != GC_GENERATION {
            return Err(Status::failed_precondition(
                "the collection generation has moved on",
            ));
        }
        let drive = field(&open.drive, "drive")?;
        let upload = Self {
            core,
            caller,
            drive,
            lease_epoch: open.lease_epoch,
            domain: caller.account.private_domain(),
            next: 1,
        };
        upload.check_lease()?;
        Ok(upload)
    }

    fn check_lease(&self) -> Result<(), Status> {
        let Self {
            core,
            caller,
            drive,
            lease_epoch,
            ..
        } = self;
        core.book
            .check_lease(&caller.account, &caller.device, drive, *lease_epoch)
            .map_err(book_status)
    }

    /// Checks one message and sets it on its way.
    fn take(&mut self, message: v1::UploadRequest) -> Result<Option<Storing>, Status> {
        self.check_lease()?;
        let count = message.objects.len() as u64;
        if count == 0 {
            return Ok(None);
        }
        if message.sequence != self.next {
            return Err(Status::invalid_argument(
                "sequence numbers must follow one another",
            ));
        }
        let mut records = Vec::with_capacity(message.objects.len());
        for object in message.objects {
            let header = ObjectHeader::parse(&object)
                .map_err(|error| Status::invalid_argument(format!("not an object: {error}")))?;
            if header.domain != self.domain {
                return Err(not_found());
            }
            records.push(Record::new(
                PackKind::Object,
                self.domain.0,
                header.sid.0,
                object,
            ));
        }
        self.next += count;
        let core = Arc::clone(&self.core);
        let result = tokio::spawn(async move { core.store.put(records).await });
        Ok(Some(Storing {
            last_sequence: self.next - 1,
            count,
            result,
        }))
    }
}

/// Acknowledges in order; the first failure is the last answer.
async fn acknowledge(
    mut storing: mpsc::Receiver<Result<Storing, Status>>,
    out: mpsc::Sender<Result<v1::UploadResponse, Status>>,
) {
    while let Some(next) = storing.recv().await {
        let answer = match next {
            Err(status) => Err(status),
            Ok(next) => match next.result.await {
                Ok(Ok(puts)) => Ok(answer(next.last_sequence, next.count, &puts)),
                Ok(Err(error)) => Err(store_status(error)),
                Err(_) => Err(Status::internal("storing was interrupted")),
            },
        };
        let failed = answer.is_err();
        if out.send(answer).await.is_err() || failed {
            return;
        }
    }
}

fn answer(last_sequence: u64, count: u64, puts: &[Put]) -> v1::UploadResponse {
    let first = last_sequence + 1 - count;
    let conflicts = (first..).zip(puts).filter_map(|(sequence, put)| match put {
        Put::Stored => None,
        Put::Exists { hash } => Some(v1::Conflict {
            sequence,
            stored_hash: Bytes::copy_from_slice(hash),
        }),
    });
    v1::UploadResponse {
        durable_sequence: last_sequence,
        conflicts: conflicts.collect(),
    }
}

#[tonic::async_trait]
impl v1::object_service_server::ObjectService for Objects {
    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Answer<v1::FindMissingResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let domain: DomainId = field(&asked.domain, "domain")?;
        if !self.0.book.owns_domain(&caller.account, &domain) {
            return Err(not_found());
        }
        if asked.sids.len() > MAX_FIND {
            return Err(Status::invalid_argument("too many ids at once"));
        }
        let sids: Vec<Sid> = asked
            .sids
            .iter()
            .map(|sid| field(sid, "sid"))
            .collect::<Result<_, _>>()?;
        let store = self.0.store.clone();
        let missing = tokio::task::spawn_blocking(move || {
            let mut missing = Vec::new();
            for (index, sid) in (0u32..).zip(&sids) {
                if store.find(PackKind::Object, &domain.0, &sid.0)?.is_none() {
                    missing.push(index);
                }
            }
            Ok::<_, StoreError>(missing)
        });
        let missing = missing
            .await
            .map_err(|_| Status::internal("look-up was interrupted"))?
            .map_err(store_status)?;
        Ok(Response::new(v1::FindMissingResponse { missing }))
    }

    type UploadStream = ReceiverStream<Result<v1::UploadResponse, Status>>;

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Answer<Self::UploadStream> {
        let caller = device(&self.0, &request)?;
        let core = Arc::clone(&self.0);
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap_or_default();
        let mut upload = Upload::open(core, caller, first.open)?;
        let (out, answers) = mpsc::channel(ANSWERS);
        let (on_its_way, storing) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(acknowledge(storing, out));
        tokio::spawn(async move {
            loop {
                let step = match inbound.message().await {
                    Ok(Some(message)) => upload.take(message).transpose(),
                    Ok(None) => return,
                    Err(status) => Some(Err(status)),
                };
                let Some(step) = step else { continue };
                let failed = step.is_err();
                if on_its_way.send(step).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    type FetchStream = ReceiverStream<Result<v1::FetchResponse, Status>>;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Answer<Self::FetchStream> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let domain: DomainId = field(&asked.domain, "domain")?;
        if !self.0.book.owns_domain(&caller.account, &domain) {
            return Err(not_found());
        }
        if asked.sids.len() > MAX_FETCH {
            return Err(Status::invalid_argument("too many ids at once"));
        }
        let sids: Vec<Sid> = asked
            .sids
            .iter()
            .map(|sid| field(sid, "sid"))
            .collect::<Result<_, _>>()?;
        let (out, answers) = mpsc::channel(ANSWERS);
        let core = Arc::clone(&self.0);
        tokio::spawn(async move {
            for (index, sid) in (0u32..).zip(sids) {
                let answer = match core.store.read(PackKind::Object, &domain.0, &sid.0).await {
                    Ok(object) => Ok(v1::FetchResponse {
                        index,
                        object: object.unwrap_or_default(),
                    }),
                    Err(error) => Err(store_status(error)),
                };
                let failed = answer.is_err();
                if out.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
