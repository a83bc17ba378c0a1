//! AccountService: registration, login, slot, chain.
//!
//! Invariant: a hello is answered alike for known and unknown keys; who is unknown learns it at login only, and there
//! no more than that the proof does not hold. Called by tonic.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_proto::id::{AccountId, DeviceId};
use sealdrive_proto::limits::TOKEN_LIFE_S;
use sealdrive_proto::link::Link;
use sealdrive_proto::transcript::{Call, LoginTranscript, Role};
use sealdrive_proto::v1;
use tonic::{Request, Response, Status};

use super::status::{book_status, change_status};
use super::{caller, device, peer};
use crate::calls::{self, field, uninterrupted};
use crate::core::Core;
use crate::sessions::Caller;
use crate::{clock, invites};

pub(super) struct Accounts(pub(super) Arc<Core>);

type Answer<T> = Result<Response<T>, Status>;

fn entropy() -> Result<[u8; 32], Status> {
    clock::entropy().map_err(|error| {
        tracing::error!(%error, "no entropy");
        Status::unavailable("the server has no entropy")
    })
}

fn invitations(error: &std::io::Error) -> Status {
    tracing::error!(%error, "invitations");
    Status::unavailable("the server's storage has failed")
}

#[tonic::async_trait]
impl v1::account_service_server::AccountService for Accounts {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Answer<v1::RegisterResponse> {
        let asked = request.into_inner();
        let code: [u8; 16] = field(&asked.invite_code, "invite_code")?;
        let link = Link::parse(&asked.genesis).map_err(|_| {
            Status::invalid_argument("genesis is not a chain link of a known format")
        })?;
        let core = Arc::clone(&self.0);
        uninterrupted(async move { register(&core, &asked, &AccountId::of(&link), &code).await })
            .await?;
        Ok(Response::new(v1::RegisterResponse {}))
    }

    async fn hello(&self, request: Request<v1::HelloRequest>) -> Answer<v1::HelloResponse> {
        let binding = peer(&request)?.binding;
        let asked = request.into_inner();
        let role = match asked.role() {
            v1::KeyRole::Device => Role::Device,
            v1::KeyRole::SlotFetch => Role::SlotFetch,
            v1::KeyRole::Unspecified => return Err(Status::invalid_argument("role is not given")),
        };
        let device = match role {
            Role::Device => field(&asked.device, "device")?,
            Role::SlotFetch => DeviceId([0; 16]),
        };
        let now = clock::unix_ms();
        let transcript = LoginTranscript {
            account: field(&asked.account, "account")?,
            role,
            device,
            client_nonce: field(&asked.client_nonce, "client_nonce")?,
            server_nonce: entropy()?,
            server_pk: self.0.identity.public(),
            binding,
            server_time_ms: now,
        };
        let signature = transcript.sign_hello(self.0.identity.signing_key());
        let server_nonce = Bytes::copy_from_slice(&transcript.server_nonce);
        if !self.0.sessions.challenge(transcript, clock::steady_ms()) {
            return Err(Status::unavailable("too many logins at once; try again"));
        }
        Ok(Response::new(v1::HelloResponse {
            server_nonce,
            server_time_ms: now,
            signature: Bytes::copy_from_slice(&signature),
        }))
    }

    async fn login(&self, request: Request<v1::LoginRequest>) -> Answer<v1::LoginResponse> {
        let binding = peer(&request)?.binding;
        let asked = request.into_inner();
        let refused = || Status::unauthenticated("the proof does not hold");
        let core = &self.0;
        let now = clock::steady_ms();
        let nonce: [u8; 32] = field(&asked.server_nonce, "server_nonce")?;
        let transcript = core.sessions.answer(&nonce, now).ok_or_else(refused)?;
        if transcript.binding != binding {
            return Err(refused());
        }
        let caller = Caller {
            account: transcript.account,
            role: transcript.role,
            device: transcript.device,
        };
        let key = core
            .book
            .login_key(&caller.account, caller.role, &caller.device)
            .ok_or_else(refused)?;
        transcript
            .verify_login(&key, &asked.signature)
            .map_err(|_| refused())?;
        let token = entropy()?;
        if !core.sessions.admit(&token, caller, binding, now) {
            return Err(Status::unavailable("too many sessions; try again"));
        }
        let token = Bytes::copy_from_slice(&token);
        Ok(Response::new(v1::LoginResponse {
            token,
            lifetime_s: TOKEN_LIFE_S as u32,
        }))
    }

    async fn get_slot(&self, request: Request<v1::GetSlotRequest>) -> Answer<v1::GetSlotResponse> {
        let caller = caller(&self.0, &request)?;
        let (slot, key_box) = self.0.book.slot(&caller.account).map_err(book_status)?;
        Ok(Response::new(v1::GetSlotResponse { slot, key_box }))
    }

    async fn put_slot(&self, request: Request<v1::PutSlotRequest>) -> Answer<v1::PutSlotResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let proof = asked.proof.unwrap_or_default();
        let core = Arc::clone(&self.0);
        uninterrupted(async move {
            let call = Call::PutSlot {
                slot: &asked.slot,
                key_box: &asked.key_box,
                slot_generation: asked.slot_generation,
            };
            let _held = core.lock(&caller.account).await;
            let record = core
                .book
                .propose_slot(
                    &caller.account,
                    &caller.device,
                    &call,
                    proof.call_seq,
                    &proof.signature,
                )
                .map_err(book_status)?;
            core.change(&[record]).await.map_err(change_status)
        })
        .await?;
        Ok(Response::new(v1::PutSlotResponse {}))
    }

    async fn get_chain(
        &self,
        request: Request<v1::GetChainRequest>,
    ) -> Answer<v1::GetChainResponse> {
        let caller = caller(&self.0, &request)?;
        let answer = calls::chain(&self.0, &caller, request.get_ref())?;
        Ok(Response::new(answer))
    }

    async fn append_link(
        &self,
        request: Request<v1::AppendLinkRequest>,
    ) -> Answer<v1::AppendLinkResponse> {
        let caller = caller(&self.0, &request)?;
        let link = request.into_inner().link;
        let core = Arc::clone(&self.0);
        uninterrupted(async move {
            let _held = core.lock(&caller.account).await;
            let record = core
                .book
                .propose_link(&caller.account, caller.role, &link)
                .map_err(book_status)?;
            match record {
                Some(record) => core.change(&[record]).await.map_err(change_status),
                None => Ok(()),
            }
        })
        .await?;
        Ok(Response::new(v1::AppendLinkResponse {}))
    }
}

async fn register(
    core: &Core,
    asked: &v1::RegisterRequest,
    account: &AccountId,
    code: &[u8; 16],
) -> Result<(), Status> {
    let _held = core.lock(account).await;
    let proposed = core
        .book
        .propose_account(&asked.genesis, &asked.slot, &asked.key_box)
        .map_err(book_status)?;
    let Some(records) = proposed else {
        return Ok(()); // a lost answer, asked again
    };
    if !invites::take(&core.data, code, account).map_err(|error| invitations(&error))? {
        return Err(Status::permission_denied(
            "this invitation is unknown or was used already",
        ));
    }
    // Taken for this account: after a crash from here on, the same registration may come again and no other.
    core.change(&records).await.map_err(change_status)?;
    if let Err(error) = invites::spend(&core.data, code, account) {
        tracing::warn!(%error, "a used invitation stays behind");
    }
    tracing::info!(account = %&account.to_hex()[..8], "account registered");
    Ok(())
}
