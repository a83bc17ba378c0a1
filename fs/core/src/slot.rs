//! A slot: secrets sealed to a passphrase *and* a 256-bit key the server never has.
//!
//! Invariant: whoever holds a slot but not that key has nothing to guess a passphrase with; all of the clear header
//! goes into the keys, both associated data and the commitment, so none of it can be changed or swapped.
//! Called by the account flows: the login slot on the server, and the keystore on this machine. Layout: FORMAT.md,
//! "Slot".

use crate::passphrase::{ARGON2_VERSION, Argon2Cost, PassphraseError, stretch};
use crate::seal::inner::{self, InnerData};
use crate::seal::outer::OuterKey;
use crate::secret::{Secret, derive_key, hkdf};
use ed25519_dalek::SigningKey;
use sealdrive_proto::header::{COMMIT_LEN, NONCE_LEN, SUITE, TAG_LEN};
use sealdrive_proto::id::AccountId;
use sealdrive_proto::limits::MAX_SLOT;
use zeroize::Zeroizing;

/// Length of the clear header, bytes.
const HEADER: usize = 112;
const VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"SDS1";
const INNER_LABEL: &str = "sealdrive/v1/slot/inner";
/// Most payload a slot carries, bytes.
pub const MAX_PAYLOAD: usize = MAX_SLOT - HEADER - COMMIT_LEN - 2 * TAG_LEN;
/// Random bytes one sealing takes: salt16 and nonce24.
pub const ENTROPY: usize = 16 + NONCE_LEN;

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotKind {
    /// On the server; opened with passphrase and account secret key; carries the account root.
    Login = 1,
    /// On this machine; a 32-byte machine secret takes the place of the account secret key.
    Keystore = 2,
}

/// The clear header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotHeader {
    /// What it is for.
    pub kind: SlotKind,
    /// Cost of a guess.
    pub cost: Argon2Cost,
    /// Whose.
    pub account: AccountId,
    /// Generation of the account root inside.
    pub root_generation: u64,
    /// Raised with every new slot, so that an old one is not taken for the newest.
    pub slot_generation: u64,
}

/// What the opener knows beforehand; a slot that says otherwise is refused before any work is done.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// What it must be for.
    pub kind: SlotKind,
    /// Whose it must be.
    pub account: AccountId,
    /// The newest slot generation seen by this device; 0 if it has no memory.
    pub slot_generation: u64,
}

/// Why a slot does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Not a slot of the known format.
    #[error("slot is malformed")]
    Malformed,
    /// Of another account, or for another purpose.
    #[error("slot belongs to something else")]
    Foreign,
    /// Older than one this device has seen.
    #[error("slot is older than one seen before")]
    Stale,
    /// Parameters out of bounds, or no memory.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// Wrong passphrase, wrong key, or a damaged slot: which one is not said.
    #[error("wrong passphrase or key")]
    Refused,
    /// More than [`MAX_PAYLOAD`] bytes to seal.
    #[error("slot payload is too long")]
    TooLong,
}

impl SlotHeader {
    fn encode(&self, entropy: &[u8; ENTROPY]) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&[VERSION, SUITE, self.kind as u8, 0]);
        for (i, n) in [
            ARGON2_VERSION,
            self.cost.memory_kib,
            self.cost.passes,
            self.cost.lanes,
        ]
        .iter()
        .enumerate()
        {
            out[8 + 4 * i..12 + 4 * i].copy_from_slice(&n.to_le_bytes());
        }
        out[24..40].copy_from_slice(&entropy[..16]);
        out[40..72].copy_from_slice(self.account.as_bytes());
        out[72..80].copy_from_slice(&self.root_generation.to_le_bytes());
        out[80..88].copy_from_slice(&self.slot_generation.to_le_bytes());
        out[88..].copy_from_slice(&entropy[16..]);
        out
    }

    /// Reads the clear header of a slot. Nothing of it is authentic before the slot has been opened.
    pub fn parse(slot: &[u8]) -> Result<Self, SlotError> {
        let head: &[u8; HEADER] = slot.first_chunk().ok_or(SlotError::Malformed)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let kind = match head[6] {
            1 => SlotKind::Login,
            2 => SlotKind::Keystore,
            _ => return Err(SlotError::Malformed),
        };
        if head[..4] != MAGIC
            || head[4..6] != [VERSION, SUITE]
            || head[7] != 0
            || u32_at(8) != ARGON2_VERSION
        {
            return Err(SlotError::Malformed);
        }
        if slot.len() > MAX_SLOT || slot.len() < HEADER + COMMIT_LEN + 2 * TAG_LEN {
            return Err(SlotError::Malformed);
        }
        Ok(Self {
            kind,
            cost: Argon2Cost {
                memory_kib: u32_at(12),
                passes: u32_at(16),
                lanes: u32_at(20),
            },
            account: AccountId(std::array::from_fn(|i| head[40 + i])),
            root_generation: u64_at(72),
            slot_generation: u64_at(80),
        })
    }
}

