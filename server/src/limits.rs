//! Bounds of the server: name, unit, reason. What both sides must agree on stands in `sealdrive_proto::limits`.

use std::time::Duration;

/// A pack is sealed at this length, bytes: few files, and a footer that is read at once.
pub const PACK_BYTES: u64 = 256 << 20;
/// One fsync covers at most this much, bytes: beyond, latency grows and throughput does not.
pub const GROUP_BYTES: usize = 8 << 20;
/// Payload bytes that may wait for the writer, over all connections: back-pressure begins here.
pub const QUEUE_BYTES: usize = 64 << 20;
/// Submissions that may wait for the writer.
pub const QUEUE_PUTS: usize = 4096;
/// Records in one index transaction.
pub const INDEX_BATCH: usize = 8192;
/// Groups that may wait for the index: bounds the in-memory tail.
pub const INDEX_QUEUE: usize = 1024;
/// How long acknowledged objects may wait for an index transaction to fill up.
pub const INDEX_DELAY: Duration = Duration::from_millis(250);
/// Space kept free on the disk, bytes: below, no objects are taken, so that the index does not meet a full disk.
pub const RESERVE_BYTES: u64 = 64 << 20;
/// Part of it below which nothing at all is taken: leases, logins' slots and commits are small, and a commit lets a
/// client give back space.
pub const CONTROL_PART: u64 = 4;
/// Space held in a file for the index, bytes: somebody else may fill the disk, and what was acknowledged must still be
/// indexed. Many transactions' worth.
pub const INDEX_RESERVE: u64 = 16 << 20;
/// It is at most this part of what is free.
pub const INDEX_RESERVE_PART: u64 = 16;
/// Pause of an index transaction that found no space.
pub const INDEX_RETRY: Duration = Duration::from_secs(1);
/// Pack files open for reading at once.
pub const OPEN_PACKS: usize = 256;
/// Objects read from disk before they are handed to the connection, bytes.
pub const FETCH_AHEAD: usize = 2 << 20;
/// Messages of one upload stream between stream and acknowledgement; each holds at most 4 MiB.
pub const UPLOAD_MESSAGES: usize = 8;
/// Longest message to the account and drive services, bytes: a commit with its body.
pub const CONTROL_MESSAGE: usize = 2 << 20;
/// Largest request header list, bytes.
pub const HEADER_LIST: u32 = 16 << 10;
/// Largest HTTP/2 frame accepted, bytes.
pub const FRAME: u32 = 256 << 10;
/// Streams a connection may have reset by our own errors before it is closed (MadeYouReset, CVE-2025-8671).
pub const LOCAL_RESETS: usize = 100;
/// Streams reset by the peer that may wait to be accepted (rapid reset, CVE-2023-44487).
pub const PENDING_RESETS: usize = 20;
/// A connection is asked for a sign of life this often.
pub const KEEPALIVE: Duration = Duration::from_secs(30);
/// And dropped when none comes within this.
pub const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(20);
/// A unary call takes at most this.
pub const CALL: Duration = Duration::from_secs(60);
/// Shutdown waits this long for calls under way.
pub const SHUTDOWN: Duration = Duration::from_secs(10);
