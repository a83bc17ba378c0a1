//! What an engine is opened with.
//!
//! Invariant: keys come in derived and shared; the engine derives, stores and logs none. Called by the mount's wiring.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use sealdrive_core::chunk::ChunkSizes;
use sealdrive_core::keys::DomainKeys;
use sealdrive_core::local::LocalKeys;
use sealdrive_core::seal::Compress;
use sealdrive_pack::Medium;
use sealdrive_proto::id::{DeviceId, DriveId};
use sealdrive_proto::link::{AccountChain, DriveConfig};

use super::crash::CrashPoints;
use crate::limits::{CACHE_BUDGET, COMMIT_INTERVAL, OUTBOX_BUDGET, SPACE_RESERVE};
use crate::remote::Remote;

/// What an engine is opened with.
pub struct EngineConfig {
    /// State directory of this drive on this machine; created with mode 0700.
    pub dir: PathBuf,
    /// What stands in the place of that directory; none: the directory itself.
    pub medium: Option<Arc<dyn Medium>>,
    /// The drive.
    pub drive: DriveId,
    /// This device.
    pub device: DeviceId,
    /// Keys of the drive's domain.
    pub keys: Arc<DomainKeys>,
    /// Keys of the local records of this drive on this machine.
    pub local: Arc<LocalKeys>,
    /// The device's signing key: signs commits.
    pub signing: Arc<SigningKey>,
    /// The account's verified chain: whose commits count, and under which members they were made.
    pub account: AccountChain,
    /// The server; none for a drive without one. Connects lazily.
    pub remote: Option<Arc<dyn Remote>>,
    /// User and group of the root directory of a drive that has none yet.
    pub owner: (u32, u32),
    /// Bytes of local copies of what the server has.
    pub cache_budget: u64,
    /// Bytes of sealed objects not yet on the server at which writes are refused.
    pub outbox_budget: u64,
    /// Bytes held in reserve on the disk of the local state, on one that is large enough.
    pub reserve: u64,
    /// Time between commits while something changes.
    pub commit_interval: Duration,
    /// How long a machine without state waits for the server at open.
    pub join_patience: Duration,
    /// Only read: ask for no lease, send nothing, refuse changes.
    pub read_only: bool,
    /// What the account's devices are called.
    pub device_names: BTreeMap<DeviceId, String>,
    /// Take the writer lease from another device that holds it.
    pub take_over: bool,
    /// Sealing threads; 0: one per core.
    pub workers: usize,
    /// Named points for tests.
    pub crash: CrashPoints,
}

impl EngineConfig {
    /// Defaults for everything that has one.
    pub fn new(
        dir: impl Into<PathBuf>,
        drive: DriveId,
        device: DeviceId,
        keys: Arc<DomainKeys>,
        local: Arc<LocalKeys>,
        signing: Arc<SigningKey>,
        account: AccountChain,
    ) -> Self {
        Self {
            dir: dir.into(),
            medium: None,
            drive,
            device,
            keys,
            local,
            signing,
            account,
            remote: None,
            owner: (0, 0),
            cache_budget: CACHE_BUDGET,
            outbox_budget: OUTBOX_BUDGET,
            reserve: SPACE_RESERVE,
            commit_interval: COMMIT_INTERVAL,
            join_patience: Duration::from_secs(30),
            read_only: false,
            device_names: BTreeMap::new(),
            take_over: false,
            workers: 0,
            crash: CrashPoints::default(),
        }
    }

    /// How this drive cuts: fixed when it was made, so that all its devices cut alike. What cannot be cut by is cut by
    /// the default: that is opened just as well, only found again less often.
    pub(super) fn chunk_sizes(&self) -> ChunkSizes {
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        self.drive_config()
            .and_then(|c| ChunkSizes::new(size(c.min_chunk), size(c.avg_chunk), size(c.max_chunk)))
            .unwrap_or(ChunkSizes::DEFAULT)
    }

    /// How this drive compresses content: as it was made, on every machine, so that a drive that hides compressibility
    /// hides it wherever it is written.
    pub(super) fn compress(&self) -> Compress {
        self.drive_config()
            .map_or(Compress::DEFAULT, |config| config.compression.into())
    }

    fn drive_config(&self) -> Option<&DriveConfig> {
        let drive = self.account.drives().get(&self.drive)?;
        Some(&drive.config)
    }
}