/// Seals `payload` to passphrase and `ask` (the account secret key, or a machine secret). Takes a second of work.
pub fn seal_slot(
    passphrase: &str,
    ask: &Secret<32>,
    header: &SlotHeader,
    entropy: &[u8; ENTROPY],
    payload: &[u8],
) -> Result<Vec<u8>, SlotError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(SlotError::TooLong);
    }
    let clear = header.encode(entropy);
    let keys = SlotKeys::derive(passphrase, ask, header.cost, &clear)?;
    let mut slot = vec![0; HEADER + COMMIT_LEN + 2 * TAG_LEN + payload.len()];
    let (head, rest) = slot.split_at_mut(HEADER + COMMIT_LEN);
    let (sealed, tag) = rest.split_at_mut(TAG_LEN + payload.len());
    head[..HEADER].copy_from_slice(&clear);
    head[HEADER..].copy_from_slice(keys.out.commitment());
    sealed[TAG_LEN..].copy_from_slice(payload);
    inner::lock(
        &keys.siv,
        InnerData {
            label: INNER_LABEL,
            fields: &[&clear],
        },
        sealed,
    );
    tag.copy_from_slice(&keys.out.lock(nonce_of(&clear), head, sealed));
    Ok(slot)
}

/// Opens a slot, checking first what costs nothing. Takes a second of work.
pub fn open_slot(
    passphrase: &str,
    ask: &Secret<32>,
    expected: &Expected,
    slot: &[u8],
) -> Result<(SlotHeader, Zeroizing<Vec<u8>>), SlotError> {
    let header = SlotHeader::parse(slot)?;
    if header.kind != expected.kind || header.account != expected.account {
        return Err(SlotError::Foreign);
    }
    if header.slot_generation < expected.slot_generation {
        return Err(SlotError::Stale);
    }
    let (clear, rest) = slot
        .split_first_chunk::<HEADER>()
        .ok_or(SlotError::Malformed)?;
    let (commit, rest) = rest
        .split_first_chunk::<COMMIT_LEN>()
        .ok_or(SlotError::Malformed)?;
    let (body, tag) = rest
        .split_last_chunk::<TAG_LEN>()
        .ok_or(SlotError::Malformed)?;
    let keys = SlotKeys::derive(passphrase, ask, header.cost, clear)?;
    if !keys.out.is_committed_by(commit) {
        return Err(SlotError::Refused);
    }
    let mut sealed = Zeroizing::new(body.to_vec());
    let aad = &slot[..HEADER + COMMIT_LEN];
    keys.out
        .unlock(nonce_of(clear), aad, &mut sealed, tag)
        .map_err(|_| SlotError::Refused)?;
    let data = InnerData {
        label: INNER_LABEL,
        fields: &[clear],
    };
    let payload = inner::unlock(&keys.siv, data, &mut sealed).map_err(|_| SlotError::Refused)?;
    Ok((header, Zeroizing::new(payload.to_vec())))
}

fn nonce_of(clear: &[u8; HEADER]) -> &[u8; NONCE_LEN] {
    clear.last_chunk().expect("a header ends in its nonce")
}

