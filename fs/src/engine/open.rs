//! How a drive comes back: from this machine's checkpoint and journal, or, on a machine without memory, from the
//! server.
//!
//! Invariant: with local state no server is needed; without it nothing is believed but a head whose signature, body and
//! history verify. Another machine's state is adopted whole or not at all. Missing pins beside other local state stop
//! commits (somebody may have rolled this machine back) but never reading. Called by `Engine::open`.

use std::sync::Arc;
use std::time::Duration;

use sealdrive_core::commit_body::{BadBody, CommitBody};
use sealdrive_core::history::{BadPins, HistoryError, Pins};
use sealdrive_core::local::LocalKeys;
use sealdrive_core::seal::commit_location;
use sealdrive_core::tree::Root;
use sealdrive_pack::Medium;
use sealdrive_proto::id::{DeviceId, DriveId, Kind};
use sealdrive_runtime::thread;

use super::EngineError;
use super::blobs::Blobs;
use super::branch::{Cause, Diverged};
use super::chain::{Chain, ChainError, root_of};
use super::checkpoint::Checkpoint;
use super::commit::Pending;
use super::config::EngineConfig;
use super::crash::CrashPoints;
use crate::clock;
use crate::journal::{Purpose, Twin, TwinError};
use crate::limits::{CALL_DEADLINE, JOIN_PATIENCE_LEAST};
use crate::remote::{HeadAnswer, RemoteError};

/// The three small durable records, and what they said.
pub(super) struct Records {
    pub(super) checkpoint: Twin,
    pub(super) pins: Twin,
    pub(super) commit: Twin,
    pub(super) found_checkpoint: Option<Checkpoint>,
    pub(super) found_pins: Option<(DeviceId, Pins)>,
    pub(super) found_commit: Option<Pending>,
    /// Pins that exist but do not open.
    pub(super) pins_damaged: bool,
}

impl Records {
    pub(super) fn open(
        dir: &Arc<dyn Medium>,
        drive: DriveId,
        keys: &Arc<LocalKeys>,
    ) -> Result<Self, EngineError> {
        let open = |purpose| Twin::open(Arc::clone(dir), drive, purpose, Arc::clone(keys));
        let (checkpoint, found_checkpoint) = open(Purpose::Checkpoint)?;
        let (pins, found_pins, pins_damaged) = match open(Purpose::Pins) {
            Ok((twin, found)) => (twin, found, false),
            Err(TwinError::Damaged(_)) => (
                Twin::fresh(Arc::clone(dir), drive, Purpose::Pins, Arc::clone(keys)),
                None,
                true,
            ),
            Err(e) => return Err(e.into()),
        };
        let (commit, found_commit) = open(Purpose::Commit)?;
        let damaged = |what| move || EngineError::Record(TwinError::Damaged(what));
        let found = found_checkpoint.as_deref().map(Checkpoint::decode);
        let found = found.map(|found| found.ok_or_else(damaged("checkpoint")));
        let (found_checkpoint, adopted) = found.transpose()?.unzip();
        let mut records = Self {
            checkpoint,
            pins,
            commit,
            found_checkpoint,
            found_pins: found_pins.map_or(Ok(None), |bytes| parse_pins(&bytes))?,
            found_commit: found_commit.and_then(|bytes| Pending::decode(&bytes)),
            pins_damaged,
        };
        if let Some(pins) = adopted.flatten() {
            records.finish_adopting(pins)?;
        }
        Ok(records)
    }

    /// A power cut may have come between the adopted tree and its place in the chain.
    fn finish_adopting(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        let (author, pins) =
            parse_pins(bytes)?.ok_or(EngineError::Record(TwinError::Damaged("checkpoint")))?;
        let is_older = |(_, found): &(DeviceId, Pins)| found.seq() < pins.seq();
        if self.found_pins.as_ref().is_none_or(is_older) {
            self.pins.write(bytes)?;
            self.found_pins = Some((author, pins));
            self.pins_damaged = false;
        }
        Ok(())
    }
}

/// What opening comes to.
pub(super) enum Opening {
    /// The drive starts here.
    Start(Box<Start>),
    /// The server's chain went on without what this machine has: set that aside and open again.
    Diverged(Diverged),
}

/// Where a drive starts.
pub(super) struct Start {
    pub(super) checkpoint: Checkpoint,
    pub(super) pins: Pins,
    /// Who signed the pinned commit.
    pub(super) author: DeviceId,
    /// Why no commit may be written, if so.
    pub(super) distrust: Option<String>,
}

impl Records {
    /// What this machine remembers of the server.
    pub(super) fn pins(&self) -> Pins {
        self.found_pins
            .as_ref()
            .map_or_else(Pins::none, |(_, pins)| pins.clone())
    }

    /// Makes a start on the server's state durable: tree and place in the chain by one record. Never the place first:
    /// beside it, this machine's old tree would look like work of its own on top of the other's, and be committed.
    fn adopt(&mut self, start: &Start, crash: &CrashPoints) -> Result<(), EngineError> {
        let pins = pins_bytes(&start.author, &start.pins);
        self.checkpoint
            .write(&start.checkpoint.encode_adopted(&pins))?;
        crash.reached("adopted-tree");
        self.pins.write(&pins)?;
        crash.reached("adopted");
        Ok(())
    }
}

