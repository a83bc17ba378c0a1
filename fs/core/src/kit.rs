//! The emergency kit: what a person prints, and types into a new machine. With the passphrase it gives the account
//! back.
//!
//! Invariant: a kit that parses is whole (checksum); it carries the account secret key, so it is wiped like one.
//! Called by the account flows.
//! Text: Crockford base32 of `1 ‖ account32 ‖ server_pk32 ‖ ask32 ‖ BLAKE3(preceding)[..4]` in groups of six, `@`,
//! address.

use crate::secret::Secret;
use sealdrive_proto::id::AccountId;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const BODY: usize = 1 + 32 + 32 + 32;
const LEN: usize = BODY + 4;
/// Base32 digits of [`LEN`] bytes.
const DIGITS: usize = (8 * LEN).div_ceil(5);
/// Digits between two dashes: what the eye keeps while typing.
const GROUP: usize = 6;
/// Longest address taken, bytes: a DNS name and a port.
const MAX_ADDRESS: usize = 262;
/// Douglas Crockford's alphabet: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// What is printed.
pub struct Kit {
    /// The account.
    pub account: AccountId,
    /// Identity key of its server, pinned.
    pub server_pk: [u8; 32],
    /// The account secret key.
    pub ask: Secret<32>,
    /// Where the server was when the kit was made, `host:port`; not protected by the checksum, the pinned key is.
    pub address: String,
}

/// The text is not a kit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKit {
    /// A character that is no base32 digit, or too few or too many of them.
    #[error(
        "the kit has {0} characters where {DIGITS} are needed, or one that does not belong there"
    )]
    Text(usize),
    /// A typing mistake.
    #[error("the kit has a typing mistake: its checksum does not match")]
    Checksum,
    /// A kit of a newer program.
    #[error("the kit is of a version this program does not know")]
    Version,
    /// No address behind it, or too long a one.
    #[error("the kit must end in @ and the server's address")]
    Address,
}

impl Kit {
    /// The text.
    pub fn encode(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; LEN]);
        bytes[0] = VERSION;
        bytes[1..33].copy_from_slice(self.account.as_bytes());
        bytes[33..65].copy_from_slice(&self.server_pk);
        bytes[65..BODY].copy_from_slice(self.ask.expose());
        let check = blake3::hash(&bytes[..BODY]);
        bytes[BODY..].copy_from_slice(&check.as_bytes()[..4]);
        let mut text = Zeroizing::new(String::with_capacity(
            DIGITS + DIGITS / GROUP + 1 + self.address.len(),
        ));
        for digit in 0..DIGITS {
            if digit > 0 && digit % GROUP == 0 {
                text.push('-');
            }
            let value = (0..5).fold(0, |value, bit| value << 1 | bit_at(&bytes, 5 * digit + bit));
            text.push(char::from(ALPHABET[value]));
        }
        text.push('@');
        text.push_str(&self.address);
        text
    }

    /// Reads what a person typed: case, spaces, dashes and the look-alikes O, I and L do not matter.
    pub fn parse(text: &str) -> Result<Self, BadKit> {
        let (digits, address) = text.rsplit_once('@').ok_or(BadKit::Address)?;
        let address = address.trim();
        if address.is_empty() || address.len() > MAX_ADDRESS {
            return Err(BadKit::Address);
        }
        let bytes = decode_base32(digits)?;
        if blake3::hash(&bytes[..BODY]).as_bytes()[..4] != bytes[BODY..] {
            return Err(BadKit::Checksum);
        }
        if bytes[0] != VERSION {
            return Err(BadKit::Version);
        }
        let mut ask = Secret::zeroed();
        ask.expose_mut().copy_from_slice(&bytes[65..BODY]);
        Ok(Self {
            account: AccountId(std::array::from_fn(|i| bytes[1 + i])),
            server_pk: std::array::from_fn(|i| bytes[33 + i]),
            ask,
            address: address.to_owned(),
        })
    }
}

fn bit_at(bytes: &[u8; LEN], bit: usize) -> usize {
    bytes
        .get(bit / 8)
        .map_or(0, |byte| usize::from(byte >> (7 - bit % 8)) & 1)
}

fn decode_base32(digits: &str) -> Result<Zeroizing<[u8; LEN]>, BadKit> {
    let typed = digits
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .count();
    let mut bytes = Zeroizing::new([0u8; LEN]);
    let mut at = 0;
    for c in digits.chars().filter(|c| !c.is_whitespace() && *c != '-') {
        let value = digit_value(c).ok_or(BadKit::Text(typed))?;
        for bit in (0..5).rev().map(|shift| value >> shift & 1) {
            match bytes.get_mut(at / 8) {
                Some(byte) => *byte |= bit << (7 - at % 8),
                // The last digit's two spare bits are zero; more digits are too many.
                None if bit == 0 && at < 5 * DIGITS => {}
                None => return Err(BadKit::Text(typed)),
            }
            at += 1;
        }
    }
    if typed == DIGITS {
        Ok(bytes)
    } else {
        Err(BadKit::Text(typed))
    }
}

fn digit_value(c: char) -> Option<u8> {
    let c = match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    ALPHABET
        .iter()
        .position(|digit| char::from(*digit) == c)
        .map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit() -> Kit {
        Kit {
            account: AccountId(std::array::from_fn(|i| i as u8)),
            server_pk: [0xa5; 32],
            ask: Secret::copy_of(&[0x5a; 32]),
            address: "backup.example:7447".into(),
        }
    }

    fn same(text: &str) -> bool {
        Kit::parse(text).is_ok_and(|k| {
            let want = kit();
            k.account == want.account
                && k.server_pk == want.server_pk
                && k.ask.expose() == want.ask.expose()
                && k.address == want.address
        })
    }

    #[test]
    fn what_people_type() {
        let text = kit().encode();
        assert!(same(&text));
        assert!(same(&text.to_lowercase()));
        assert!(same(&text.replace('-', " \n")));
        assert!(same(&text.replace('0', "o").replace('1', "l")));
        assert!(same(&format!("  {}\n", &*text)));
    }

    /// The checksum finds a wrong digit wherever it is; 2^-32 is what it may miss.
    #[test]
    fn every_typing_mistake_is_found() {
        let text = kit().encode();
        let end = text.find('@').expect("address");
        for at in (0..end).filter(|at| text.as_bytes()[*at] != b'-') {
            let mut wrong = text.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'7' { b'8' } else { b'7' };
            let wrong = String::from_utf8(wrong).expect("ascii");
            assert!(
                matches!(Kit::parse(&wrong), Err(BadKit::Checksum | BadKit::Text(_))),
                "digit {at}"
            );
        }
        for cut in [1, 5, 80] {
            assert!(matches!(Kit::parse(&text[cut..]), Err(BadKit::Text(_))));
        }
        assert!(matches!(
            Kit::parse(&format!("0{}", &*text)),
            Err(BadKit::Text(_))
        ));
        assert!(matches!(
            Kit::parse(&text.replace('-', "u")),
            Err(BadKit::Text(_))
        ));
        assert!(matches!(Kit::parse(&text[..end]), Err(BadKit::Address)));
        assert!(matches!(Kit::parse(&text[..end + 1]), Err(BadKit::Address)));
        assert!(matches!(Kit::parse(""), Err(BadKit::Address)));
    }
}
