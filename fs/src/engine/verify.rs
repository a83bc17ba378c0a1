//! Reads behind the mount what it left unread: chunks that wait for the server, of packs that the index vouches for.
//!
//! Invariant: what is damaged is told, healed or set aside as the upload would do it, also where no server is reached;
//! while one is, the upload reads the same, and this waits. It takes no more than half of the disk's time. One thread,
//! ends when everything has been read.

use std::sync::Arc;
use std::time::Duration;

use super::events::EventKind;
use super::heal;
use super::shared::Shared;
use crate::clock;
use crate::store::{Position, StoreError};

/// Pause after the upload was seen at work.
const LATER: Duration = Duration::from_secs(20);

/// Reads until the end of what there is, or of the mount.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut cursor = Position::default();
    while !shared.progress.now().quit {
        let began = clock::now();
        if shared.uploading.is_online() {
            shared.progress.wait(began + LATER, |m| m.quit);
            continue;
        }
        cursor = match shared.store.outbox().check_after(cursor) {
            Ok(Some(end)) => end,
            Ok(None) => return,
            Err(StoreError::OutboxDamaged(sid, end)) => {
                heal::damaged(shared, sid, end);
                end
            }
            // What cannot be read now is no reason to stop everybody: the upload meets it again.
            Err(e) => {
                let what = format!("what waits for the server could not be looked at: {e}");
                return shared.events.push(EventKind::LocalIo, what);
            }
        };
        let read = clock::now();
        shared
            .progress
            .wait(read + read.saturating_duration_since(began), |m| m.quit);
    }
}
