//! A storage server in memory, as `Remote` sees one: objects, one chain, one lease, and faults on demand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use sealdrive::remote::{
    Ack, BoxFuture, ChainAnswer, CommitAnswer, Conflict, Fetched, HeadAnswer, LeaseAnswer, Remote,
    RemoteError, UploadStream,
};
use sealdrive_proto::commit::SignedCommit;
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::{CommitHash, DeviceId, Sid};
use tokio::sync::mpsc;

/// What the server holds, shared by all devices.
#[derive(Default, Clone)]
pub struct Disk {
    pub objects: HashMap<Sid, Bytes>,
    pub commits: Vec<(Bytes, Bytes)>,
    pub lease: Option<(DeviceId, u64)>,
    pub epochs: u64,
    /// Objects received, with repeats.
    pub puts: u64,
    /// Commits received, and whether each was refused.
    submitted: Vec<(Bytes, bool)>,
}

/// Whether an object is refused, for good.
pub type Refuse = Box<dyn FnMut(&Bytes) -> bool + Send>;

/// Faults, switched by tests.
#[derive(Default)]
pub struct Faults {
    /// Objects for which this holds are refused, and the stream ends with the refusal.
    pub refuse: Mutex<Option<Refuse>>,
    /// Every commit is refused.
    pub refuse_commits: AtomicBool,
    /// This commit is refused; it begins as an empty one, which is the next that comes.
    pub refuse_commit: Mutex<Option<Bytes>>,
    /// Most bytes of objects (0: no bound).
    pub quota: AtomicU64,
    /// Every call fails.
    pub offline: AtomicBool,
    /// Each upload stream breaks after this many objects (0: never).
    pub cut_after: AtomicU64,
    /// Acknowledgements wait this long, milliseconds.
    pub ack_delay_ms: AtomicU64,
    /// A commit is stored, but its answer is lost, this many times.
    pub lose_commit_answers: AtomicU64,
    /// This is all that comes of asking for the lease.
    pub no_lease: Mutex<Option<RemoteError>>,
    /// How often it was asked for so far.
    pub lease_asked: AtomicU64,
    /// Whoever writes may write: a lease is not looked at.
    pub trusting: AtomicBool,
}

/// The server.
#[derive(Default)]
pub struct MemoryServer {
    disk: Mutex<Disk>,
    pub faults: Faults,
}

impl MemoryServer {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    /// Another server that holds the same now.
    pub fn snapshot(&self) -> Arc<Self> {
        Arc::new(Self {
            disk: Mutex::new(self.disk().clone()),
            faults: Faults::default(),
        })
    }

    /// A connection for one device.
    pub fn connect(self: &Arc<Self>, device: DeviceId) -> Arc<dyn Remote> {
        Arc::new(Connection {
            server: Arc::clone(self),
            device,
        })
    }

    fn up(&self) -> Result<(), RemoteError> {
        if self.faults.offline.load(Ordering::SeqCst) {
            return Err(RemoteError::Unreachable("switched off".into()));
        }
        Ok(())
    }

    /// Whether the object is taken.
    fn judge(&self, object: &Bytes) -> Result<(), RemoteError> {
        let mut refuse = self.faults.refuse.lock().unwrap();
        if refuse.as_mut().is_some_and(|refuse| refuse(object)) {
            return Err(RemoteError::Refused("object is not to my taste".into()));
        }
        let quota = self.faults.quota.load(Ordering::SeqCst);
        let stored: usize = self.disk().objects.values().map(Bytes::len).sum();
        match quota > 0 && (stored + object.len()) as u64 > quota {
            true => Err(RemoteError::Quota),
            false => Ok(()),
        }
    }

    fn judge_commit(&self, commit: &Bytes) -> Result<(), RemoteError> {
        let mut one = self.faults.refuse_commit.lock().unwrap();
        let is_it = one.as_mut().is_some_and(|one| {
            if one.is_empty() {
                *one = commit.clone();
            }
            one == commit
        });
        match is_it || self.faults.refuse_commits.load(Ordering::SeqCst) {
            true => Err(RemoteError::Refused("commit is not to my taste".into())),
            false => Ok(()),
        }
    }

