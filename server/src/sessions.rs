//! Who is logged in: challenges that wait for their answer, and tokens in force.
//!
//! Invariant: a challenge is answered once and dies after `CHALLENGE_LIFE_S`; a token is good on the connection it was
//! issued on, for `TOKEN_LIFE_S`, and stands here as a hash only. Both tables are bounded. Called by the services.

use std::collections::HashMap;
use std::sync::PoisonError;

use sealdrive_proto::id::{AccountId, DeviceId};
use sealdrive_proto::limits::{CHALLENGE_LIFE_S, TOKEN_LIFE_S};
use sealdrive_proto::transcript::{Binding, LoginTranscript, Role};
use sealdrive_runtime::sync::Mutex;

/// Challenges that may wait at once: a flood of hellos costs at most this many small entries.
const MAX_CHALLENGES: usize = 20_000;
/// Tokens in force at once.
const MAX_TOKENS: usize = 200_000;

/// Somebody who logged in. Only this room makes one, so holding it is the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The account.
    pub account: AccountId,
    /// What the key may do.
    pub role: Role,
    /// The device; zeros for the slot-fetch key.
    pub device: DeviceId,
}

struct Challenge {
    transcript: LoginTranscript,
    expires_ms: u64,
}

struct Token {
    caller: Caller,
    binding: Binding,
    expires_ms: u64,
}

/// Both tables.
#[derive(Default)]
pub struct Sessions {
    challenges: Mutex<HashMap<[u8; 32], Challenge>>,
    tokens: Mutex<HashMap<[u8; 32], Token>>,
}

fn hashed(token: &[u8]) -> [u8; 32] {
    *blake3::hash(token).as_bytes()
}

impl Sessions {
    /// Remembers a challenge. False if too many wait.
    pub fn challenge(&self, transcript: LoginTranscript, now_ms: u64) -> bool {
        let mut waiting = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_CHALLENGES {
            waiting.retain(|_, challenge| challenge.expires_ms > now_ms);
        }
        if waiting.len() >= MAX_CHALLENGES {
            return false;
        }
        let expires_ms = now_ms + CHALLENGE_LIFE_S * 1000;
        waiting.insert(
            transcript.server_nonce,
            Challenge {
                transcript,
                expires_ms,
            },
        );
        true
    }

    /// Takes a challenge out: whatever comes of it, it is used up.
    pub fn answer(&self, server_nonce: &[u8; 32], now_ms: u64) -> Option<LoginTranscript> {
        let mut waiting = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let challenge = waiting.remove(server_nonce)?;
        (challenge.expires_ms > now_ms).then_some(challenge.transcript)
    }

    /// Puts a token in force. False if there are too many.
    pub fn admit(&self, token: &[u8; 32], caller: Caller, binding: Binding, now_ms: u64) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, token| token.expires_ms > now_ms);
        }
        if tokens.len() >= MAX_TOKENS {
            return false;
        }
        let expires_ms = now_ms + TOKEN_LIFE_S * 1000;
        tokens.insert(
            hashed(token),
            Token {
                caller,
                binding,
                expires_ms,
            },
        );
        true
    }

    /// Who comes with this token on this connection.
    pub fn caller(&self, token: &[u8], binding: &Binding, now_ms: u64) -> Option<Caller> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let found = tokens.get(&hashed(token))?;
        (found.expires_ms > now_ms && found.binding == *binding).then_some(found.caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_on_its_connection_for_its_life() {
        let sessions = Sessions::default();
        let caller = Caller {
            account: AccountId([1; 32]),
            role: Role::Device,
            device: DeviceId([2; 16]),
        };
        let here = Binding::Tls([3; 32]);
        assert!(sessions.admit(&[4; 32], caller, here, 1000));
        let life = TOKEN_LIFE_S * 1000;
        assert_eq!(
            sessions.caller(&[4; 32], &Binding::Tls([3; 32]), 1000 + life - 1),
            Some(caller)
        );
        assert_eq!(
            sessions.caller(&[4; 32], &Binding::Tls([3; 32]), 1000 + life),
            None,
            "run out"
        );
        assert_eq!(
            sessions.caller(&[4; 32], &Binding::Tls([9; 32]), 1000),
            None,
            "another connection"
        );
        assert_eq!(
            sessions.caller(&[5; 32], &Binding::Tls([3; 32]), 1000),
            None,
            "made up"
        );
    }

    #[test]
    fn a_challenge_is_answered_once_and_in_time() {
        let sessions = Sessions::default();
        let transcript = |n| LoginTranscript {
            account: AccountId([1; 32]),
            role: Role::Device,
            device: DeviceId([2; 16]),
            client_nonce: [3; 32],
            server_nonce: [n; 32],
            server_pk: [5; 32],
            binding: Binding::Loopback,
            server_time_ms: 0,
        };
        assert!(sessions.challenge(transcript(1), 0) && sessions.challenge(transcript(2), 0));
        assert!(sessions.answer(&[1; 32], 1).is_some());
        assert!(sessions.answer(&[1; 32], 1).is_none(), "answered twice");
        assert!(
            sessions.answer(&[2; 32], CHALLENGE_LIFE_S * 1000).is_none(),
            "too late"
        );
    }
}
