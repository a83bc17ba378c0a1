//! ObjectService: find, upload, fetch.
//!
//! Invariant: an acknowledgement goes out after the object is durable, in the order of the stream. Back-pressure is the
//! store's: while it is busy nothing more is read from the connection. Called by tonic.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_pack::{Record, RecordKind as PackKind};
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::{DomainId, DriveId};
use sealdrive_proto::limits::{MAX_FETCH, MAX_FIND, MAX_OBJECT};
use sealdrive_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::{book_status, not_found, old_generation, over_quota, stopping, store_status};
use super::{device, field};
use crate::book::GC_GENERATION;
use crate::core::Core;
use crate::index::RowKey;
use crate::limits::{FETCH_AHEAD, UPLOAD_MESSAGES};
use crate::sessions::Caller;
use crate::store::{Put, Store, StoreError, object_key};

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
    /// Bytes the domain stores, with what this stream has sent. Only a bound: repeated objects count until the next
    /// stream, and those of other streams from then on.
    used: u64,
}

impl Upload {
    fn open(core: Arc<Core>, caller: Caller, open: Option<v1::UploadOpen>) -> Result<Self, Status> {
        let open =
            open.ok_or_else(|| Status::invalid_argument("the first message must open the stream"))?;
        if open.gc_generation != GC_GENERATION {
            return Err(old_generation());
        }
        let drive = field(&open.drive, "drive")?;
        let domain = caller.account.private_domain();
        let used = core.store.usage(&domain).map_err(store_status)?;
        let upload = Self {
            core,
            caller,
            drive,
            lease_epoch: open.lease_epoch,
            domain,
            next: 1,
            used,
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
            if object.len() > MAX_OBJECT {
                return Err(Status::invalid_argument("object is too long"));
            }
            let header = ObjectHeader::parse(&object)
                .map_err(|error| Status::invalid_argument(format!("not an object: {error}")))?;
            if header.domain != self.domain {
                return Err(not_found());
            }
            self.used = self.used.saturating_add(object.len() as u64);
            records.push(Record::new(
                PackKind::Object,
                self.domain.0,
                header.sid.0,
                object,
            ));
        }
        if self.core.quota.is_some_and(|quota| self.used > quota) {
            return Err(over_quota());
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
        let keys = keys(&domain, &asked.sids)?;
        let store = self.0.store.clone();
        let rows = tokio::task::spawn_blocking(move || store.find_many(&keys));
        let rows = rows
            .await
            .map_err(|_| Status::internal("look-up was interrupted"))?
            .map_err(store_status)?;
        let missing = (0u32..)
            .zip(rows)
            .filter(|(_, row)| row.is_none())
            .map(|(index, _)| index)
            .collect();
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
        let (on_its_way, storing) = mpsc::channel(UPLOAD_MESSAGES);
        tokio::spawn(acknowledge(storing, out));
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = inbound.message() => message,
                    () = upload.core.stopping() => Err(stopping()),
                };
                let step = match message {
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
        let keys = keys(&domain, &asked.sids)?;
        let (out, answers) = mpsc::channel(ANSWERS);
        let store = self.0.store.clone();
        tokio::spawn(async move {
            if let Err(error) = fetch(&store, keys, &out).await {
                let _ = out.send(Err(store_status(error))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

fn keys(domain: &DomainId, sids: &[Bytes]) -> Result<Vec<RowKey>, Status> {
    sids.iter()
        .map(|sid| Ok(object_key(domain, &field(sid, "sid")?)))
        .collect()
}

/// Sends objects in the order asked, reading a bounded number of bytes ahead. Unknown and damaged ones are empty.
async fn fetch(
    store: &Store,
    keys: Vec<RowKey>,
    out: &mpsc::Sender<Result<v1::FetchResponse, Status>>,
) -> Result<(), StoreError> {
    let looking = (store.clone(), keys.clone());
    let rows = tokio::task::spawn_blocking(move || looking.0.find_many(&looking.1)).await;
    let rows = rows.map_err(|error| StoreError::Failed(error.to_string()))??;
    let mut at = 0;
    while at < keys.len() {
        let mut ahead = 0;
        let upto = (at..keys.len()).find(|next| {
            let full = ahead >= FETCH_AHEAD;
            ahead += rows[*next].map_or(0, |row| row.location.len as usize);
            full
        });
        let upto = upto.unwrap_or(keys.len());
        let known = (at..upto)
            .filter_map(|next| Some((keys[next], rows[next]?)))
            .collect();
        let mut payloads = store.read_rows(known).await?.into_iter();
        for (next, row) in rows.iter().enumerate().take(upto).skip(at) {
            let object = row
                .and_then(|_| payloads.next().flatten())
                .unwrap_or_default();
            let index = u32::try_from(next).unwrap_or(u32::MAX);
            if out
                .send(Ok(v1::FetchResponse { index, object }))
                .await
                .is_err()
            {
                return Ok(()); // nobody listens any more
            }
        }
        at = upto;
    }
    Ok(())
}