    /// What no device may do, whatever answers were lost: sign two commits with one number of its own, or another one
    /// in the place of one that was not answered. Whoever sees both could not tell it from a fork.
    fn check_signed(&self, commit: &Bytes, refused: bool) {
        let fields = |bytes: &Bytes| SignedCommit::parse(bytes).unwrap().fields().clone();
        let new = fields(commit);
        let mut disk = self.disk();
        let others = disk.submitted.iter().filter(|(other, _)| other != commit);
        for (other, was_refused) in others {
            let old = fields(other);
            if old.device == new.device {
                assert_ne!(old.device_seq, new.device_seq, "one number, two commits");
                let same = (old.seq, old.lease_epoch) == (new.seq, new.lease_epoch);
                assert!(!same || *was_refused, "signed anew without an answer");
            }
        }
        disk.submitted.retain(|(other, _)| other != commit);
        disk.submitted.push((commit.clone(), refused));
    }

    fn put(&self, object: Bytes) -> Option<[u8; 32]> {
        let sid = ObjectHeader::parse(&object)
            .expect("clients send objects")
            .sid;
        let mut disk = self.disk();
        disk.puts += 1;
        match disk.objects.get(&sid) {
            Some(stored) => Some(*blake3::hash(stored).as_bytes()),
            None => {
                disk.objects.insert(sid, object);
                None
            }
        }
    }

    fn commit(
        &self,
        device: DeviceId,
        commit: Bytes,
        body: Bytes,
    ) -> Result<CommitAnswer, RemoteError> {
        let mut disk = self.disk();
        let fields = SignedCommit::parse(&commit)
            .map_err(|e| RemoteError::Refused(e.to_string()))?
            .fields()
            .clone();
        let lease_epoch = disk.lease.map_or(0, |(_, epoch)| epoch);
        let head = disk.commits.last().map(|(c, _)| c.clone());
        if disk.commits.iter().any(|(c, _)| *c == commit) {
            return Ok(CommitAnswer {
                accepted: true,
                head,
                lease_epoch,
            });
        }
        let trusts = self.faults.trusting.load(Ordering::SeqCst);
        if !trusts && disk.lease != Some((device, fields.lease_epoch)) {
            return Err(RemoteError::Fenced);
        }
        let (seq, hash) = head.as_ref().map_or((0, CommitHash::NONE), |c| {
            let c = SignedCommit::parse(c).expect("stored");
            (c.fields().seq, c.hash())
        });
        if fields.seq != seq + 1 || fields.prev != hash {
            return Ok(CommitAnswer {
                accepted: false,
                head,
                lease_epoch,
            });
        }
        disk.commits.push((commit, body));
        Ok(CommitAnswer {
            accepted: true,
            head: None,
            lease_epoch,
        })
    }
}

struct Connection {
    server: Arc<MemoryServer>,
    device: DeviceId,
}

