//! What the tests of the server share: a client that speaks the real protocol over real TLS, and made-up objects.
//!
//! Invariant: the client holds exactly one connection, so that its token and its TLS exporter belong together.
//! Called by the test files of this directory.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use sealdrive_proto::SigningKey;
use sealdrive_proto::commit::{CommitFields, SignedCommit, body_hash, skip_seq};
use sealdrive_proto::header::{ObjectHeader, inner_len, stored_len};
use sealdrive_proto::id::{AccountId, CommitHash, DeviceId, DomainId, DriveId, Epoch, Sid};
use sealdrive_proto::link::Signer;
use sealdrive_proto::link::{
    AccountChain, Compression, DeviceKeys, DriveConfig, Genesis, Link, LinkBody, LinkFields,
};
use sealdrive_proto::transcript::{Call, Caller, LoginTranscript, Role, TOKEN_METADATA};
use sealdrive_proto::v1;
use sealdrive_proto::v1::account_service_client::AccountServiceClient;
use sealdrive_proto::v1::drive_service_client::DriveServiceClient;
use sealdrive_proto::v1::object_service_client::ObjectServiceClient;
use sealdrive_server::store::StoreOptions;
use sealdrive_server::{Config, Running, Server};
use tokio_stream::StreamExt as _;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

pub(crate) use crate::line::{Line, connect};
use tonic::{Request, Status, Streaming};

/// Collection generation of a server that collects nothing yet.
pub(crate) const GC: u64 = 1;

