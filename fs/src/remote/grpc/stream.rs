//! The two streams of objects: upload with acknowledgements, and fetch.
//!
//! Invariant: numbers of an upload rise by one from 1; an error is the last item of either stream; dropping the
//! caller's end closes the call. Called by `grpc` only.

use bytes::Bytes;
use futures_util::Stream;
use sealdrive_proto::limits::UPLOAD_BATCH;
use sealdrive_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::status;
use crate::limits::FETCH_DEADLINE;
use crate::remote::{Ack, Conflict, Fetched, RemoteError};

/// Objects waiting between the caller and the batcher. Each is at most 1.25 MiB, most are a third of that.
pub(super) const QUEUE: usize = 16;
/// Batches waiting for HTTP/2: its windows are the real bound.
const BATCHES: usize = 2;

/// The request stream of an upload: `open`, then batches of what comes in.
pub(super) fn batches(
    open: v1::UploadOpen,
    mut objects: mpsc::Receiver<(u64, Bytes)>,
) -> impl Stream<Item = v1::UploadRequest> {
    let (send, receive) = mpsc::channel(BATCHES);
    tokio::spawn(async move {
        let first = v1::UploadRequest {
            open: Some(open),
            ..Default::default()
        };
        if send.send(first).await.is_err() {
            return;
        }
        let mut next = objects.recv().await;
        while let Some((sequence, object)) = next.take() {
            let mut size = object.len();
            let mut batch = vec![object];
            let mut ended = false;
            // Whatever is there already goes along; nothing is waited for.
            loop {
                match objects.try_recv() {
                    Ok((number, object)) if size + object.len() <= UPLOAD_BATCH => {
                        debug_assert_eq!(
                            number,
                            sequence + batch.len() as u64,
                            "numbers rise by one"
                        );
                        size += object.len();
                        batch.push(object);
                    }
                    Ok(too_much) => {
                        next = Some(too_much);
                        break;
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        ended = true;
                        break;
                    }
                }
            }
            let request = v1::UploadRequest {
                open: None,
                sequence,
                objects: batch,
            };
            if send.send(request).await.is_err() || ended {
                return;
            }
            if next.is_none() {
                next = objects.recv().await;
            }
        }
    });
    ReceiverStream::new(receive)
}

/// Passes acknowledgements on until the stream ends or nobody listens.
pub(super) fn acknowledgements(
    mut answers: Streaming<v1::UploadResponse>,
) -> mpsc::Receiver<Result<Ack, RemoteError>> {
    let (send, receive) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let (item, last) = tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => match ack(answer) {
                        Ok(ack) => (Ok(ack), false),
                        Err(error) => (Err(error), true),
                    },
                    Ok(None) => return,
                    Err(error) => (Err(status::translate(&error)), true),
                },
                () = send.closed() => return,
            };
            if send.send(item).await.is_err() || last {
                return;
            }
        }
    });
    receive
}

/// An acknowledgement as the engine sees it.
pub fn ack(answer: v1::UploadResponse) -> Result<Ack, RemoteError> {
    let conflicts = answer.conflicts.into_iter().map(|conflict| {
        let stored_hash = conflict.stored_hash.as_ref().try_into().map_err(|_| {
            RemoteError::Tampered("a conflict with a hash of the wrong length".to_owned())
        })?;
        Ok(Conflict {
            sequence: conflict.sequence,
            stored_hash,
        })
    });
    Ok(Ack {
        durable_sequence: answer.durable_sequence,
        conflicts: conflicts.collect::<Result<_, RemoteError>>()?,
    })
}

/// Passes fetched objects on until the stream ends, stalls for `FETCH_DEADLINE`, or nobody listens.
pub(super) fn fetched(
    mut answers: Streaming<v1::FetchResponse>,
    asked: usize,
) -> mpsc::Receiver<Result<Fetched, RemoteError>> {
    let (send, receive) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(FETCH_DEADLINE, answers.message()) => next,
                () = send.closed() => return,
            };
            let item = match next {
                Ok(Ok(Some(answer))) if (answer.index as usize) < asked => Ok(Fetched {
                    index: answer.index,
                    object: (!answer.object.is_empty()).then_some(answer.object),
                }),
                Ok(Ok(Some(_))) => Err(RemoteError::Tampered(
                    "an object nobody asked for".to_owned(),
                )),
                Ok(Ok(None)) => return,
                Ok(Err(error)) => Err(status::translate(&error)),
                Err(_) => Err(RemoteError::Unreachable("a fetch stalled".to_owned())),
            };
            let last = item.is_err();
            if send.send(item).await.is_err() || last {
                return;
            }
        }
    });
    receive
}
