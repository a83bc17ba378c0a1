//! The connect string: the one line a person carries from the server to a new machine.
//!
//! `sealdrive://host:port/#<Crockford base32 of version ‖ flags ‖ server_pk32 [‖ fingerprint32] [‖ invite16] ‖ check4>`
//!
//! Invariant: it pins the server's identity key and its TLS certificate, so no certificate authority is trusted; a
//! string without a fingerprint means plaintext and parses only for a loopback address.
//! Called by the server's `invite` and by the client's `init`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::fields::{Fields, Misshapen};

const SCHEME: &str = "sealdrive://";
const VERSION: u8 = 1;
const HAS_FINGERPRINT: u8 = 1;
const HAS_INVITE: u8 = 2;
const CHECK_LEN: usize = 4;
/// Longest `host:port`, bytes: a DNS name, a colon, five digits.
const MAX_ADDR: usize = 260;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Why a text is no connect string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Not `sealdrive://host:port/#…`.
    #[error("a connect string looks like sealdrive://host:port/#CODE")]
    Shape,
    /// A character outside the alphabet, or a wrong check: most likely a typing mistake.
    #[error("the code after # has a typing mistake")]
    Code,
    /// A newer version or unknown flags.
    #[error("this connect string needs a newer version of sealdrive")]
    Version,
    /// Plaintext for an address that is not loopback.
    #[error(
        "a connect string without certificate fingerprint is valid for loopback addresses only"
    )]
    Plaintext,
}

impl From<Misshapen> for ConnectError {
    fn from(_: Misshapen) -> Self {
        Self::Code
    }
}

/// Where a server is and who it must prove to be.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectString {
    /// `host:port`.
    pub addr: String,
    /// The server's Ed25519 identity key.
    pub server_pk: [u8; 32],
    /// `certificate_fingerprint` of the TLS certificate; `None`: plaintext, loopback only.
    pub tls_fingerprint: Option<[u8; 32]>,
    /// One-time right to create an account.
    pub invite: Option<[u8; 16]>,
}

/// BLAKE3 of the certificate (DER): what a connect string pins.
pub fn certificate_fingerprint(der: &[u8]) -> [u8; 32] {
    *blake3::hash(der).as_bytes()
}

/// True when the host part is a loopback IP or `localhost`: the only place where plaintext is allowed.
pub fn is_loopback(addr: &str) -> bool {
    let Some((host, _)) = addr.rsplit_once(':') else {
        return false;
    };
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl ConnectString {
    /// The same server without the invitation: what a client keeps after it has registered.
    pub fn without_invite(&self) -> Self {
        Self {
            invite: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for ConnectString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |on: bool, bit| if on { bit } else { 0 };
        let flags = flag(self.tls_fingerprint.is_some(), HAS_FINGERPRINT)
            | flag(self.invite.is_some(), HAS_INVITE);
        let mut code = vec![VERSION, flags];
        code.extend_from_slice(&self.server_pk);
        code.extend(self.tls_fingerprint.iter().flatten());
        code.extend(self.invite.iter().flatten());
        let check = check(&self.addr, &code);
        code.extend_from_slice(&check);
        write!(f, "{SCHEME}{}/#{}", self.addr, base32(&code))
    }
}

// The invitation is a bearer right: keep it out of logs.
impl fmt::Debug for ConnectString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectString")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl FromStr for ConnectString {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        let rest = text
            .trim()
            .strip_prefix(SCHEME)
            .ok_or(ConnectError::Shape)?;
        let (addr, code) = rest.split_once("/#").ok_or(ConnectError::Shape)?;
        let (host, port) = addr.rsplit_once(':').ok_or(ConnectError::Shape)?;
        let clean = addr
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/#@?\"'\\<>".contains(&b));
        if host.is_empty() || addr.len() > MAX_ADDR || !clean || port.parse::<u16>().is_err() {
            return Err(ConnectError::Shape);
        }
        let code = unbase32(code).ok_or(ConnectError::Code)?;
        let (body, found) = code
            .split_last_chunk::<CHECK_LEN>()
            .ok_or(ConnectError::Code)?;
        let mut fields = Fields::new(body);
        let (version, flags) = (fields.u8()?, fields.u8()?);
        if version != VERSION || flags & !(HAS_FINGERPRINT | HAS_INVITE) != 0 {
            return Err(ConnectError::Version);
        }
        if *found != check(addr, body) {
            return Err(ConnectError::Code);
        }
        let server_pk = fields.array()?;
        let tls_fingerprint = if flags & HAS_FINGERPRINT != 0 {
            Some(fields.array()?)
        } else {
            None
        };
        let invite = if flags & HAS_INVITE != 0 {
            Some(fields.array()?)
        } else {
            None
        };
        fields.finish()?;
        if tls_fingerprint.is_none() && !is_loopback(addr) {
            return Err(ConnectError::Plaintext);
        }
        Ok(Self {
            addr: addr.to_owned(),
            server_pk,
            tls_fingerprint,
            invite,
        })
    }
}

