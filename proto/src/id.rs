//! Newtypes for every identity in the system: no arithmetic between them, no accidental swap of two 32-byte strings.
//!
//! Invariant: a value of one of these types has the right length; its meaning is checked where it is used.
//! Called by everyone. None of these is secret, so all have `Debug` (first 8 hex digits).

use std::fmt;

/// A byte string of the wrong length at a border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {want} bytes, got {got}")]
pub struct WrongLength {
    /// Name of the id type.
    pub what: &'static str,
    /// Length required, in bytes.
    pub want: usize,
    /// Length found, in bytes.
    pub got: usize,
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Lower-case hex of the whole id, for file names and people.
            pub fn to_hex(&self) -> String {
                self.0.iter().fold(String::with_capacity(2 * $len), |mut s, b| {
                    s.push(char::from(b"0123456789abcdef"[usize::from(b >> 4)]));
                    s.push(char::from(b"0123456789abcdef"[usize::from(b & 15)]));
                    s
                })
            }

            /// Parses exactly `2 * LEN` hex digits.
            pub fn from_hex(text: &str) -> Result<Self, WrongLength> {
                let wrong = WrongLength { what: stringify!($name), want: 2 * $len, got: text.len() };
                if text.len() != 2 * $len || !text.is_ascii() {
                    return Err(wrong);
                }
                let mut out = [0u8; $len];
                for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let hex = std::str::from_utf8(pair).map_err(|_| wrong)?;
                    *byte = u8::from_str_radix(hex, 16).map_err(|_| wrong)?;
                }
                Ok(Self(out))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = WrongLength;
            fn try_from(bytes: &[u8]) -> Result<Self, WrongLength> {
                bytes.try_into().map(Self).map_err(|_| WrongLength {
                    what: stringify!($name),
                    want: $len,
                    got: bytes.len(),
                })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}…)"), &self.to_hex()[..8])
            }
        }
    };
}

byte_id!(
    /// An account: BLAKE3 of the first link of its chain.
    AccountId,
    32
);
byte_id!(
    /// A domain: the drives that share keys and deduplicate together.
    DomainId,
    32
);
byte_id!(
    /// A drive: BLAKE3 of the signed create-drive link.
    DriveId,
    32
);
byte_id!(
    /// A device: first 16 bytes of BLAKE3 of its signing public key.
    DeviceId,
    16
);
byte_id!(
    /// The id of an object as the server sees it. Derived with a secret; reveals nothing of the content.
    Sid,
    32
);
byte_id!(
    /// Keyed hash of a plaintext. Stands only inside sealed objects and in the client's memory; never sent.
    Cid,
    32
);
byte_id!(
    /// Hash of a signed commit.
    CommitHash,
    32
);
byte_id!(
    /// Hash of a signed chain link.
    LinkHash,
    32
);

impl CommitHash {
    /// What the first commit of a drive names as its predecessor.
    pub const NONE: Self = Self([0; 32]);
}

/// Key epoch of a domain. A reference's epoch is a lower bound for the epoch of the object that answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u32);

/// What an object is. The number stands in keys and in both associated data, never in the stored header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// File content.
    Data = 1,
    /// A tree node.
    Tree = 2,
    /// A commit body.
    Commit = 3,
    /// A label (names for people: devices, drives).
    Label = 5,
    /// A local record (journal, checkpoint, outbox index).
    Local = 6,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_refusals() {
        let sid = Sid(std::array::from_fn(|i| (i * 7) as u8));
        assert_eq!(Sid::from_hex(&sid.to_hex()), Ok(sid));
        assert!(Sid::from_hex("ab").is_err());
        assert!(Sid::from_hex(&"zz".repeat(32)).is_err());
        assert!(Sid::from_hex(&"é".repeat(32)).is_err());
        assert!(Sid::try_from(&[0u8; 31][..]).is_err());
    }
}
