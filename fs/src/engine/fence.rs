//! Another machine writes the drive now: what this one does about it.
//!
//! Invariant: a fence is final for the mount. What programs wrote before it is called in and kept, every later change
//! is refused with EROFS, nothing more is sent, reading goes on; and it is said once, in one sentence. Called by the
//! lease keeper and by the commit thread.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sealdrive_proto::id::DeviceId;
use sealdrive_runtime::channel::sync_channel;
use sealdrive_runtime::thread;
use serde::{Deserialize, Serialize};

use super::events::EventKind;
use super::shared::Shared;
use crate::clock;
use crate::limits::CALL_IN_LONGEST;

/// Who has taken over, and when this machine learnt of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The other device's id, hex.
    pub by: String,
    /// What it is called, or the beginning of its id.
    pub name: String,
    /// Milliseconds since 1970, this machine's clock.
    pub at_ms: u64,
}

/// Makes the kernel send all its dirty pages and says whether it did.
pub type CallIn = Box<dyn Fn() -> bool + Send + Sync>;

/// The way to the kernel's dirty pages; there once requests are served.
pub(super) type Kernel = OnceLock<CallIn>;

/// What people call a device.
pub(super) fn name_of(names: &BTreeMap<DeviceId, String>, device: &DeviceId) -> String {
    match names.get(device).filter(|name| !name.is_empty()) {
        Some(name) => name.clone(),
        None => device.to_hex()[..8].to_owned(),
    }
}

impl Shared {
    /// Has the kernel's dirty pages called in; false if they did not come within [`CALL_IN_LONGEST`].
    pub(super) fn call_in(self: &Arc<Self>) -> bool {
        let (done, answer) = sync_channel(1);
        let shared = Arc::clone(self);
        let started = thread::spawn("call-in", move || {
            // Before there is a kernel it holds nothing.
            let all = shared.kernel.get().is_none_or(|call_in| call_in());
            let _ = done.send(all);
        });
        started.is_ok() && answer.recv_timeout(CALL_IN_LONGEST).unwrap_or(false)
    }

    /// Whether another machine has taken over.
    pub(super) fn is_fenced(&self) -> bool {
        self.progress.now().fenced.is_some()
    }

    /// Another machine has taken over.
    pub(super) fn fence(self: &Arc<Self>, by: DeviceId) {
        let fence = Fence {
            by: by.to_hex(),
            name: name_of(&self.names, &by),
            at_ms: clock::wall_ms(),
        };
        let why = format!(
            "machine {} has taken over this drive: this mount is read-only now, and what it had not sent is kept here; \
             mount again to go on from the server's state, then see `sealdrive conflicts`",
            fence.name
        );
        let mut first = false;
        self.progress.update(|m| {
            first = m.fenced.is_none();
            m.fenced.get_or_insert(fence);
        });
        if !first {
            return;
        }
        self.stop_commits(EventKind::Fenced, &why);
        let shared = Arc::clone(self);
        let started = thread::spawn("fence", move || {
            if !shared.call_in() {
                tracing::warn!("not all of what programs wrote before the take-over has arrived");
            }
            shared.drive.set_read_only();
        });
        if started.is_err() {
            self.drive.set_read_only();
        }
    }

    /// Mounted to read only: by its user, or because another machine writes the drive.
    pub(super) fn read_only(&self, why: &str) {
        self.drive.set_read_only();
        self.progress.update(|m| {
            m.stopped.get_or_insert_with(|| why.to_owned());
        });
    }
}

/// How often those who only listen have the server say something.
pub(super) const LISTEN: Duration = Duration::from_secs(20);
