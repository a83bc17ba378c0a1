//! An id of ours under which the server holds other bytes: another run of the compressor, or poison.
//!
//! Invariant: an object counts as acknowledged only if the server's copy equals ours or opens to the same content;
//! otherwise the content is sealed again under the next variant, behind everything in the outbox, and no commit goes
//! out before that is acknowledged. Called by the upload.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_proto::id::Sid;
use sealdrive_runtime::task;
use sealdrive_runtime::time::timeout;

use super::events::EventKind;
use super::shared::Shared;
use crate::limits::FETCH_DEADLINE;
use crate::remote::{Remote, RemoteError};
use crate::store::{Local, NOTE_LEN, StoreError};

/// Decides about one conflict. An error ends the upload session; the object stays unacknowledged.
pub(super) async fn settle(
    shared: &Arc<Shared>,
    remote: &Arc<dyn Remote>,
    sid: Sid,
    stored_hash: [u8; 32],
) -> Result<(), RemoteError> {
    let here = Arc::clone(shared);
    let ours = task::spawn_blocking(move || here.store.read(&sid)).await;
    if let Ok(Ok(Local::Object(object, _))) = ours
        && *blake3::hash(&object).as_bytes() == stored_hash
    {
        return Ok(());
    }
    let stored = fetch(remote, sid).await?;
    if stored
        .as_ref()
        .is_some_and(|object| *blake3::hash(object).as_bytes() != stored_hash)
    {
        return Err(RemoteError::Tampered(format!(
            "object {} is not the one announced",
            sid.to_hex()
        )));
    }
    let here = Arc::clone(shared);
    let judged = task::spawn_blocking(move || judge(&here, sid, stored)).await;
    match judged {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) if e.is_no_space() => Err(RemoteError::Unreachable(e.to_string())),
        Ok(Err(e)) => {
            shared.fail_local(&e.to_string());
            Err(RemoteError::Refused("local store failed".into()))
        }
        Err(_) => Err(RemoteError::Refused(
            "the judge of a conflict broke off".into(),
        )),
    }
}

fn judge(shared: &Shared, sid: Sid, stored: Option<Bytes>) -> Result<(), StoreError> {
    if shared.store.note(&sid)? == Some([0; NOTE_LEN]) {
        // A copy sent to heal the server: another machine was faster. Readers check whatever is there.
        return Ok(());
    }
    let Some((kind, reference)) = shared.blobs.origin(&sid)? else {
        shared.events.push(
            EventKind::Poisoned,
            format!("object {}: its note does not open", sid.to_hex()),
        );
        return Err(StoreError::Failed);
    };
    if let Some(object) = stored
        && shared.blobs.accept(kind, &reference, sid, object).is_some()
    {
        return Ok(());
    }
    shared.events.push(
        EventKind::Poisoned,
        format!("object {}: sealed under the next variant", sid.to_hex()),
    );
    if !shared.blobs.reseal(kind, &reference)? {
        return Err(StoreError::Failed);
    }
    shared.progress.must_reach(shared.store.end());
    shared.uploading.appended.notify_one();
    Ok(())
}

async fn fetch(remote: &Arc<dyn Remote>, sid: Sid) -> Result<Option<Bytes>, RemoteError> {
    let late = |_| RemoteError::Unreachable("no answer in time".into());
    let mut answers = timeout(FETCH_DEADLINE, remote.fetch(vec![sid]))
        .await
        .map_err(late)??;
    let first = timeout(FETCH_DEADLINE, answers.recv())
        .await
        .map_err(late)?;
    let gone = || RemoteError::Unreachable("the stream ended early".into());
    Ok(first.ok_or_else(gone)??.object)
}
