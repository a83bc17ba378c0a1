//! Objects: find, upload, fetch.
//!
//! Invariant: an acknowledgement goes out after the object is durable, in the order of the stream. Back-pressure is the
//! store's: while it is busy nothing more is taken from the stream. Called by the object service and the simulation.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sealdrive_pack::{Record, RecordKind as PackKind};
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::{DomainId, DriveId};
use sealdrive_proto::limits::{MAX_FETCH, MAX_FIND, MAX_OBJECT};
use sealdrive_proto::v1;
use sealdrive_runtime::task::{self, JoinHandle};
use tokio::sync::mpsc;

use super::{CallError, field, invalid};
use crate::book::GC_GENERATION;
use crate::core::Core;
use crate::index::RowKey;
use crate::limits::{FETCH_AHEAD, UPLOAD_MESSAGES};
use crate::sessions::Caller;
use crate::store::{Put, Store, StoreError, object_key};

/// Answers of one stream that wait for the network.
const ANSWERS: usize = 8;

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
    fn open(
        core: Arc<Core>,
        caller: Caller,
        open: Option<v1::UploadOpen>,
    ) -> Result<Self, CallError> {
        let open = open.ok_or_else(|| invalid("the first message must open the stream"))?;
        if open.gc_generation != GC_GENERATION {
            return Err(CallError::OldGeneration);
        }
        let drive = field(&open.drive, "drive")?;
        let domain = caller.account.private_domain();
        let upload = Self {
            core,
            caller,
            drive,
            lease_epoch: open.lease_epoch,
            domain,
            next: 1,
        };
        upload.check_lease()?;
        Ok(upload)
    }

    fn check_lease(&self) -> Result<(), CallError> {
        let Self {
            core,
            caller,
            drive,
            lease_epoch,
            ..
        } = self;
        core.book
            .check_lease(&caller.account, &caller.device, drive, *lease_epoch)?;
        Ok(())
    }

    /// Checks one message and sets it on its way.
    fn take(&mut self, message: v1::UploadRequest) -> Result<Option<Storing>, CallError> {
        self.check_lease()?;
        let count = message.objects.len() as u64;
        if count == 0 {
            return Ok(None);
        }
        if message.sequence != self.next {
            return Err(invalid("sequence numbers must follow one another"));
        }
        let mut records = Vec::with_capacity(message.objects.len());
        for object in message.objects {
            if object.len() > MAX_OBJECT {
                return Err(invalid("object is too long"));
            }
            let header = ObjectHeader::parse(&object)
                .map_err(|error| invalid(format!("not an object: {error}")))?;
            if header.domain != self.domain {
                return Err(CallError::NotFound);
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
        let result = task::spawn(async move { core.store.put(records).await });
        Ok(Some(Storing {
            last_sequence: self.next - 1,
            count,
            result,
        }))
    }
}

/// Acknowledges in order; the first failure is the last answer.
async fn acknowledge<E: From<CallError>>(
    mut storing: mpsc::Receiver<Result<Storing, E>>,
    out: mpsc::Sender<Result<v1::UploadResponse, E>>,
) {
    while let Some(next) = storing.recv().await {
        let answer = match next {
            Err(error) => Err(error),
            Ok(next) => match next.result.await {
                Ok(Ok(puts)) => Ok(answer(next.last_sequence, next.count, &puts)),
                Ok(Err(error)) => Err(CallError::from(error).into()),
                Err(_) => Err(CallError::Interrupted("storing was interrupted").into()),
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

/// Which of the objects asked for are not here.
pub async fn find_missing(
    core: &Core,
    caller: &Caller,
    asked: &v1::FindMissingRequest,
) -> Result<v1::FindMissingResponse, CallError> {
    let keys = keys(core, caller, &asked.domain, &asked.sids, MAX_FIND)?;
    let store = core.store.clone();
    let rows = task::spawn_blocking(move || store.find_many(&keys));
    let rows = rows
        .await
        .map_err(|_| CallError::Interrupted("look-up was interrupted"))??;
    let missing = (0u32..)
        .zip(rows)
        .filter(|(_, row)| row.is_none())
        .map(|(index, _)| index)
        .collect();
    Ok(v1::FindMissingResponse { missing })
}

/// Serves an upload: `open` is its first message, `messages` are those behind it. Answers come in order; an error is
/// the last one.
pub fn upload<E: From<CallError> + Send + 'static>(
    core: Arc<Core>,
    caller: Caller,
    open: Option<v1::UploadOpen>,
    mut messages: impl Stream<Item = Result<v1::UploadRequest, E>> + Send + Unpin + 'static,
) -> Result<mpsc::Receiver<Result<v1::UploadResponse, E>>, CallError> {
    let mut upload = Upload::open(core, caller, open)?;
    let (out, answers) = mpsc::channel(ANSWERS);
    let (on_its_way, storing) = mpsc::channel(UPLOAD_MESSAGES);
    task::spawn(acknowledge(storing, out));
    task::spawn(async move {
        loop {
            let message = tokio::select! {
                biased;
                () = upload.core.stopping() => Some(Err(CallError::Stopping.into())),
                message = messages.next() => message,
            };
            let step = match message {
                Some(Ok(message)) => upload.take(message).map_err(E::from).transpose(),
                None => return,
                Some(Err(error)) => Some(Err(error)),
            };
            let Some(step) = step else { continue };
            let failed = step.is_err();
            if on_its_way.send(step).await.is_err() || failed {
                return;
            }
        }
    });
    Ok(answers)
}

/// Serves a fetch: objects in the order asked; an error is the last answer.
pub fn fetch<E: From<CallError> + Send + 'static>(
    core: &Core,
    caller: &Caller,
    asked: &v1::FetchRequest,
) -> Result<mpsc::Receiver<Result<v1::FetchResponse, E>>, CallError> {
    let keys = keys(core, caller, &asked.domain, &asked.sids, MAX_FETCH)?;
    let (out, answers) = mpsc::channel(ANSWERS);
    let store = core.store.clone();
    task::spawn(async move {
        if let Err(error) = send_objects(&store, keys, &out).await {
            let _ = out.send(Err(CallError::from(error).into())).await;
        }
    });
    Ok(answers)
}

/// Names of the objects, if the domain is the caller's and there are not too many.
fn keys(
    core: &Core,
    caller: &Caller,
    domain: &[u8],
    sids: &[Bytes],
    most: usize,
) -> Result<Vec<RowKey>, CallError> {
    let domain: DomainId = field(domain, "domain")?;
    if !core.book.owns_domain(&caller.account, &domain) {
        return Err(CallError::NotFound);
    }
    if sids.len() > most {
        return Err(invalid("too many ids at once"));
    }
    sids.iter()
        .map(|sid| Ok(object_key(&domain, &field(sid, "sid")?)))
        .collect()
}

/// Sends objects in the order asked, reading a bounded number of bytes ahead. Unknown and damaged ones are empty.
async fn send_objects<E>(
    store: &Store,
    keys: Vec<RowKey>,
    out: &mpsc::Sender<Result<v1::FetchResponse, E>>,
) -> Result<(), StoreError> {
    let looking = (store.clone(), keys.clone());
    let rows = task::spawn_blocking(move || looking.0.find_many(&looking.1)).await;
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
