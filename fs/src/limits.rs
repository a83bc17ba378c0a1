//! Every bound of the client: name, unit, reason. Bounds both sides must agree on stand in `sealdrive_proto::limits`.

use std::time::Duration;

/// Size at which a local pack is closed and the next begun, bytes. Large enough for sequential IO, small enough that
/// evicting one is cheap and that little is scanned after a crash.
pub const PACK_SIZE: u64 = 64 << 20;
/// Appended bytes kept in memory before they are written to the open pack, bytes: big writes, few system calls.
pub const APPEND_BUFFER: usize = 1 << 20;
/// Bytes handed to the kernel after which the disk is told to begin with them: an fsync then waits for the last of
/// them, not for a whole pack. Large enough for sequential IO.
pub const WRITE_BEHIND: u64 = 8 << 20;
/// Waiting writes from this length on stay a range of their own, which the reader of the request copied once, bytes:
/// shorter ones are gathered with their neighbours.
pub const WRITE_SHARED: usize = 64 << 10;
/// Objects from this length on go to the kernel from where they are, with what the buffer holds, bytes: copying them
/// first would cost more than the call.
pub const APPEND_DIRECT: usize = 64 << 10;
/// Local cache of acknowledged objects, bytes, unless told otherwise.
pub const CACHE_BUDGET: u64 = 10 << 30;
/// Objects not yet acknowledged, bytes, unless told otherwise. Beyond it writes get ENOSPC.
pub const OUTBOX_BUDGET: u64 = 20 << 30;
/// Decoded chunks kept in memory for reads, bytes.
pub const DECODED_BUDGET: usize = 64 << 20;
/// Sealed bytes between the workers and the pack, bytes, all workers together.
pub const SEAL_IN_FLIGHT: usize = 32 << 20;
/// Memory of the redb page cache, bytes (its default is 1 GiB).
pub const INDEX_CACHE: usize = 32 << 20;
/// Longest index file that is checked page by page at open, bytes: a second of work at most, some 5,000,000 objects.
pub const INDEX_CHECKED: u64 = 512 << 20;
/// Rows kept in memory before they go to redb in one transaction.
pub const INDEX_BATCH: usize = 4096;
/// Journal entries sealed at a time, bytes: what a flush holds beside the dirty bytes themselves.
pub const SEAL_AT_ONCE: usize = 4 << 20;
/// Length at which a journal segment is closed, bytes: bounds what one file's replay holds.
pub const SEGMENT_SIZE: u64 = 32 << 20;
/// Journal bytes that force a checkpoint even when no server is reached: bounds replay after a crash, which takes some
/// 8 ms for each MiB and all of it in memory, so that a mount answers within 2 s and in 256 MiB.
pub const JOURNAL_CHECKPOINT: u64 = 96 << 20;
/// Overlay bytes that force a checkpoint: bounds memory.
pub const OVERLAY_CHECKPOINT: usize = 24 << 20;
/// Dirty bytes an fsync may put into the journal as they are; above it settled ranges are sealed first, so that large
/// files are written once.
pub const FSYNC_JOURNAL: u64 = 4 << 20;
/// Bytes by which a round of sealing must make less what an fsync would put into the journal, for another round to be
/// worth its wait: others may write as fast as it goes, and an fsync must end.
pub const FSYNC_GAIN: u64 = 1 << 20;
/// Dirty bytes left when a checkpoint stops writers for a moment: bounds that moment.
pub const STALL_DIRTY: u64 = 4 << 20;
/// Rounds of writeback before a checkpoint stops writers anyway.
pub const STALL_ROUNDS: usize = 8;
/// Dirty bytes handed to the workers at a time.
pub const WRITEBACK_ROUND: u64 = 16 << 20;
/// Bytes that may wait in the outbox before the upload competes with writers for processors: a burst is taken in at
/// the pace of this machine, a longer one at that of the network.
pub const UPLOAD_YIELDS_BELOW: u64 = 1 << 30;
/// Longest time an upload lets writers go first, until they pause: what fills memory may be waiting for the upload.
pub const UPLOAD_YIELD_LONGEST: Duration = Duration::from_secs(5);
/// How often an upload that lets writers go first looks whether they still need it.
pub const UPLOAD_YIELD: Duration = Duration::from_millis(20);
/// How often the journal is written when nobody waits for it. Longest time something done is in memory only; twice that
/// for ranges of a file still open for writing that are about to be sealed.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(2);
/// Time between commits while something changes.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// How often the writeback pace is looked at.
pub const PACE_INTERVAL: Duration = Duration::from_millis(100);
/// Ids put in one Fetch call by the batcher: parallel small reads share one stream.
pub const FETCH_BATCH: usize = 64;
/// How long the batcher waits for company.
pub const FETCH_GATHER: Duration = Duration::from_millis(1);
/// Fetch calls under way at once.
pub const FETCH_STREAMS: usize = 4;
/// Longest wait for one fetch call's next object.
pub const FETCH_DEADLINE: Duration = Duration::from_secs(30);
/// Objects waiting to be written into the cache; more are simply not cached.
pub const CACHE_QUEUE: usize = 64;
/// References waiting for read-ahead; more are dropped.
pub const PREFETCH_QUEUE: usize = 256;
/// Threads that open what read-ahead fetches.
pub const PREFETCH_THREADS: usize = 2;
/// First and longest pause between attempts to reach the server.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between attempts to reach the server.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Objects that may be set aside because the server refuses them. Each is offered again on a stream of its own, so
/// these take seconds; a server that refuses more has no quarrel with single objects.
pub const REFUSED_MOST: usize = 64;
/// Time between two offers of what the server refuses: it may be another version by then.
pub const REFUSED_OFFER: Duration = Duration::from_secs(600);
/// Files named for one refused object.
pub const REFUSED_FILES: usize = 100;
/// Lost objects remembered so that no commit needs one: 2 MiB of ids. With more than that lost no commit is made.
pub const LOST_MOST: usize = 65_536;
/// Signed commits remembered that the server has refused, should it show one as its head after all.
pub const REFUSED_COMMITS: usize = 16;
/// Commit intervals between two checkpoints while no commit can be made: each seals nodes that wait here as well.
pub const HELD_INTERVALS: u32 = 6;
/// Longest wait for one answer of the server to a short call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Security and damage events kept for `status`.
pub const EVENTS_KEPT: usize = 100;
/// Longest wait for a tree node that writeback needs: under it writers may be waiting too.
pub const NODE_WAIT: Duration = Duration::from_secs(5);
/// Wait for the server's head at open on a machine that could do without it: mounting offline stays quick.
pub const JOIN_PATIENCE_LEAST: Duration = Duration::from_secs(3);
/// Pause of the writeback pace when nothing could be handed out and little came since.
pub const PACE_IDLE: Duration = Duration::from_millis(400);
/// More dirty bytes than at the last fruitless look that make another look worth its while.
pub const WRITEBACK_STEP: u64 = 4 << 20;
/// Pause after a checkpoint that could not be made: each attempt stops writers for a moment.
pub const CHECKPOINT_RETRY: Duration = Duration::from_secs(1);
/// Bytes held in the file `reserve` beside the local state, and as many kept free besides: what was accepted may fill
/// memory (64 MiB), and must still be sealed, journaled and merged into the tree when writes are refused, or nothing
/// would ever drain.
pub const SPACE_RESERVE: u64 = 64 << 20;
/// The reserve is at most this part of what a disk would have free without us: a small disk is there for data, too.
pub const SPACE_RESERVE_PART: u64 = 8;
/// The pack being written is at most this part of the reserve when a checkpoint goes on with it: packs stay large, and
/// what a full disk cannot get back of it is little.
pub const SPACE_OPEN_PART: u64 = 8;
/// Pause after a write that found no space, until what is dirty is handed out again: each attempt seals it anew.
pub const SPACE_RETRY: Duration = Duration::from_secs(1);
/// Bytes of outbox packs for which it is worth closing the last one while space is short: a block of the disk.
pub const GIVE_BACK_LEAST: u64 = 4096;
/// Bytes that may be dirty however little space is left, before writers wait: the longest write of the kernel.
pub const DIRTY_LEAST: u64 = 1 << 20;
/// A umount without a limit of its own gives up (exit code 23) when the server took nothing for this long: sending goes
/// on in the background, and a command must not hang because a network is away.
pub const UMOUNT_STALL: Duration = Duration::from_secs(120);
/// Entries below a directory that one question about their state looks at: bounds the work a question makes.
pub const BELOW_MOST: u64 = 200_000;
/// Longest time it looks.
pub const BELOW_LONGEST: Duration = Duration::from_secs(10);
/// Longest wait for the kernel to hand over its dirty pages to one who asks for the state: after that they count as
/// dirty, which they are.
pub const CALL_IN_LONGEST: Duration = Duration::from_secs(10);
/// Longest wait for the server's word when a monitor asks and it has been silent for too long.
pub const HEAR_LONGEST: Duration = Duration::from_secs(5);
/// Longest wait of a mount for the server's first word, the writer lease: a drive that another machine writes is then
/// read-only from the beginning, and one whose server is away mounts all the same.
pub const LEASE_PATIENCE: Duration = Duration::from_secs(5);
