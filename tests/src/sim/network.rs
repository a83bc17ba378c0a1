//! The network of a world: where the server is, what the weather is like, and what happens to a single call.
//!
//! Invariant: all of it comes from the world's dice, and each fault is counted. Messages of different calls overtake
//! each other. Errors travel through the same two tables as over gRPC. Called by `line.rs` and `world.rs`.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sealdrive::remote::RemoteError;
use sealdrive::remote::grpc::translate;
use sealdrive_proto::id::{AccountId, DeviceId, DomainId, DriveId};
use sealdrive_proto::transcript::{self, Call, Role};
use sealdrive_proto::v1;
use sealdrive_runtime::simulation::{Machine, World};
use sealdrive_runtime::task::Handle;
use sealdrive_runtime::time;
use sealdrive_server::calls::{self, CallError};
use sealdrive_server::core::Core;
use sealdrive_server::sessions::Caller;
use tonic::Status;

use super::account::signing;

/// After this long a connection that says nothing is given up, as HTTP/2 pings do.
pub(super) const DEAD_LINE: Duration = Duration::from_secs(45);
/// How bad the network is: chances in a thousand messages, and the longest ordinary delay.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Ordinary delay of a message, at most, milliseconds.
    pub delay_ms: u64,
    /// Requests that never arrive.
    pub lost_requests: u64,
    /// Requests that are served, and whose reply never arrives.
    pub lost_replies: u64,
    /// Requests served twice: the first reply is lost and the line asks again at once.
    pub repeats: u64,
    /// Streams that break at this message.
    pub cuts: u64,
    /// Streams in which nothing moves any more until the line is given up.
    pub stalls: u64,
}

impl Weather {
    /// Nothing goes wrong.
    pub const FAIR: Self = Self {
        delay_ms: 20,
        lost_requests: 0,
        lost_replies: 0,
        repeats: 0,
        cuts: 0,
        stalls: 0,
    };

    /// Drawn for one world: some are fair, some are foul.
    pub fn draw(world: &World) -> Self {
        let up_to = |most| {
            if world.below(3) == 0 {
                0
            } else {
                world.below(most)
            }
        };
        Self {
            delay_ms: 1 + up_to(400),
            lost_requests: up_to(150),
            lost_replies: up_to(150),
            repeats: up_to(150),
            cuts: up_to(200),
            stalls: up_to(60),
        }
    }
}

/// What went wrong, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls made.
    pub calls: u64,
    /// Requests that never arrived.
    pub lost_requests: u64,
    /// Replies that never arrived.
    pub lost_replies: u64,
    /// Requests served twice.
    pub repeats: u64,
    /// Streams cut.
    pub cuts: u64,
    /// Streams stalled.
    pub stalls: u64,
    /// Calls to a server that was down.
    pub refused: u64,
    /// Calls whose server died under them.
    pub orphaned: u64,
}

impl Counts {
    /// Sums up.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.lost_requests += other.lost_requests;
        self.lost_replies += other.lost_replies;
        self.repeats += other.repeats;
        self.cuts += other.cuts;
        self.stalls += other.stalls;
        self.refused += other.refused;
        self.orphaned += other.orphaned;
    }
}

/// A server that can be called.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) core: Arc<Core>,
    pub(super) serving: Handle,
    pub(super) machine: Machine,
}

struct State {
    endpoint: Option<Endpoint>,
    weather: Weather,
    counts: Counts,
    /// Signed calls so far: each device's numbers rise.
    proofs: u64,
}

/// The network. It outlives every machine.
pub struct Network {
    pub(super) world: World,
    state: Mutex<State>,
}