struct SlotKeys {
    siv: Secret<64>,
    out: OuterKey,
}

impl SlotKeys {
    fn derive(
        passphrase: &str,
        ask: &Secret<32>,
        cost: Argon2Cost,
        clear: &[u8; HEADER],
    ) -> Result<Self, SlotError> {
        let salt = std::array::from_fn(|i| clear[24 + i]);
        let pw = stretch(passphrase, &salt, cost)?;
        let (pw_in, pw_out) = pw.expose().split_at(32);
        let ikm = Zeroizing::new([pw_in, ask.expose()].concat());
        let root = derive_key("sealdrive 2026 v1 kek outer", &[pw_out, ask.expose()]);
        Ok(Self {
            siv: hkdf(clear, &ikm, &[b"sealdrive/v1/kek/inner"]),
            out: OuterKey::derive(&root, clear),
        })
    }
}

/// The root of an account: what the login slot carries and what the domains' key boxes are sealed under.
pub struct AccountRoot {
    pub(crate) a_in: Secret<32>,
    pub(crate) a_out: Secret<32>,
    generation: u64,
}

impl AccountRoot {
    /// From 64 random bytes, or from a slot's payload: `A_in ‖ A_out`.
    pub fn from_bytes(bytes: &[u8; 64], generation: u64) -> Self {
        let (mut a_in, mut a_out) = (Secret::zeroed(), Secret::zeroed());
        a_in.expose_mut().copy_from_slice(&bytes[..32]);
        a_out.expose_mut().copy_from_slice(&bytes[32..]);
        Self {
            a_in,
            a_out,
            generation,
        }
    }

    /// `A_in ‖ A_out`, for a slot or a box.
    pub fn to_bytes(&self) -> Secret<64> {
        let mut out = Secret::zeroed();
        out.expose_mut()[..32].copy_from_slice(self.a_in.expose());
        out.expose_mut()[32..].copy_from_slice(self.a_out.expose());
        out
    }

    /// Counts the roots an account has had.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The key that may only sign add-device links.
    /// It is not bound to the account id, which hashes the link that carries this key's public half.
    pub fn enrol_key(&self) -> SigningKey {
        let ikm = self.to_bytes();
        let seed: Secret<32> = hkdf(
            &[],
            ikm.expose(),
            &[b"sealdrive/v1/enrol", &self.generation.to_le_bytes()],
        );
        SigningKey::from_bytes(seed.expose())
    }
}

