//! Opening and making slots in a process of its own: Argon2id takes 256 MiB, which the mount must not keep.
//!
//! Invariant: secrets go through pipes only, never through arguments or the environment; the other process is this
//! same program and ends after one slot. Called by the account flows and by `sealdrive unlock-helper`.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sealdrive_core::passphrase::PassphraseError;
use sealdrive_core::secret::Secret;
use sealdrive_core::slot::{Expected, SlotError, SlotHeader, SlotKind, open_slot};
use sealdrive_proto::id::AccountId;
use sealdrive_proto::limits::MAX_SLOT;
use zeroize::{Zeroize, Zeroizing};

/// Hidden subcommand of the other process.
pub const SUBCOMMAND: &str = "unlock-helper";
/// Longest question: everything with its maximum length, and some.
const MAX_QUESTION: u64 = 8192;
/// kind1 ‖ account32 ‖ least generation8 ‖ secret32 ‖ slot length u16
const HEAD: usize = 1 + 32 + 8 + 32 + 2;

/// Where the work is done.
#[derive(Debug, Clone)]
pub enum Where {
    /// In this process (tests, and commands that end at once).
    Here,
    /// In a process started from this program.
    Process(PathBuf),
}

/// Why a slot was not opened.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The slot did not open, or is not the one expected.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The other process could not do its work.
    #[error("cannot check the passphrase: {0}")]
    Process(#[from] io::Error),
}

impl Where {
    /// A process of its own, started from the running program.
    pub fn own_process() -> io::Result<Self> {
        std::env::current_exe().map(Self::Process)
    }

    /// `sealdrive_core::slot::open_slot`, here or there.
    pub fn open(
        &self,
        passphrase: &str,
        secret: &Secret<32>,
        expected: &Expected,
        slot: &[u8],
    ) -> Result<(SlotHeader, Zeroizing<Vec<u8>>), UnlockError> {
        let Self::Process(program) = self else {
            return Ok(open_slot(passphrase, secret, expected, slot)?);
        };
        // What is wrong with the clear part is known without a process.
        let header = SlotHeader::parse(slot)?;
        let mut question = Zeroizing::new(Vec::with_capacity(HEAD + slot.len() + passphrase.len()));
        question.push(expected.kind as u8);
        question.extend_from_slice(expected.account.as_bytes());
        question.extend_from_slice(&expected.slot_generation.to_le_bytes());
        question.extend_from_slice(secret.expose());
        question.extend_from_slice(
            &u16::try_from(slot.len())
                .map_err(|_| SlotError::Malformed)?
                .to_le_bytes(),
        );
        question.extend_from_slice(slot);
        question.extend_from_slice(passphrase.as_bytes());

        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .expect("stdin was asked for as a pipe")
            .write_all(&question)?;
        let mut answer = Zeroizing::new(Vec::with_capacity(2 * MAX_SLOT));
        let mut out = child.stdout.take().expect("stdout was asked for as a pipe");
        out.by_ref()
            .take(2 * MAX_SLOT as u64)
            .read_to_end(&mut answer)?;
        child.wait()?;
        match answer.split_first() {
            Some((0, payload)) => Ok((header, Zeroizing::new(payload.to_vec()))),
            Some((&code, [])) => Err(error_of(code).into()),
            _ => Err(io::Error::other("the unlocking process gave no answer").into()),
        }
    }
}

/// The other process: one question on `input`, one answer on `output`.
pub fn serve(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut question = Zeroizing::new(Vec::with_capacity(MAX_QUESTION as usize));
    input.take(MAX_QUESTION).read_to_end(&mut question)?;
    let mut answer = match answer(&question) {
        Ok(payload) => {
            let mut answer = Vec::with_capacity(1 + payload.len());
            answer.push(0);
            answer.extend_from_slice(&payload);
            answer
        }
        Err(error) => vec![code_of(error)],
    };
    let written = output.write_all(&answer).and_then(|()| output.flush());
    answer.zeroize();
    written
}

fn answer(question: &[u8]) -> Result<Zeroizing<Vec<u8>>, SlotError> {
    let (head, rest) = question
        .split_first_chunk::<HEAD>()
        .ok_or(SlotError::Malformed)?;
    let kind = match head[0] {
        1 => SlotKind::Login,
        2 => SlotKind::Keystore,
        _ => return Err(SlotError::Malformed),
    };
    let account = AccountId(std::array::from_fn(|i| head[1 + i]));
    let slot_generation = u64::from_le_bytes(std::array::from_fn(|i| head[33 + i]));
    let mut bytes: [u8; 32] = std::array::from_fn(|i| head[41 + i]);
    let secret = Secret::copy_of(&bytes);
    bytes.zeroize();
    let slot_len = usize::from(u16::from_le_bytes([head[73], head[74]]));
    let (slot, passphrase) = rest
        .split_at_checked(slot_len)
        .ok_or(SlotError::Malformed)?;
    let passphrase = std::str::from_utf8(passphrase).map_err(|_| SlotError::Malformed)?;
    let expected = Expected {
        kind,
        account,
        slot_generation,
    };
    open_slot(passphrase, &secret, &expected, slot).map(|(_, payload)| payload)
}

const CODES: [(u8, SlotError); 8] = [
    (1, SlotError::Malformed),
    (2, SlotError::Foreign),
    (3, SlotError::Stale),
    (4, SlotError::Refused),
    (5, SlotError::TooLong),
    (6, SlotError::Passphrase(PassphraseError::Cost)),
    (7, SlotError::Passphrase(PassphraseError::TooLong)),
    (8, SlotError::Passphrase(PassphraseError::Memory)),
];

fn code_of(error: SlotError) -> u8 {
    CODES
        .iter()
        .find(|(_, known)| *known == error)
        .map_or(1, |(code, _)| *code)
}

fn error_of(code: u8) -> SlotError {
    CODES
        .iter()
        .find(|(known, _)| *known == code)
        .map_or(SlotError::Malformed, |(_, error)| *error)
}
