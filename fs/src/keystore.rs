//! The keystore: every key this machine holds, in one sealed file beside a 32-byte machine secret.
//!
//! Invariant: opens only with the machine secret, and with the passphrase as well if it was made to ask for one;
//! any changed byte is refused. The types here have no `Debug` and wipe what they hold. Called by the account flows.
//!
//! File: `"SDKS" ‖ version u8 ‖ 0×3 ‖ slot length u16 ‖ slot ‖ record`. The slot (kind 2, FORMAT.md "Slot") carries 64
//! random bytes; the record, sealed under them as a local record with everything before it as its header, the keys.

use sealdrive_core::key_box::BoxError;
use sealdrive_core::keys::{BadSecrets, DomainSecrets};
use sealdrive_core::local::LocalKeys;
use sealdrive_core::passphrase::Argon2Cost;
use sealdrive_core::secret::Secret;
use sealdrive_core::slot::{
    AccountRoot, ENTROPY, Expected, SlotError, SlotHeader, SlotKind, seal_slot,
};
use sealdrive_proto::SigningKey;
use sealdrive_proto::id::{AccountId, DriveId};
use zeroize::{Zeroize, Zeroizing};

use crate::unlock::{UnlockError, Where};

/// Name of the sealed file in the home directory.
pub const FILE: &str = "keystore";
/// Name of the machine secret in the home directory.
pub const MACHINE_SECRET: &str = "machine-secret";
/// Longest name of a drive, bytes.
pub const MAX_NAME: usize = 64;

const MAGIC: [u8; 8] = *b"SDKS\x01\0\0\0";
const PAYLOAD_VERSION: u8 = 1;
/// Drives one machine may know: each costs a hundred bytes of a file that is rewritten whole.
const MAX_DRIVES: usize = 1000;

/// What is wrong with a keystore.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// Wrong passphrase or machine secret, or a damaged slot.
    #[error(transparent)]
    Unlock(#[from] UnlockError),
    /// The bytes are not a keystore, or were changed.
    #[error("the keystore is damaged")]
    Damaged,
}

impl From<SlotError> for KeystoreError {
    fn from(error: SlotError) -> Self {
        Self::Unlock(error.into())
    }
}

impl From<BadSecrets> for KeystoreError {
    fn from(_: BadSecrets) -> Self {
        Self::Damaged
    }
}

impl From<BoxError> for KeystoreError {
    fn from(_: BoxError) -> Self {
        Self::Damaged
    }
}

/// One drive as this machine knows it.
pub struct DriveKeys {
    /// Which.
    pub drive: DriveId,
    /// What its user calls it.
    pub name: String,
    /// Two random roots of its local records, made on this machine.
    pub local: Secret<64>,
}

impl DriveKeys {
    /// The keys of its journal, checkpoints and pins.
    pub fn local_keys(&self) -> LocalKeys {
        let (root_in, root_out) = self.local.expose().split_at(32);
        let half = |bytes: &[u8]| Zeroizing::new(std::array::from_fn::<u8, 32, _>(|i| bytes[i]));
        LocalKeys::derive(&half(root_in), &half(root_out))
    }
}

/// Everything an enrolled machine holds.
pub struct Keystore {
    /// The account secret key, as on the kit.
    pub ask: Secret<32>,
    /// The account root.
    pub root: AccountRoot,
    /// Seed of this device's signing key.
    pub device_seed: Secret<32>,
    /// Secrets of the private domain.
    pub secrets: DomainSecrets,
    /// The drives.
    pub drives: Vec<DriveKeys>,
}

/// The randomness of one sealing.
pub struct SealEntropy {
    /// Roots the record is sealed under.
    pub roots: [u8; 64],
    /// Salt and nonce of the slot.
    pub slot: [u8; ENTROPY],
}

impl Drop for SealEntropy {
    fn drop(&mut self) {
        self.roots.zeroize();
    }
}

