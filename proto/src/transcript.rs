//! What is signed to log in and to order a change: byte strings, and nothing else. FORMAT.md, "Login and signed calls".
//!
//! Invariant: every string starts with its own label, names both identities, and (for a login) the connection, so a
//! signature made for one purpose, server, account or connection is worth nothing for another.
//! Called by the client's remote door and by the server's account service.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::id::{AccountId, DeviceId, DriveId};

const HELLO: &[u8] = b"sealdrive/v1/hello\0";
const LOGIN: &[u8] = b"sealdrive/v1/login\0";
const CALL: &[u8] = b"sealdrive/v1/call\0";
const VERSION: u8 = 1;

/// Label of the TLS exporter (RFC 8446 §7.5) that binds a login to its connection; empty context, 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-sealdrive-auth";
/// Metadata entry that carries the session token.
pub const TOKEN_METADATA: &str = "sealdrive-token-bin";

/// The signature does not hold, or is not 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signature does not hold")]
pub struct BadSignature;

/// Which key logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// A device of the account's chain: may do what the account may.
    Device = 1,
    /// The key derived from the account secret key: may read the slot and the chain, and append an add-device link.
    SlotFetch = 2,
}

/// The connection a login is bound to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// TLS 1.3: the exporter of this very connection.
    Tls([u8; 32]),
    /// Plaintext on loopback, where there is no connection key to bind to.
    Loopback,
}

impl Binding {
    fn encode(&self, out: &mut Vec<u8>) {
        let (exporter, byte) = match self {
            Self::Tls(exporter) => (*exporter, 1),
            Self::Loopback => ([0; 32], 0),
        };
        out.extend_from_slice(&exporter);
        out.push(byte);
    }
}

/// All that both sides of a login agree on. The server signs it under the hello label, the client under the login
/// label.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginTranscript {
    /// Who logs in.
    pub account: AccountId,
    /// With which key.
    pub role: Role,
    /// The device; zeros for `Role::SlotFetch`.
    pub device: DeviceId,
    /// Drawn by the client for this login.
    pub client_nonce: [u8; 32],
    /// Drawn by the server for this login; lives `limits::CHALLENGE_LIFE_S`.
    pub server_nonce: [u8; 32],
    /// The server's pinned identity.
    pub server_pk: [u8; 32],
    /// The connection.
    pub binding: Binding,
    /// The server's clock, milliseconds since 1970.
    pub server_time_ms: u64,
}

impl LoginTranscript {
    fn bytes(&self, label: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(label);
        out.push(VERSION);
        out.extend_from_slice(self.account.as_bytes());
        out.push(self.role as u8);
        out.extend_from_slice(self.device.as_bytes());
        out.extend_from_slice(&self.client_nonce);
        out.extend_from_slice(&self.server_nonce);
        out.extend_from_slice(&self.server_pk);
        self.binding.encode(&mut out);
        out.extend_from_slice(&self.server_time_ms.to_le_bytes());
        out
    }

    /// The server's answer to Hello.
    pub fn sign_hello(&self, server: &SigningKey) -> [u8; 64] {
        server.sign(&self.bytes(HELLO)).to_bytes()
    }

    /// Checked by the client before it signs anything: this is the pinned server, on this connection, now.
    pub fn verify_hello(&self, signature: &[u8]) -> Result<(), BadSignature> {
        let server = VerifyingKey::from_bytes(&self.server_pk).map_err(|_| BadSignature)?;
        verify(&server, &self.bytes(HELLO), signature)
    }

    /// The client's proof.
    pub fn sign_login(&self, key: &SigningKey) -> [u8; 64] {
        key.sign(&self.bytes(LOGIN)).to_bytes()
    }

    /// Checked by the server against the key its copy of the account chain names.
    pub fn verify_login(&self, key: &VerifyingKey, signature: &[u8]) -> Result<(), BadSignature> {
        verify(key, &self.bytes(LOGIN), signature)
    }
}

/// A call that changes what is not content: signed on its own, so that a stolen token cannot make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call<'a> {
    /// `DriveService.AcquireLease`.
    AcquireLease {
        /// The drive to write.
        drive: DriveId,
        /// Fence the present holder.
        take_over: bool,
        /// Epoch to renew, 0 for a new lease.
        held_epoch: u64,
    },
    /// `DriveService.ReleaseLease`.
    ReleaseLease {
        /// The drive.
        drive: DriveId,
        /// Epoch given back.
        lease_epoch: u64,
    },
    /// `AccountService.PutSlot`.
    PutSlot {
        /// New login slot.
        slot: &'a [u8],
        /// New key box.
        key_box: &'a [u8],
        /// Its generation.
        slot_generation: u64,
    },
}

/// Who makes a signed call, where, and under which number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The server's identity: a proof for one server is none for another.
    pub server_pk: [u8; 32],
    /// The account.
    pub account: AccountId,
    /// The device that signs.
    pub device: DeviceId,
    /// Rises with every call of this device; the server keeps the highest it has seen.
    pub call_seq: u64,
}

