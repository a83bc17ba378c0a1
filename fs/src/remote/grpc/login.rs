//! Who we are and who the server is: Hello, Login, and proofs over single calls (FORMAT.md, "Login and signed calls").
//!
//! Invariant: nothing is signed before the server's signature over this very connection was checked under the
//! identity key of the connect string; that check alone authenticates the server when no certificate is pinned yet.
//! Called by `session`.

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sealdrive_proto::id::{AccountId, DeviceId};
use sealdrive_proto::limits::TOKEN_LIFE_S;
use sealdrive_proto::transcript::{Binding, Call, Caller, LoginTranscript, Role};
use sealdrive_proto::v1;
use tonic::transport::Channel;

use super::session::within;
use super::{Server, accounts};
use crate::clock;
use crate::remote::RemoteError;

/// A key of an account, and what it is to the server.
pub struct Identity {
    account: AccountId,
    role: Role,
    device: DeviceId,
    key: SigningKey,
}

impl Identity {
    /// A device of the account's chain.
    pub fn device(account: AccountId, key: SigningKey) -> Self {
        let device = DeviceId::of(&key.verifying_key());
        Self {
            account,
            role: Role::Device,
            device,
            key,
        }
    }

    /// The key that the kit gives: may read slot and chain, and add a device.
    pub fn slot_fetch(account: AccountId, key: SigningKey) -> Self {
        Self {
            account,
            role: Role::SlotFetch,
            device: DeviceId([0; 16]),
            key,
        }
    }

    /// Proof that this device orders this call.
    pub(super) fn prove(&self, server: &Server, call: &Call<'_>, call_seq: u64) -> v1::CallProof {
        let caller = Caller {
            server_pk: server.server_pk,
            account: self.account,
            device: self.device,
            call_seq,
        };
        let signature = Bytes::copy_from_slice(&call.sign(&caller, &self.key));
        v1::CallProof {
            call_seq,
            signature,
        }
    }
}

/// A session token, good on one connection.
pub(super) struct Granted {
    pub(super) token: Bytes,
    pub(super) lifetime: Duration,
}

/// First half: the server proves its identity on this connection.
pub(super) async fn hello(
    channel: Channel,
    server: &Server,
    identity: &Identity,
    binding: Binding,
) -> Result<LoginTranscript, RemoteError> {
    let client_nonce: [u8; 32] =
        clock::entropy().map_err(|error| RemoteError::Refused(error.to_string()))?;
    let device = match identity.role {
        Role::Device => Bytes::copy_from_slice(identity.device.as_bytes()),
        Role::SlotFetch => Bytes::new(),
    };
    let role = match identity.role {
        Role::Device => v1::KeyRole::Device,
        Role::SlotFetch => v1::KeyRole::SlotFetch,
    };
    let request = v1::HelloRequest {
        account: Bytes::copy_from_slice(identity.account.as_bytes()),
        role: role.into(),
        device,
        client_nonce: Bytes::copy_from_slice(&client_nonce),
    };
    let answer = within(async { accounts(channel).hello(request).await })
        .await?
        .into_inner();
    let server_nonce = answer.server_nonce.as_ref().try_into().map_err(|_| {
        RemoteError::Tampered("the server's greeting has the wrong shape".to_owned())
    })?;
    let transcript = LoginTranscript {
        account: identity.account,
        role: identity.role,
        device: identity.device,
        client_nonce,
        server_nonce,
        server_pk: server.server_pk,
        binding,
        server_time_ms: answer.server_time_ms,
    };
    transcript.verify_hello(&answer.signature).map_err(|_| {
        RemoteError::WrongServer(format!(
            "{} does not hold the server's identity key",
            server.addr
        ))
    })?;
    Ok(transcript)
}

/// Both halves: a token.
pub(super) async fn login(
    channel: Channel,
    server: &Server,
    identity: &Identity,
    binding: Binding,
) -> Result<Granted, RemoteError> {
    let transcript = hello(channel.clone(), server, identity, binding).await?;
    let request = v1::LoginRequest {
        server_nonce: Bytes::copy_from_slice(&transcript.server_nonce),
        signature: Bytes::copy_from_slice(&transcript.sign_login(&identity.key)),
    };
    let answer = within(async { accounts(channel).login(request).await })
        .await?
        .into_inner();
    // Never longer than the protocol says: a server that forgets its own rule would make us miss renewals.
    let seconds = u64::from(answer.lifetime_s).min(TOKEN_LIFE_S);
    Ok(Granted {
        token: answer.token,
        lifetime: Duration::from_secs(seconds),
    })
}