/// The key that may only read the slot and the account chain, from the account secret key alone: what a machine with
/// nothing but the kit starts from.
pub fn slot_fetch_key(ask: &Secret<32>) -> SigningKey {
    let seed: Secret<32> = hkdf(&[], ask.expose(), &[b"sealdrive/v1/slot-fetch"]);
    SigningKey::from_bytes(seed.expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SlotHeader {
        SlotHeader {
            kind: SlotKind::Login,
            cost: Argon2Cost::FLOOR,
            account: AccountId([4; 32]),
            root_generation: 1,
            slot_generation: 5,
        }
    }

    fn expected() -> Expected {
        Expected {
            kind: SlotKind::Login,
            account: AccountId([4; 32]),
            slot_generation: 5,
        }
    }

    fn sealed() -> Vec<u8> {
        seal_slot(
            "correct horse",
            &Secret::copy_of(&[8; 32]),
            &header(),
            &[9; ENTROPY],
            &[1; 64],
        )
        .expect("seals")
    }

    fn open(
        passphrase: &str,
        ask: u8,
        expected: &Expected,
        slot: &[u8],
    ) -> Result<Vec<u8>, SlotError> {
        open_slot(passphrase, &Secret::copy_of(&[ask; 32]), expected, slot)
            .map(|(_, payload)| payload.to_vec())
    }

    #[test]
    fn opens_with_both_secrets_only() {
        let slot = sealed();
        assert_eq!(slot.len(), 112 + 32 + 16 + 64 + 16);
        assert_eq!(
            open("correct horse", 8, &expected(), &slot),
            Ok(vec![1; 64])
        );
        assert_eq!(
            open("correct horsf", 8, &expected(), &slot),
            Err(SlotError::Refused)
        );
        assert_eq!(
            open("correct horse", 7, &expected(), &slot),
            Err(SlotError::Refused)
        );
    }

    /// Everything wrong with the clear header is said before a second of Argon2 is spent (and this test would take
    /// minutes if it were not), except bytes that only the keys can judge.
    #[test]
    fn the_header_is_checked_first() {
        let slot = sealed();
        let with = |at: usize, byte: u8| {
            let mut bad = slot.clone();
            bad[at] = byte;
            open("correct horse", 8, &expected(), &bad)
        };
        for at in [0, 1, 2, 3, 4, 5, 7, 8, 11] {
            assert_eq!(with(at, 0xff), Err(SlotError::Malformed), "byte {at}");
        }
        assert_eq!(with(6, 3), Err(SlotError::Malformed));
        assert_eq!(
            with(6, 2),
            Err(SlotError::Foreign),
            "a keystore slot in place of the login slot"
        );
        assert_eq!(with(40, 5), Err(SlotError::Foreign));
        assert_eq!(with(80, 4), Err(SlotError::Stale));
        assert_eq!(
            with(14, 0),
            Err(SlotError::Passphrase(PassphraseError::Cost)),
            "weak memory cost"
        );
        assert_eq!(
            with(15, 1),
            Err(SlotError::Passphrase(PassphraseError::Cost)),
            "16 GiB"
        );
        assert_eq!(
            with(16, 1),
            Err(SlotError::Passphrase(PassphraseError::Cost)),
            "one pass"
        );
        assert_eq!(
            open("", 8, &expected(), &slot[..100]),
            Err(SlotError::Malformed)
        );
        assert_eq!(
            open("", 8, &expected(), &[&slot[..], &[0; 1024]].concat()),
            Err(SlotError::Malformed)
        );
    }

    /// One byte of every field behind the free checks.
    #[test]
    fn the_rest_is_authenticated() {
        let slot = sealed();
        for at in [24, 72, 87, 88, 111, 112, 143, 144, 160, slot.len() - 1] {
            let mut bad = slot.clone();
            bad[at] ^= 0x80;
            assert_eq!(
                open("correct horse", 8, &expected(), &bad),
                Err(SlotError::Refused),
                "byte {at}"
            );
        }
    }

    /// Neither cipher commits to its key, so a slot could be made that opens under two passphrases and tells which
    /// one was tried. Here both ciphers would open and only the commitment is another one.
    #[test]
    fn the_commitment_decides() {
        let mut slot = sealed();
        let clear: [u8; HEADER] = *slot.first_chunk().expect("header");
        let ask = Secret::copy_of(&[8; 32]);
        let Ok(keys) = SlotKeys::derive("correct horse", &ask, Argon2Cost::FLOOR, &clear) else {
            panic!("derives");
        };
        let (head, rest) = slot.split_at_mut(HEADER + COMMIT_LEN);
        let (body, tag) = rest.split_last_chunk_mut::<TAG_LEN>().expect("tag");
        keys.out
            .unlock(nonce_of(&clear), head, body, tag)
            .expect("own key");
        head[HEADER] ^= 1;
        *tag = keys.out.lock(nonce_of(&clear), head, body);
        assert_eq!(
            open("correct horse", 8, &expected(), &slot),
            Err(SlotError::Refused)
        );
    }

    #[test]
    fn derived_signing_keys_are_apart() {
        let root = AccountRoot::from_bytes(&[3; 64], 1);
        assert_ne!(
            root.enrol_key().to_bytes(),
            AccountRoot::from_bytes(&[3; 64], 2).enrol_key().to_bytes()
        );
        assert_ne!(
            root.enrol_key().to_bytes(),
            slot_fetch_key(&Secret::copy_of(&[3; 32])).to_bytes()
        );
        assert_eq!(
            AccountRoot::from_bytes(root.to_bytes().expose(), 1)
                .enrol_key()
                .to_bytes(),
            root.enrol_key().to_bytes()
        );
    }
}