impl Call<'_> {
    fn bytes(&self, caller: &Caller) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(CALL);
        out.push(VERSION);
        out.extend_from_slice(&caller.server_pk);
        out.extend_from_slice(caller.account.as_bytes());
        out.extend_from_slice(caller.device.as_bytes());
        out.extend_from_slice(&caller.call_seq.to_le_bytes());
        match self {
            Self::AcquireLease {
                drive,
                take_over,
                held_epoch,
            } => {
                out.push(1);
                out.extend_from_slice(drive.as_bytes());
                out.push(u8::from(*take_over));
                out.extend_from_slice(&held_epoch.to_le_bytes());
            }
            Self::ReleaseLease { drive, lease_epoch } => {
                out.push(2);
                out.extend_from_slice(drive.as_bytes());
                out.extend_from_slice(&lease_epoch.to_le_bytes());
            }
            Self::PutSlot {
                slot,
                key_box,
                slot_generation,
            } => {
                out.push(3);
                out.extend_from_slice(blake3::hash(slot).as_bytes());
                out.extend_from_slice(blake3::hash(key_box).as_bytes());
                out.extend_from_slice(&slot_generation.to_le_bytes());
            }
        }
        out
    }

    /// Signs the call with the device key.
    pub fn sign(&self, caller: &Caller, key: &SigningKey) -> [u8; 64] {
        key.sign(&self.bytes(caller)).to_bytes()
    }

    /// Checks the proof that came with the call.
    pub fn verify(
        &self,
        caller: &Caller,
        key: &VerifyingKey,
        signature: &[u8],
    ) -> Result<(), BadSignature> {
        verify(key, &self.bytes(caller), signature)
    }
}

fn verify(key: &VerifyingKey, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    let signature = Signature::from_slice(signature).map_err(|_| BadSignature)?;
    key.verify_strict(message, &signature)
        .map_err(|_| BadSignature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn transcript() -> LoginTranscript {
        LoginTranscript {
            account: AccountId([1; 32]),
            role: Role::Device,
            device: DeviceId([2; 16]),
            client_nonce: [3; 32],
            server_nonce: [4; 32],
            server_pk: key(9).verifying_key().to_bytes(),
            binding: Binding::Tls([5; 32]),
            server_time_ms: 6,
        }
    }

    fn variations() -> Vec<LoginTranscript> {
        let t = transcript;
        vec![
            LoginTranscript {
                account: AccountId([0; 32]),
                ..t()
            },
            LoginTranscript {
                role: Role::SlotFetch,
                ..t()
            },
            LoginTranscript {
                device: DeviceId([0; 16]),
                ..t()
            },
            LoginTranscript {
                client_nonce: [0; 32],
                ..t()
            },
            LoginTranscript {
                server_nonce: [0; 32],
                ..t()
            },
            LoginTranscript {
                binding: Binding::Tls([0; 32]),
                ..t()
            },
            LoginTranscript {
                binding: Binding::Loopback,
                ..t()
            },
            LoginTranscript {
                server_time_ms: 0,
                ..t()
            },
        ]
    }

    #[test]
    fn a_login_holds_for_exactly_its_transcript() {
        let device = key(1);
        let signature = transcript().sign_login(&device);
        transcript()
            .verify_login(&device.verifying_key(), &signature)
            .unwrap();
        assert!(
            transcript()
                .verify_login(&key(2).verifying_key(), &signature)
                .is_err()
        );
        let other_server = LoginTranscript {
            server_pk: key(8).verifying_key().to_bytes(),
            ..transcript()
        };
        for other in variations().into_iter().chain([other_server]) {
            assert!(
                other
                    .verify_login(&device.verifying_key(), &signature)
                    .is_err()
            );
        }
    }

    #[test]
    fn a_hello_holds_for_exactly_its_transcript_and_is_no_login() {
        let server = key(9);
        let signature = transcript().sign_hello(&server);
        transcript().verify_hello(&signature).unwrap();
        assert!(
            transcript()
                .verify_login(&server.verifying_key(), &signature)
                .is_err()
        );
        assert!(transcript().verify_hello(&signature[..63]).is_err());
        for other in variations() {
            assert!(other.verify_hello(&signature).is_err());
        }
    }

    #[test]
    fn an_all_zero_exporter_is_not_loopback() {
        let zero = LoginTranscript {
            binding: Binding::Tls([0; 32]),
            ..transcript()
        };
        let loopback = LoginTranscript {
            binding: Binding::Loopback,
            ..transcript()
        };
        assert_ne!(zero.bytes(LOGIN), loopback.bytes(LOGIN));
    }

    #[test]
    fn a_call_holds_for_exactly_its_fields_and_number() {
        let caller = Caller {
            server_pk: [1; 32],
            account: AccountId([2; 32]),
            device: DeviceId([3; 16]),
            call_seq: 4,
        };
        let drive = DriveId([5; 32]);
        let call = Call::AcquireLease {
            drive,
            take_over: false,
            held_epoch: 6,
        };
        let signature = call.sign(&caller, &key(1));
        let public = key(1).verifying_key();
        call.verify(&caller, &public, &signature).unwrap();
        for other in [
            Call::AcquireLease {
                drive,
                take_over: true,
                held_epoch: 6,
            },
            Call::AcquireLease {
                drive,
                take_over: false,
                held_epoch: 7,
            },
            Call::AcquireLease {
                drive: DriveId([0; 32]),
                take_over: false,
                held_epoch: 6,
            },
            Call::ReleaseLease {
                drive,
                lease_epoch: 6,
            },
            Call::PutSlot {
                slot: b"a",
                key_box: b"b",
                slot_generation: 6,
            },
        ] {
            assert!(other.verify(&caller, &public, &signature).is_err());
        }
        for other in [
            Caller {
                server_pk: [0; 32],
                ..caller.clone()
            },
            Caller {
                account: AccountId([0; 32]),
                ..caller.clone()
            },
            Caller {
                device: DeviceId([0; 16]),
                ..caller.clone()
            },
            Caller {
                call_seq: 5,
                ..caller.clone()
            },
        ] {
            assert!(call.verify(&other, &public, &signature).is_err());
        }
    }
}