impl Network {
    pub(super) fn new(world: &World, weather: Weather) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            state: Mutex::new(State {
                endpoint: None,
                weather,
                counts: Counts::default(),
                proofs: 0,
            }),
        })
    }

    // A lock of std: nothing inside waits. A machine killed elsewhere leaves no half change.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server is here now, or nowhere. Returns what was here before, to be dropped by whoever may wait.
    pub(super) fn place(&self, endpoint: Option<Endpoint>) -> Option<Endpoint> {
        std::mem::replace(&mut self.state().endpoint, endpoint)
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// What has gone wrong so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    pub(super) fn count(&self, what: &str, kind: impl FnOnce(&mut Counts) -> &mut u64) {
        self.world.note("network", what.as_bytes());
        *kind(&mut self.state().counts) += 1;
    }

    pub(super) fn happens(&self, chance: impl FnOnce(&Weather) -> u64) -> bool {
        let chance = chance(&self.state().weather);
        self.world.below(1000) < chance
    }

    pub(super) async fn delay(&self) {
        let most = self.state().weather.delay_ms;
        let mut delay = self.world.below(most + 1);
        if self.world.below(50) == 0 {
            delay *= 20;
        }
        time::sleep(Duration::from_millis(delay)).await;
    }

    /// Where the server is, if it lives.
    fn reach(&self) -> Result<Endpoint, RemoteError> {
        let found = self.state().endpoint.clone();
        found
            .filter(|endpoint| !endpoint.machine.is_dead())
            .ok_or_else(|| {
                self.count("refused", |c| &mut c.refused);
                unreachable("connection refused")
            })
    }
}

pub(super) fn unreachable(why: &str) -> RemoteError {
    RemoteError::Unreachable(why.into())
}

pub(super) fn refused(error: CallError) -> RemoteError {
    translate(&Status::from(error))
}

/// Who is at this end, and whom the other end serves.
pub(super) struct Ends {
    pub(super) network: Arc<Network>,
    pub(super) number: u8,
    pub(super) device: DeviceId,
    pub(super) account: AccountId,
    pub(super) drive: DriveId,
}

impl Ends {
    pub(super) fn drive_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.drive.as_bytes())
    }

    pub(super) fn domain_bytes(&self) -> Bytes {
        let domain: DomainId = self.account.private_domain();
        Bytes::copy_from_slice(domain.as_bytes())
    }

    /// Signed anew for each attempt, under the next number, for the server that is asked.
    pub(super) fn prove(&self, core: &Core, call: &Call<'_>) -> Option<v1::CallProof> {
        let call_seq = {
            let mut state = self.network.state();
            state.proofs += 1;
            state.proofs
        };
        let caller = transcript::Caller {
            server_pk: core.identity.public(),
            account: self.account,
            device: self.device,
            call_seq,
        };
        let signature = call.sign(&caller, &signing(self.number));
        Some(v1::CallProof {
            call_seq,
            signature: Bytes::copy_from_slice(&signature),
        })
    }

    /// One call, with all that may happen to it on the way.
    pub(super) async fn call<T, F>(
        &self,
        what: &str,
        request: impl Fn(Arc<Core>, Caller) -> F,
    ) -> Result<T, RemoteError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let network = &self.network;
        network.count(what, |c| &mut c.calls);
        network.delay().await;
        if network.happens(|w| w.lost_requests) {
            network.count("lost request", |c| &mut c.lost_requests);
            time::sleep(DEAD_LINE).await;
            return Err(unreachable("no answer"));
        }
        let mut answer = self.serve(&request).await;
        if network.happens(|w| w.repeats) {
            network.count("repeat", |c| &mut c.repeats);
            answer = self.serve(&request).await;
        }
        if network.happens(|w| w.lost_replies) {
            network.count("lost reply", |c| &mut c.lost_replies);
            time::sleep(DEAD_LINE).await;
            return Err(unreachable("no answer"));
        }
        network.delay().await;
        answer
    }

    /// Runs a request where the server runs.
    async fn serve<T, F>(&self, request: &impl Fn(Arc<Core>, Caller) -> F) -> Result<T, RemoteError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let endpoint = self.network.reach()?;
        let caller = Caller {
            account: self.account,
            role: Role::Device,
            device: self.device,
        };
        if !calls::is_device(&endpoint.core, &caller) {
            return Err(RemoteError::Unauthenticated("not a device".into()));
        }
        let served = endpoint
            .serving
            .spawn(request(Arc::clone(&endpoint.core), caller));
        match served.await {
            Ok(answer) => answer.map_err(refused),
            Err(_) => {
                self.network.count("orphaned", |c| &mut c.orphaned);
                Err(unreachable("connection reset"))
            }
        }
    }
}
