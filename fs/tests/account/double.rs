//! A server that speaks the account protocol over real TLS, keeps everything in memory, and lies when told to.
//!
//! Invariant: without a lie it behaves as the protocol says; each lie is one switch.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use sealdrive_proto::connect::ConnectString;
use sealdrive_proto::id::{AccountId, DeviceId};
use sealdrive_proto::link::{AccountChain, Link};
use sealdrive_proto::transcript::{Binding, LoginTranscript, Role};
use sealdrive_proto::v1::account_service_server::{AccountService, AccountServiceServer};
use sealdrive_proto::{SigningKey, v1};
use sealdrive_server::listen::{Peer, accept};
use sealdrive_server::tls::Certificate;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// One way to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lie {
    /// Greets with another identity key.
    Identity,
    /// Signs the greeting for another connection, as a relay in the middle would have to.
    Relay,
    /// Hands out the slot with one bit changed.
    Slot,
    /// Hands out a key box made for someone else.
    KeyBox,
    /// Shows the chain without its last link.
    ShortChain,
    /// Shows the chain of another account.
    OtherChain,
    /// Takes the registration and then never answers.
    SilentRegister,
    /// Forgets every token at each call, as a restarted server would.
    ForgetTokens,
}

#[derive(Default)]
struct Kept {
    invites: HashSet<[u8; 16]>,
    accounts: HashMap<AccountId, Account>,
    challenges: HashMap<[u8; 32], (LoginTranscript, SocketAddr)>,
    tokens: HashMap<Vec<u8>, (AccountId, Role, SocketAddr)>,
    lies: HashSet<Lie>,
    logins: usize,
    drawn: u8,
}

struct Account {
    links: Vec<Link>,
    chain: AccountChain,
    slot: Bytes,
    key_box: Bytes,
}

/// The running double.
#[derive(Clone)]
pub struct Double {
    kept: Arc<Mutex<Kept>>,
    key: Arc<SigningKey>,
    connect: ConnectString,
}

impl Double {
    /// Starts on a free port of this machine; runs until the runtime ends.
    pub async fn start(dir: &Path) -> Self {
        let certificate = Certificate::open(dir).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = SigningKey::from_bytes(&[0x5e; 32]);
        let connect = ConnectString {
            addr: listener.local_addr().unwrap().to_string(),
            server_pk: key.verifying_key().to_bytes(),
            tls_fingerprint: Some(certificate.fingerprint()),
            invite: None,
        };
        let double = Self {
            kept: Arc::default(),
            key: Arc::new(key),
            connect,
        };
        let service = AccountServiceServer::new(double.clone());
        let incoming = ReceiverStream::new(accept(listener, Some(certificate.config().unwrap())));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        double
    }

    /// A connect string with a fresh invitation.
    pub fn invite(&self) -> ConnectString {
        let mut kept = self.kept();
        kept.drawn += 1;
        let invite = [kept.drawn; 16];
        kept.invites.insert(invite);
        ConnectString {
            invite: Some(invite),
            ..self.connect.clone()
        }
    }

    pub fn lie(&self, lie: Lie) {
        self.kept().lies.insert(lie);
    }

    pub fn be_honest(&self) {
        self.kept().lies.clear();
    }

    pub fn logins(&self) -> usize {
        self.kept().logins
    }

    pub fn chain(&self, account: &AccountId) -> AccountChain {
        self.kept().accounts[account].chain.clone()
    }

    pub fn accounts(&self) -> usize {
        self.kept().accounts.len()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    fn who<T>(&self, request: &Request<T>) -> Result<(AccountId, Role), Status> {
        let refused = || Status::unauthenticated("log in first");
        let token = request
            .metadata()
            .get_bin("sealdrive-token-bin")
            .ok_or_else(refused)?;
        let token = token.to_bytes().map_err(|_| refused())?.to_vec();
        let mut kept = self.kept();
        if kept.lies.remove(&Lie::ForgetTokens) {
            kept.tokens.clear();
        }
        match kept.tokens.get(&token) {
            Some((account, role, addr)) if *addr == peer(request).addr => Ok((*account, *role)),
            _ => Err(refused()),
        }
    }
}

fn peer<T>(request: &Request<T>) -> Peer {
    request.extensions().get::<Peer>().unwrap().clone()
}

#[tonic::async_trait]
impl AccountService for Double {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let message = request.into_inner();
        let invite: [u8; 16] = message.invite_code.as_ref().try_into().unwrap();
        let genesis = Link::parse(&message.genesis).unwrap();
        let chain = AccountChain::found(&genesis).unwrap();
        let id = chain.account();
        let silent = {
            let mut kept = self.kept();
            if !kept.accounts.contains_key(&id) {
                if !kept.invites.remove(&invite) {
                    return Err(Status::permission_denied("no such invitation"));
                }
                let (slot, key_box) = (message.slot, message.key_box);
                kept.accounts.insert(
                    id,
                    Account {
                        links: vec![genesis],
                        chain,
                        slot,
                        key_box,
                    },
                );
            }
            kept.lies.contains(&Lie::SilentRegister)
        };
        if silent {
            return Err(Status::unavailable("shutting down"));
        }
        Ok(Response::new(v1::RegisterResponse {}))
    }

    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloResponse>, Status> {
        let Peer { addr, mut binding } = peer(&request);
        let message = request.into_inner();
        let mut kept = self.kept();
        kept.drawn += 1;
        let server_nonce = [kept.drawn; 32];
        if kept.lies.contains(&Lie::Relay) {
            binding = Binding::Tls([9; 32]);
        }
        let role = match message.role() {
            v1::KeyRole::Device => Role::Device,
            _ => Role::SlotFetch,
        };
        let transcript = LoginTranscript {
            account: AccountId::try_from(message.account.as_ref()).unwrap(),
            role,
            device: DeviceId::try_from(message.device.as_ref()).unwrap_or(DeviceId([0; 16])),
            client_nonce: message.client_nonce.as_ref().try_into().unwrap(),
            server_nonce,
            server_pk: self.connect.server_pk,
            binding,
            server_time_ms: 1_700_000_000_000,
        };
        let other = SigningKey::from_bytes(&[0x66; 32]);
        let key = if kept.lies.contains(&Lie::Identity) {
            &other
        } else {
            &self.key
        };
        let signature = Bytes::copy_from_slice(&transcript.sign_hello(key));
        kept.challenges.insert(server_nonce, (transcript, addr));
        Ok(Response::new(v1::HelloResponse {
            server_nonce: Bytes::copy_from_slice(&server_nonce),
            server_time_ms: 1_700_000_000_000,
            signature,
        }))
    }