fn check(addr: &str, body: &[u8]) -> [u8; CHECK_LEN] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(b"sealdrive/v1/connect")
        .update(addr.as_bytes())
        .update(b"\0")
        .update(body);
    let mut out = [0; CHECK_LEN];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Crockford base32, lower case, most significant bit first, last digit filled with zero bits.
pub fn base32(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut pool, mut bits) = (0u16, 0u32);
    for byte in bytes {
        pool = pool << 8 | u16::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(ALPHABET[usize::from(pool >> bits & 31)]));
        }
        pool &= (1 << bits) - 1;
    }
    if bits > 0 {
        out.push(char::from(ALPHABET[usize::from(pool << (5 - bits) & 31)]));
    }
    out
}

/// Reads what `base32` wrote, forgiving case, hyphens, and o, i, l for 0, 1, 1. `None` for anything else, including
/// fill bits that are not zero.
pub fn unbase32(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 5 / 8);
    let (mut pool, mut bits) = (0u16, 0u32);
    for byte in text.bytes().filter(|b| *b != b'-') {
        let digit = match byte.to_ascii_lowercase() {
            b'o' => 0,
            b'i' | b'l' => 1,
            lower => ALPHABET.iter().position(|d| *d == lower)?,
        };
        pool = pool << 5 | u16::try_from(digit).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(pool >> bits).ok()?);
            pool &= (1 << bits) - 1;
        }
    }
    (bits < 5 && pool == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(addr: &str) -> ConnectString {
        ConnectString {
            addr: addr.into(),
            server_pk: [7; 32],
            tls_fingerprint: Some([8; 32]),
            invite: Some([9; 16]),
        }
    }

    #[test]
    fn round_trips() {
        for addr in ["example.org:7878", "[::1]:1", "127.0.0.1:65535"] {
            for text in [example(addr), example(addr).without_invite()] {
                assert_eq!(text.to_string().parse(), Ok(text));
            }
        }
        let typed = example("h:1").to_string();
        let (head, code) = typed.split_once('#').unwrap();
        let shouted = format!(" {head}#{}\n", code.to_uppercase());
        assert_eq!(shouted.parse(), Ok(example("h:1")));
    }

    #[test]
    fn plaintext_is_for_loopback_only() {
        let plain = |addr: &str| {
            ConnectString {
                tls_fingerprint: None,
                ..example(addr)
            }
            .to_string()
        };
        for addr in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"] {
            assert!(plain(addr).parse::<ConnectString>().is_ok(), "{addr}");
        }
        for addr in [
            "10.0.0.1:1",
            "localhost.example.org:1",
            "[::2]:1",
            "127.0.0.1.evil:1",
            "0.0.0.0:1",
        ] {
            assert_eq!(
                plain(addr).parse::<ConnectString>(),
                Err(ConnectError::Plaintext),
                "{addr}"
            );
        }
    }

    #[test]
    fn one_wrong_character_is_noticed() {
        let good = example("example.org:7878").to_string();
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'7' { b'5' } else { b'7' };
            let bad = String::from_utf8(bytes).unwrap();
            assert!(bad.parse::<ConnectString>().is_err(), "{bad}");
        }
        for text in [
            "",
            "sealdrive://",
            "sealdrive://h/#",
            "sealdrive://:1/#00",
            "http://h:1/#00",
            "sealdrive://h:1/#",
        ] {
            assert!(text.parse::<ConnectString>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn base32_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(unbase32(&base32(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,200}") {
            let _ = text.parse::<ConnectString>();
        }
    }
}