/// Starts a server with TLS on a free port of loopback.
pub(crate) async fn serve(data: &Path, options: StoreOptions) -> Running {
    let config = Config {
        data: data.into(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        plaintext_loopback: false,
    };
    Server::start_with(config, options).await.unwrap()
}

pub(crate) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn keys(n: u8) -> DeviceKeys {
    DeviceKeys {
        sign: key(n).verifying_key(),
        box_pk: Vec::new(),
    }
}

/// The genesis of the account whose first device has key `n`.
pub(crate) fn genesis(n: u8) -> Link {
    let genesis = Genesis {
        salt: [n; 32],
        device: keys(n),
        slot_fetch: key(n + 100).verifying_key(),
        enrol: key(n + 101).verifying_key(),
        domain_commitment: [0; 32],
    };
    LinkFields::genesis(genesis).sign(&key(n)).unwrap()
}

/// A person's device: keys, chain, one connection, a token.
pub(crate) struct Client {
    pub(crate) line: Line,
    pub(crate) chain: AccountChain,
    pub(crate) device: SigningKey,
    pub(crate) token: Bytes,
    pub(crate) calls: u64,
}

pub(crate) async fn register(line: &Line, invite: [u8; 16], n: u8) -> Result<(), Status> {
    let request = v1::RegisterRequest {
        invite_code: Bytes::copy_from_slice(&invite),
        genesis: Bytes::copy_from_slice(genesis(n).bytes()),
        slot: Bytes::from_static(b"slot"),
        key_box: Bytes::from_static(b"key box"),
    };
    AccountServiceClient::new(line.channel.clone())
        .register(request)
        .await
        .map(drop)
}

/// Hello and login; checks the server's signature. `tamper` may change what is signed.
pub(crate) async fn login(
    line: &Line,
    account: AccountId,
    role: Role,
    with: &SigningKey,
    tamper: impl FnOnce(&mut LoginTranscript),
) -> Result<Bytes, Status> {
    let device = match role {
        Role::Device => DeviceId::of(&with.verifying_key()),
        Role::SlotFetch => DeviceId([0; 16]),
    };
    let mut accounts = AccountServiceClient::new(line.channel.clone());
    let hello = accounts
        .hello(v1::HelloRequest {
            account: Bytes::copy_from_slice(&account.0),
            role: role as i32,
            device: Bytes::copy_from_slice(&device.0),
            client_nonce: Bytes::copy_from_slice(&[7; 32]),
        })
        .await?
        .into_inner();
    let mut transcript = LoginTranscript {
        account,
        role,
        device,
        client_nonce: [7; 32],
        server_nonce: hello.server_nonce[..].try_into().unwrap(),
        server_pk: line.server_pk,
        binding: line.binding,
        server_time_ms: hello.server_time_ms,
    };
    transcript
        .verify_hello(&hello.signature)
        .expect("the server's proof");
    tamper(&mut transcript);
    let signature = Bytes::copy_from_slice(&transcript.sign_login(with));
    let request = v1::LoginRequest {
        server_nonce: hello.server_nonce,
        signature,
    };
    Ok(accounts.login(request).await?.into_inner().token)
}

impl Client {
    /// Registers a new account with a fresh invitation, logs in and creates a drive.
    pub(crate) async fn new(server: &Running, n: u8) -> Self {
        let to = server.invite().unwrap();
        let line = connect(&to).await;
        register(&line, to.invite.unwrap(), n).await.unwrap();
        let chain = AccountChain::found(&genesis(n)).unwrap();
        let token = login(&line, chain.account(), Role::Device, &key(n), |_| ())
            .await
            .unwrap();
        let mut client = Self {
            line,
            chain,
            device: key(n),
            token,
            calls: 0,
        };
        let config = DriveConfig {
            min_chunk: 128 << 10,
            avg_chunk: 320 << 10,
            max_chunk: 1 << 20,
            compression: Compression::Off,
        };
        client
            .append(LinkBody::CreateDrive {
                nonce: [n; 16],
                config,
                label: Vec::new(),
            })
            .await;
        client
    }

    /// The same device on a new connection, as after a restart of either side.
    pub(crate) async fn again(&self, server: &Running) -> Self {
        let line = connect(server.connect_string()).await;
        let token = login(
            &line,
            self.chain.account(),
            Role::Device,
            &self.device,
            |_| (),
        )
        .await
        .unwrap();
        Self {
            line,
            chain: self.chain.clone(),
            device: self.device.clone(),
            token,
            calls: self.calls + 1000,
        }
    }

    /// Adds a device with key `n` and logs in as it.
    pub(crate) async fn second(&mut self, server: &Running, n: u8) -> Self {
        self.append(LinkBody::AddDevice {
            device: keys(n),
            label: Vec::new(),
        })
        .await;
        let line = connect(server.connect_string()).await;
        let token = login(&line, self.chain.account(), Role::Device, &key(n), |_| ())
            .await
            .unwrap();
        Self {
            line,
            chain: self.chain.clone(),
            device: key(n),
            token,
            calls: 0,
        }
    }

    pub(crate) async fn append(&mut self, body: LinkBody) {
        let link = self
            .chain
            .next_link(Signer::Device(self.id()), body)
            .sign(&self.device)
            .unwrap();
        let request = v1::AppendLinkRequest {
            link: Bytes::copy_from_slice(link.bytes()),
        };
        self.accounts()
            .append_link(self.ask(request))
            .await
            .unwrap();
        self.chain.append(&link).unwrap();
    }

    pub(crate) fn id(&self) -> DeviceId {
        DeviceId::of(&self.device.verifying_key())
    }

    pub(crate) fn drive(&self) -> DriveId {
        *self.chain.drives().keys().next().unwrap()
    }

    pub(crate) fn domain(&self) -> DomainId {
        self.chain.private_domain()
    }

    pub(crate) fn ask<T>(&self, message: T) -> Request<T> {
        with_token(message, &self.token)
    }

    pub(crate) fn accounts(&self) -> AccountServiceClient<Channel> {
        AccountServiceClient::new(self.line.channel.clone())
    }

    pub(crate) fn drives(&self) -> DriveServiceClient<Channel> {
        DriveServiceClient::new(self.line.channel.clone())
    }

    pub(crate) fn objects(&self) -> ObjectServiceClient<Channel> {
        ObjectServiceClient::new(self.line.channel.clone())
            .max_decoding_message_size(8 << 20)
            .max_encoding_message_size(16 << 20)
    }

    pub(crate) fn prove(&mut self, call: &Call<'_>) -> Option<v1::CallProof> {
        self.calls += 1;
        let caller = Caller {
            server_pk: self.line.server_pk,
            account: self.chain.account(),
            device: self.id(),
            call_seq: self.calls,
        };
        let signature = Bytes::copy_from_slice(&call.sign(&caller, &self.device));
        Some(v1::CallProof {
            call_seq: self.calls,
            signature,
        })
    }

    pub(crate) async fn lease(
        &mut self,
        take_over: bool,
        held_epoch: u64,
    ) -> Result<v1::AcquireLeaseResponse, Status> {
        let drive = self.drive();
        let proof = self.prove(&Call::AcquireLease {
            drive,
            take_over,
            held_epoch,
        });
        let request = v1::AcquireLeaseRequest {
            drive: bytes_of(&drive.0),
            take_over,
            held_epoch,
            proof,
        };
        Ok(self
            .drives()
            .acquire_lease(self.ask(request))
            .await?
            .into_inner())
    }

    pub(crate) async fn release(&mut self, lease_epoch: u64) -> Result<(), Status> {
        let drive = self.drive();
        let proof = self.prove(&Call::ReleaseLease { drive, lease_epoch });
        let request = v1::ReleaseLeaseRequest {
            drive: bytes_of(&drive.0),
            lease_epoch,
            proof,
        };
        self.drives()
            .release_lease(self.ask(request))
            .await
            .map(drop)
    }

    /// Uploads in one message and returns the answers up to the last acknowledgement.
    pub(crate) async fn upload(
        &self,
        epoch: u64,
        objects: Vec<Bytes>,
    ) -> Result<v1::UploadResponse, Status> {
        let (last, mut all) = (objects.len() as u64, v1::UploadResponse::default());
        let open = v1::UploadOpen {
            drive: bytes_of(&self.drive().0),
            lease_epoch: epoch,
            gc_generation: GC,
        };
        let messages = vec![
            v1::UploadRequest {
                open: Some(open),
                ..Default::default()
            },
            v1::UploadRequest {
                open: None,
                sequence: 1,
                objects,
            },
        ];
        let mut answers = self.upload_messages(messages).await?;
        while all.durable_sequence < last {
            let Some(answer) = answers.message().await? else {
                break;
            };
            all.durable_sequence = answer.durable_sequence;
            all.conflicts.extend(answer.conflicts);
        }
        Ok(all)
    }

    pub(crate) async fn upload_messages(
        &self,
        messages: Vec<v1::UploadRequest>,
    ) -> Result<Streaming<v1::UploadResponse>, Status> {
        Ok(self
            .objects()
            .upload(self.ask(tokio_stream::iter(messages)))
            .await?
            .into_inner())
    }

    pub(crate) async fn fetch(&self, sids: &[Sid]) -> Result<Vec<Bytes>, Status> {
        let sids = sids.iter().map(|sid| bytes_of(&sid.0)).collect();
        let request = v1::FetchRequest {
            domain: bytes_of(&self.domain().0),
            sids,
        };
        let answers = self.objects().fetch(self.ask(request)).await?.into_inner();
        let answers: Vec<v1::FetchResponse> = answers.collect::<Result<_, _>>().await?;
        assert!(
            answers
                .iter()
                .enumerate()
                .all(|(at, answer)| answer.index as usize == at),
            "in the order asked"
        );
        Ok(answers.into_iter().map(|answer| answer.object).collect())
    }

    pub(crate) async fn missing(&self, sids: &[Sid]) -> Result<Vec<u32>, Status> {
        let sids = sids.iter().map(|sid| bytes_of(&sid.0)).collect();
        let request = v1::FindMissingRequest {
            domain: bytes_of(&self.domain().0),
            sids,
        };
        Ok(self
            .objects()
            .find_missing(self.ask(request))
            .await?
            .into_inner()
            .missing)
    }

    /// A commit that follows `chain` (all commits so far).
    pub(crate) fn sign_commit(&self, chain: &[SignedCommit], epoch: u64) -> (SignedCommit, Bytes) {
        let seq = chain.len() as u64 + 1;
        let hash = |seq: u64| {
            if seq == 0 {
                CommitHash::NONE
            } else {
                chain[seq as usize - 1].hash()
            }
        };
        let body = object(self.domain(), 1_000_000 + seq as u32, 100);
        let fields = CommitFields {
            drive: self.drive(),
            seq,
            prev: hash(seq - 1),
            skip: hash(skip_seq(seq)),
            device: self.id(),
            device_seq: seq + self.calls * 1000,
            lease_epoch: epoch,
            key_epoch: Epoch(1),
            body_hash: body_hash(&body),
        };
        (fields.sign(&self.device), body)
    }

    pub(crate) async fn commit(
        &self,
        commit: &SignedCommit,
        body: &Bytes,
    ) -> Result<v1::CommitResponse, Status> {
        let request = v1::CommitRequest {
            commit: Bytes::copy_from_slice(commit.bytes()),
            body: body.clone(),
            gc_generation: GC,
        };
        Ok(self.drives().commit(self.ask(request)).await?.into_inner())
    }

    pub(crate) async fn head(&self) -> v1::GetHeadResponse {
        let request = v1::GetHeadRequest {
            drive: bytes_of(&self.drive().0),
        };
        self.drives()
            .get_head(self.ask(request))
            .await
            .unwrap()
            .into_inner()
    }
}

pub(crate) fn with_token<T>(message: T, token: &[u8]) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert_bin(TOKEN_METADATA, MetadataValue::from_bytes(token));
    request
}

pub(crate) fn bytes_of(id: &[u8]) -> Bytes {
    Bytes::copy_from_slice(id)
}

pub(crate) fn sid(n: u32) -> Sid {
    Sid(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

/// Something with the clear shape of a sealed object; the server cannot tell the difference.
pub(crate) fn object(domain: DomainId, n: u32, comp_len: usize) -> Bytes {
    let header = ObjectHeader {
        domain,
        epoch: Epoch(1),
        inner_len: inner_len(comp_len) as u32,
        sid: sid(n),
        nonce: [n as u8; 24],
    };
    let mut bytes = header.encode().to_vec();
    let filler = blake3::Hasher::new_keyed(&sid(n).0).finalize_xof();
    let mut rest = vec![0; stored_len(comp_len) - bytes.len()];
    let mut filler = filler;
    filler.fill(&mut rest);
    bytes.extend_from_slice(&rest);
    bytes.into()
}