/// From this machine's memory, if it has one; else from the server; else empty. `unsaved`: the journal holds something.
/// `reached`: the server answered a moment ago.
pub(super) fn start(
    records: &mut Records,
    chain: Option<&mut Chain>,
    blobs: &Blobs,
    config: &EngineConfig,
    (unsaved, reached): (bool, bool),
) -> Result<Opening, EngineError> {
    let author = records
        .found_pins
        .as_ref()
        .map_or(config.device, |(author, _)| *author);
    let checkpoint = records
        .found_checkpoint
        .unwrap_or(Checkpoint { root: None, seq: 0 });
    let mut start = Start {
        checkpoint,
        pins: records.pins(),
        author,
        distrust: None,
    };
    let Some(chain) = chain else {
        if records.found_checkpoint.is_none() {
            records.adopt(&start, &config.crash)?;
        }
        return Ok(Opening::Start(Box::new(start)));
    };
    if records.found_checkpoint.is_some() {
        if records.found_pins.is_none() {
            let what = if records.pins_damaged {
                "damaged"
            } else {
                "gone"
            };
            start.distrust = Some(format!("this device's memory of the server is {what}"));
        } else if reached && let Some((head, diverged)) = elsewhere(chain, records) {
            if unsaved || start.checkpoint.root != root_of(&start.pins) {
                return Ok(Opening::Diverged(diverged));
            }
            // With nothing of our own to keep we go on from there.
            if let Ok((checkpoint, author)) = join(chain, blobs, config, &head) {
                start = Start {
                    checkpoint,
                    pins: chain.pins().clone(),
                    author,
                    distrust: None,
                };
                records.adopt(&start, &config.crash)?;
            }
        }
        return Ok(Opening::Start(Box::new(start)));
    }
    // What this machine has seen last of the server's chain will do for one that cannot be asked.
    let seen = root_of(&start.pins).zip(start.pins.body().map(|body| body.op_seq));
    let patience = match seen {
        Some(_) if !reached => Duration::ZERO,
        _ => config.join_patience,
    };
    match ask(chain, patience) {
        Err(error) if error.is_temporary() && !unsaved && seen.is_some() => {
            let (root, seq) = seen.unzip();
            start.checkpoint = Checkpoint {
                root,
                seq: seq.unwrap_or(0),
            };
        }
        Err(error) => return Err(EngineError::NoState(error)),
        Ok(Some(head)) => {
            let (checkpoint, author) = join(chain, blobs, config, &head)?;
            start = Start {
                checkpoint,
                pins: chain.pins().clone(),
                author,
                distrust: None,
            };
        }
        Ok(None) if chain.pins().seq() == 0 => {}
        Ok(None) => return Err(ChainError::from(HistoryError::Rollback).into()),
    }
    records.adopt(&start, &config.crash)?;
    Ok(Opening::Start(Box::new(start)))
}

/// What another device has committed since, if the server is reached at once and it verifies. Anything wrong with it is
/// met again, and reported, by the first commit.
fn elsewhere(chain: &mut Chain, records: &Records) -> Option<(HeadAnswer, Diverged)> {
    let head = ask(chain, Duration::ZERO).ok()??;
    let verified = chain.check_head(&head).ok()?;
    let commit = verified.commit();
    let fields = commit.fields();
    // A commit of ours whose answer was lost is no other device's.
    let ours = records.found_commit.as_ref();
    let ours = ours.is_some_and(|ours| ours.commit.bytes() == commit.bytes());
    let diverged = Diverged {
        by: fields.device,
        seq: fields.seq,
        cause: Cause::TakenOver,
    };
    (fields.seq != chain.pins().seq() && !ours).then_some((head, diverged))
}

fn ask(chain: &Chain, patience: Duration) -> Result<Option<HeadAnswer>, RemoteError> {
    let deadline = clock::now() + patience;
    loop {
        match chain.head_within(patience.clamp(JOIN_PATIENCE_LEAST, CALL_DEADLINE)) {
            Err(e) if e.is_temporary() && clock::now() < deadline => {
                thread::sleep(Duration::from_millis(300))
            }
            answer => return answer,
        }
    }
}

/// Verifies and opens a head, and pins it; also tells who signed it.
fn join(
    chain: &mut Chain,
    blobs: &Blobs,
    config: &EngineConfig,
    head: &HeadAnswer,
) -> Result<(Checkpoint, DeviceId), EngineError> {
    let verified = chain.check_head(head)?;
    let fields = verified.commit().fields().clone();
    let location = commit_location(&config.drive, fields.seq, &fields.prev);
    let broken = |what: String| EngineError::NoState(RemoteError::Tampered(what));
    let plain = blobs
        .with_sealer(|s| s.open_located(Kind::Commit, &location, &head.body))
        .map_err(|e| broken(e.to_string()))?;
    let body = CommitBody::decode(&plain).map_err(|e| match e {
        BadBody::Malformed => broken(e.to_string()),
        other_format => EngineError::Format(other_format),
    })?;
    let checkpoint = Checkpoint {
        root: Some(Root(body.root)),
        seq: body.op_seq,
    };
    if fields.device == config.device {
        chain.signed(&fields);
    }
    chain.accept(verified, body)?;
    Ok((checkpoint, fields.device))
}

/// Who signed the pinned commit, then the pins.
pub(super) fn pins_bytes(author: &DeviceId, pins: &Pins) -> Vec<u8> {
    [author.as_bytes().as_slice(), &pins.encode()].concat()
}

fn parse_pins(bytes: &[u8]) -> Result<Option<(DeviceId, Pins)>, EngineError> {
    let Some((author, pins)) = bytes.split_first_chunk::<{ DeviceId::LEN }>() else {
        return Ok(None);
    };
    match Pins::decode(pins) {
        Ok(pins) => Ok(Some((DeviceId(*author), pins))),
        Err(BadPins::Format(other)) => Err(EngineError::Format(other)),
        Err(BadPins::Malformed) => Ok(None),
    }
}