impl Keystore {
    /// Seals everything. `passphrase` is empty for a keystore that opens with the machine secret alone.
    pub fn seal(
        &self,
        account: AccountId,
        machine_secret: &Secret<32>,
        passphrase: &str,
        entropy: &SealEntropy,
    ) -> Result<Vec<u8>, KeystoreError> {
        // A 256-bit secret needs no stretching; a passphrase does.
        let cost = if passphrase.is_empty() {
            Argon2Cost::FLOOR
        } else {
            Argon2Cost::DEFAULT
        };
        let header = SlotHeader {
            kind: SlotKind::Keystore,
            cost,
            account,
            root_generation: self.root.generation(),
            slot_generation: 1,
        };
        let slot = seal_slot(
            passphrase,
            machine_secret,
            &header,
            &entropy.slot,
            &entropy.roots,
        )?;
        let mut file = Vec::with_capacity(2048);
        file.extend_from_slice(&MAGIC);
        file.extend_from_slice(
            &u16::try_from(slot.len())
                .map_err(|_| SlotError::TooLong)?
                .to_le_bytes(),
        );
        file.extend_from_slice(&slot);
        let record = roots(&entropy.roots).seal_record(&file, 0, &self.encode());
        file.extend_from_slice(&record);
        Ok(file)
    }

    /// Opens a sealed keystore.
    pub fn open(
        file: &[u8],
        account: AccountId,
        machine_secret: &Secret<32>,
        passphrase: &str,
        place: &Where,
    ) -> Result<Self, KeystoreError> {
        let (head, rest) = file
            .split_first_chunk::<10>()
            .ok_or(KeystoreError::Damaged)?;
        let slot_len = usize::from(u16::from_le_bytes([head[8], head[9]]));
        if head[..8] != MAGIC || rest.len() < slot_len {
            return Err(KeystoreError::Damaged);
        }
        let (clear, record) = file.split_at(10 + slot_len);
        let expected = Expected {
            kind: SlotKind::Keystore,
            account,
            slot_generation: 1,
        };
        let (header, opened) = place.open(passphrase, machine_secret, &expected, &clear[10..])?;
        let opened: &[u8; 64] = opened
            .as_slice()
            .try_into()
            .map_err(|_| KeystoreError::Damaged)?;
        let payload = roots(opened)
            .open_record(clear, 0, record)
            .map_err(|_| KeystoreError::Damaged)?;
        Self::decode(&payload, header.root_generation)
    }

    /// The drive with this name, or the only one if none is named.
    pub fn drive(&self, name: Option<&str>) -> Option<&DriveKeys> {
        match name {
            Some(name) => self.drives.iter().find(|drive| drive.name == name),
            None => match self.drives.as_slice() {
                [only] => Some(only),
                _ => None,
            },
        }
    }

    /// This device's signing key.
    pub fn signing_key(&self) -> SigningKey {
        SigningKey::from_bytes(self.device_seed.expose())
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let root = self.root.to_bytes();
        let secrets = self.secrets.encode();
        let size = 200 + secrets.len() + self.drives.len() * (32 + 64 + 1 + MAX_NAME);
        // Reserved whole: growing would leave copies of keys behind.
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        out.push(PAYLOAD_VERSION);
        for key in [self.ask.expose(), self.device_seed.expose()] {
            out.extend_from_slice(key);
        }
        out.extend_from_slice(root.expose());
        out.extend_from_slice(&(secrets.len() as u32).to_le_bytes());
        out.extend_from_slice(&secrets);
        assert!(
            self.drives.len() <= MAX_DRIVES,
            "drives are added one at a time, under this bound"
        );
        out.extend_from_slice(&(self.drives.len() as u16).to_le_bytes());
        for drive in &self.drives {
            assert!(
                drive.name.len() <= MAX_NAME,
                "names are parsed where they are typed"
            );
            out.extend_from_slice(drive.drive.as_bytes());
            out.extend_from_slice(drive.local.expose());
            out.push(drive.name.len() as u8);
            out.extend_from_slice(drive.name.as_bytes());
        }
        out
    }

    fn decode(payload: &[u8], root_generation: u64) -> Result<Self, KeystoreError> {
        let mut from = Reader(payload);
        if from.array::<1>()? != [PAYLOAD_VERSION] {
            return Err(KeystoreError::Damaged);
        }
        let (ask, device_seed) = (from.secret()?, from.secret()?);
        let root: Secret<64> = from.secret()?;
        let root = AccountRoot::from_bytes(root.expose(), root_generation);
        let len = u32::from_le_bytes(from.array()?) as usize;
        let secrets = DomainSecrets::decode(from.bytes(len)?)?;
        let count = usize::from(u16::from_le_bytes(from.array()?));
        let drives = (0..count.min(MAX_DRIVES + 1)).map(|_| {
            let drive = DriveId(from.array()?);
            let local = from.secret()?;
            let [len] = from.array()?;
            let name = from.bytes(usize::from(len))?;
            let name = String::from_utf8(name.to_vec()).map_err(|_| KeystoreError::Damaged)?;
            Ok(DriveKeys { drive, name, local })
        });
        let drives = drives.collect::<Result<Vec<_>, KeystoreError>>()?;
        if !from.0.is_empty() {
            return Err(KeystoreError::Damaged);
        }
        Ok(Self {
            ask,
            root,
            device_seed,
            secrets,
            drives,
        })
    }
}

