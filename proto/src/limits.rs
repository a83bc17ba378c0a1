//! Every bound of the system that both sides must agree on: name, unit, reason.
//!
//! A limit that concerns one crate only stands in that crate's own `limits.rs`.

/// Longest chunk of plaintext, bytes. Bounds the memory of every buffer in the pipeline.
pub const MAX_CHUNK: usize = 1 << 20;
/// Length from which a chunk is cut more readily, bytes; the mean is about 380 KiB.
pub const AVG_CHUNK: usize = 256 << 10;
/// Shortest content-cut chunk, bytes (the last of a stream may be shorter). So near the average because what is
/// skipped need not be whitened, which is the dearest part of cutting: a third of a stream is.
pub const MIN_CHUNK: usize = 252 << 10;
/// Longest tree node in plaintext, bytes: far enough above the mean of leaves (10 KiB) that content cuts nearly all of
/// them, because a node cut by its length may move the borders behind it.
pub const MAX_NODE: usize = 24 << 10;
/// Longest value in a tree record, bytes; longer ones become chunks.
pub const MAX_VALUE: usize = 2 << 10;
/// Smallest padded payload of a frame, bytes: below this every object looks alike.
pub const MIN_BUCKET: usize = 4096;
/// Longest stored object, bytes: the bucket of the longest chunk (which zstd may grow by under 1 %) plus headers.
pub const MAX_OBJECT: usize = (1 << 20) + (1 << 18);
/// Longest gRPC message either side accepts, bytes: one upload batch and its framing.
pub const MAX_MESSAGE: usize = 8 << 20;
/// Most object bytes put in one upload message.
pub const UPLOAD_BATCH: usize = 4 << 20;
/// Most ids in one FindMissing call.
pub const MAX_FIND: usize = 4096;
/// Most ids in one Fetch call.
pub const MAX_FETCH: usize = 1024;
/// Most commits in one GetCommits call.
pub const MAX_COMMITS: usize = 256;
/// Most links in one GetChain answer.
pub const MAX_LINKS: usize = 1000;
/// Longest sealed label in a link, bytes: one label object of the smallest bucket is 4,276.
pub const MAX_LABEL: usize = 4608;
/// Longest signed link, bytes: a label, a box key and the fixed fields, or the heads of all drives.
pub const MAX_LINK: usize = 16 << 10;
/// Most heads a revocation names, and so most drives of an account: they must fit into one link.
pub const MAX_REVOKED_HEADS: usize = 200;
/// Most devices an account's chain may ever name.
pub const MAX_DEVICES: usize = 1024;
/// Most drives of an account.
pub const MAX_DRIVES: usize = MAX_REVOKED_HEADS;
/// Longest login slot, bytes.
pub const MAX_SLOT: usize = 1024;
/// Longest key box, bytes.
pub const MAX_KEY_BOX: usize = 16 << 10;
/// Unacknowledged bytes a client may have in flight on one upload stream.
pub const UPLOAD_WINDOW: usize = 32 << 20;
/// HTTP/2 stream window, bytes.
pub const STREAM_WINDOW: u32 = 8 << 20;
/// HTTP/2 connection window, bytes.
pub const CONNECTION_WINDOW: u32 = 32 << 20;
/// Streams one connection may have open at once.
pub const MAX_STREAMS: u32 = 64;
/// Life of a login challenge, seconds.
pub const CHALLENGE_LIFE_S: u64 = 60;
/// Life of a session token, seconds.
pub const TOKEN_LIFE_S: u64 = 900;
/// Life of a writer lease without renewal, seconds.
pub const LEASE_LIFE_S: u64 = 60;
/// Ids of damaged objects in one answer to a lease call: the rest comes with the next.
pub const MAX_SUSPECTS: usize = 256;