    async fn login(
        &self,
        request: Request<v1::LoginRequest>,
    ) -> Result<Response<v1::LoginResponse>, Status> {
        let addr = peer(&request).addr;
        let message = request.into_inner();
        let nonce: [u8; 32] = message.server_nonce.as_ref().try_into().unwrap();
        let mut kept = self.kept();
        let refused = || Status::unauthenticated("no");
        let (transcript, asked) = kept.challenges.remove(&nonce).ok_or_else(refused)?;
        let account = kept.accounts.get(&transcript.account).ok_or_else(refused)?;
        let key = match transcript.role {
            Role::SlotFetch => account.chain.genesis().slot_fetch,
            Role::Device => {
                account
                    .chain
                    .active_device(&transcript.device)
                    .ok_or_else(refused)?
                    .keys
                    .sign
            }
        };
        transcript
            .verify_login(&key, &message.signature)
            .map_err(|_| refused())?;
        assert_eq!(addr, asked, "one connection");
        kept.drawn += 1;
        kept.logins += 1;
        let token = vec![kept.drawn; 32];
        kept.tokens
            .insert(token.clone(), (transcript.account, transcript.role, addr));
        Ok(Response::new(v1::LoginResponse {
            token: token.into(),
            lifetime_s: 900,
        }))
    }

    async fn get_slot(
        &self,
        request: Request<v1::GetSlotRequest>,
    ) -> Result<Response<v1::GetSlotResponse>, Status> {
        let (id, _) = self.who(&request)?;
        let kept = self.kept();
        let account = &kept.accounts[&id];
        let mut slot = account.slot.to_vec();
        if kept.lies.contains(&Lie::Slot) {
            slot[150] ^= 1;
        }
        let other = kept.accounts.iter().find(|(other, _)| **other != id);
        let key_box = match other {
            Some((_, other)) if kept.lies.contains(&Lie::KeyBox) => other.key_box.clone(),
            _ => account.key_box.clone(),
        };
        Ok(Response::new(v1::GetSlotResponse {
            slot: slot.into(),
            key_box,
        }))
    }

    async fn put_slot(
        &self,
        _: Request<v1::PutSlotRequest>,
    ) -> Result<Response<v1::PutSlotResponse>, Status> {
        Err(Status::unavailable("not part of the double"))
    }

    async fn get_chain(
        &self,
        request: Request<v1::GetChainRequest>,
    ) -> Result<Response<v1::GetChainResponse>, Status> {
        let (mut id, _) = self.who(&request)?;
        let from = request.into_inner().from_seq as usize;
        let kept = self.kept();
        if kept.lies.contains(&Lie::OtherChain) {
            id = *kept.accounts.keys().find(|other| **other != id).unwrap();
        }
        let links = &kept.accounts[&id].links;
        let end = links.len() - usize::from(kept.lies.contains(&Lie::ShortChain));
        // A few at a time, so that asking on is tested as well.
        let shown = links[from.min(end)..end].iter().take(2);
        Ok(Response::new(v1::GetChainResponse {
            links: shown
                .map(|link| Bytes::copy_from_slice(link.bytes()))
                .collect(),
            head_seq: end as u64 - 1,
        }))
    }

    async fn append_link(
        &self,
        request: Request<v1::AppendLinkRequest>,
    ) -> Result<Response<v1::AppendLinkResponse>, Status> {
        let (id, _) = self.who(&request)?;
        let link = Link::parse(&request.into_inner().link).unwrap();
        let mut kept = self.kept();
        let account = kept.accounts.get_mut(&id).unwrap();
        if account.links.contains(&link) {
            return Ok(Response::new(v1::AppendLinkResponse {}));
        }
        account
            .chain
            .append(&link)
            .map_err(|error| Status::failed_precondition(format!("stale head: {error}")))?;
        account.links.push(link);
        Ok(Response::new(v1::AppendLinkResponse {}))
    }
}