fn roots(bytes: &[u8; 64]) -> LocalKeys {
    let half = |from: usize| Zeroizing::new(std::array::from_fn::<u8, 32, _>(|i| bytes[from + i]));
    LocalKeys::derive(&half(0), &half(32))
}

/// Takes fields off the front of opened bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], KeystoreError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(KeystoreError::Damaged)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], KeystoreError> {
        let bytes = self.bytes(N)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn secret<const N: usize>(&mut self) -> Result<Secret<N>, KeystoreError> {
        let bytes: &[u8; N] = self
            .bytes(N)?
            .try_into()
            .map_err(|_| KeystoreError::Damaged)?;
        Ok(Secret::copy_of(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keystore() -> Keystore {
        let drive = |n: u8, name: &str| DriveKeys {
            drive: DriveId([n; 32]),
            name: name.to_owned(),
            local: Secret::copy_of(&[n; 64]),
        };
        Keystore {
            ask: Secret::copy_of(&[1; 32]),
            root: AccountRoot::from_bytes(&[2; 64], 3),
            device_seed: Secret::copy_of(&[4; 32]),
            secrets: DomainSecrets::from_entropy(&[6; 128]),
            drives: vec![drive(7, "laptop"), drive(8, "photos")],
        }
    }

    const ACCOUNT: AccountId = AccountId([9; 32]);

    fn sealed(passphrase: &str) -> Vec<u8> {
        let entropy = SealEntropy {
            roots: [10; 64],
            slot: [11; ENTROPY],
        };
        keystore()
            .seal(ACCOUNT, &Secret::copy_of(&[12; 32]), passphrase, &entropy)
            .unwrap()
    }

    fn open(file: &[u8], secret: u8, passphrase: &str) -> Result<Keystore, KeystoreError> {
        Keystore::open(
            file,
            ACCOUNT,
            &Secret::copy_of(&[secret; 32]),
            passphrase,
            &Where::Here,
        )
    }

    #[test]
    fn everything_comes_back_and_names_find_drives() {
        let back = open(&sealed(""), 12, "").unwrap();
        assert_eq!(*back.encode(), *keystore().encode());
        assert_eq!(back.root.generation(), 3);
        assert_eq!(
            back.drive(Some("photos")).map(|d| d.drive),
            Some(DriveId([8; 32]))
        );
        assert!(back.drive(None).is_none(), "two drives: one must be named");
        assert!(back.drive(Some("x")).is_none());
    }

    #[test]
    fn wrong_secret_wrong_passphrase_and_every_changed_part_are_refused() {
        let file = sealed("");
        let refused = |result| {
            matches!(
                result,
                Err(KeystoreError::Unlock(UnlockError::Slot(SlotError::Refused)))
            )
        };
        assert!(refused(open(&file, 13, "")));
        assert!(refused(open(&file, 12, "x")));
        for at in [0, 4, 9, 40, 150, 300, file.len() - 1] {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(open(&bad, 12, "").is_err(), "byte {at}");
        }
        assert!(open(&file[..file.len() - 1], 12, "").is_err());
    }

    #[test]
    fn the_other_process_answers_like_this_one() {
        let file = sealed("");
        let slot = &file[10..10 + usize::from(u16::from_le_bytes([file[8], file[9]]))];
        let mut question = vec![2];
        question.extend_from_slice(ACCOUNT.as_bytes());
        question.extend_from_slice(&1u64.to_le_bytes());
        question.extend_from_slice(&[12; 32]);
        question.extend_from_slice(&(slot.len() as u16).to_le_bytes());
        question.extend_from_slice(slot);
        let ask = |question: &[u8]| {
            let mut answer = Vec::new();
            crate::unlock::serve(question, &mut answer).unwrap();
            answer
        };
        assert_eq!(ask(&question), [&[0][..], &[10; 64]].concat());
        question.push(b'x');
        assert_eq!(ask(&question), [4], "a wrong passphrase");
        assert_eq!(ask(&question[..50]), [1], "cut short");
    }
}