impl Remote for Connection {
    fn open_upload(
        &self,
        lease_epoch: u64,
        _gc: u64,
    ) -> BoxFuture<'_, Result<UploadStream, RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let trusts = self.server.faults.trusting.load(Ordering::SeqCst);
            if !trusts && self.server.disk().lease != Some((self.device, lease_epoch)) {
                return Err(RemoteError::Fenced);
            }
            let (objects, incoming) = mpsc::channel(8);
            let (outgoing, acks) = mpsc::channel(8);
            tokio::spawn(serve_upload(Arc::clone(&self.server), incoming, outgoing));
            Ok(UploadStream { objects, acks })
        })
    }

    fn fetch(
        &self,
        sids: Vec<Sid>,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Result<Fetched, RemoteError>>, RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let (send, receive) = mpsc::channel(sids.len().max(1));
            for (index, sid) in sids.iter().enumerate() {
                let object = self.server.disk().objects.get(sid).cloned();
                let _ = send.try_send(Ok(Fetched {
                    index: index as u32,
                    object,
                }));
            }
            Ok(receive)
        })
    }

    fn find_missing(&self, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<u32>, RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let disk = self.server.disk();
            Ok((0..)
                .zip(&sids)
                .filter(|(_, sid)| !disk.objects.contains_key(sid))
                .map(|(i, _)| i)
                .collect())
        })
    }

    fn acquire_lease(
        &self,
        take_over: bool,
        _held: u64,
    ) -> BoxFuture<'_, Result<LeaseAnswer, RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let faults = &self.server.faults;
            faults.lease_asked.fetch_add(1, Ordering::SeqCst);
            if let Some(error) = &*faults.no_lease.lock().unwrap() {
                return Err(error.clone());
            }
            let mut disk = self.server.disk();
            let granted = match disk.lease {
                Some((holder, _)) if holder == self.device => true,
                Some(_) if !take_over => false,
                _ => {
                    disk.epochs += 1;
                    disk.lease = Some((self.device, disk.epochs));
                    true
                }
            };
            let (holder, lease_epoch) = disk.lease.expect("just granted or held");
            let lifetime = Duration::from_secs(3);
            Ok(LeaseAnswer {
                granted,
                lease_epoch,
                lifetime,
                gc_generation: 0,
                holder,
                suspects: Vec::new(),
            })
        })
    }

    fn release_lease(&self, lease_epoch: u64) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let mut disk = self.server.disk();
            if disk.lease == Some((self.device, lease_epoch)) {
                disk.lease = None;
            }
            Ok(())
        })
    }

    fn get_head(&self) -> BoxFuture<'_, Result<Option<HeadAnswer>, RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let disk = self.server.disk();
            Ok(disk.commits.last().map(|(commit, body)| HeadAnswer {
                commit: commit.clone(),
                body: body.clone(),
                received_ms: 0,
            }))
        })
    }

    fn get_commits(&self, seqs: Vec<u64>) -> BoxFuture<'_, Result<Vec<Bytes>, RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let disk = self.server.disk();
            let one = |seq: &u64| {
                disk.commits
                    .get((*seq as usize).wrapping_sub(1))
                    .map(|(c, _)| c.clone())
            };
            seqs.iter()
                .map(|seq| one(seq).ok_or(RemoteError::NotFound))
                .collect()
        })
    }

    fn commit(
        &self,
        commit: Bytes,
        body: Bytes,
        _gc: u64,
    ) -> BoxFuture<'_, Result<CommitAnswer, RemoteError>> {
        Box::pin(async move {
            self.server.up()?;
            let judged = self.server.judge_commit(&commit);
            self.server.check_signed(&commit, judged.is_err());
            judged?;
            let answer = self.server.commit(self.device, commit, body)?;
            let lose = &self.server.faults.lose_commit_answers;
            if lose
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
            {
                return Err(RemoteError::Unreachable("the answer was lost".into()));
            }
            Ok(answer)
        })
    }

    fn get_chain(&self, _from: u64) -> BoxFuture<'_, Result<ChainAnswer, RemoteError>> {
        Box::pin(async move {
            Ok(ChainAnswer {
                links: Vec::new(),
                head_seq: 0,
            })
        })
    }
}

async fn serve_upload(
    server: Arc<MemoryServer>,
    mut incoming: mpsc::Receiver<(u64, Bytes)>,
    outgoing: mpsc::Sender<Result<Ack, RemoteError>>,
) {
    let cut_after = server.faults.cut_after.load(Ordering::SeqCst);
    let mut count = 0;
    while let Some(first) = incoming.recv().await {
        for (sequence, object) in message(&server, first, &mut incoming).await {
            count += 1;
            if server.up().is_err() || (cut_after > 0 && count > cut_after) {
                let cut = RemoteError::Unreachable("cut".into());
                let _ = outgoing.send(Err(cut)).await;
                return;
            }
            let object = match object {
                Ok(object) => object,
                Err(error) => {
                    let _ = outgoing.send(Err(error)).await;
                    return;
                }
            };
            let stored_hash = server.put(object);
            let conflicts = stored_hash
                .map(|stored_hash| Conflict {
                    sequence,
                    stored_hash,
                })
                .into_iter()
                .collect();
            let delay = server.faults.ack_delay_ms.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let ack = Ack {
                durable_sequence: sequence,
                conflicts,
            };
            if outgoing.send(Ok(ack)).await.is_err() {
                return;
            }
        }
    }
}

/// The objects of one message, all or none of which are taken: the real server refuses whole messages.
async fn message(
    server: &MemoryServer,
    first: (u64, Bytes),
    incoming: &mut mpsc::Receiver<(u64, Bytes)>,
) -> Vec<(u64, Result<Bytes, RemoteError>)> {
    let mut all = vec![first];
    if server.faults.refuse.lock().unwrap().is_some() {
        // What else is on its way comes along.
        tokio::time::sleep(Duration::from_millis(5)).await;
        while let Ok(next) = incoming.try_recv() {
            all.push(next);
        }
        let refused = all
            .iter()
            .find_map(|(_, object)| server.judge(object).err());
        if let Some(error) = refused {
            return vec![(all[0].0, Err(error))];
        }
    }
    let judged = |(sequence, object)| (sequence, server.judge(&object).map(|()| object));
    all.into_iter().map(judged).collect()
}
