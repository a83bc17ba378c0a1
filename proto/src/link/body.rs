//! What a link can say, byte by byte. FORMAT.md, "Account chain", table of link types.
//!
//! Invariant: a parsed body holds only values the format allows (usable keys, chunk sizes in range), so nobody behind
//! this file checks them again. Called by mod.rs.

use ed25519_dalek::VerifyingKey;

use super::LinkError;
use crate::fields::Fields;
use crate::id::{CommitHash, DeviceId, DriveId};
use crate::limits::{MAX_CHUNK, MAX_LABEL, MAX_REVOKED_HEADS};

/// Length of an X-Wing public key (draft-connolly-cfrg-xwing-kem), bytes.
pub(super) const BOX_PK_LEN: usize = 1216;
/// Smallest `min` the chunker accepts, bytes (fastcdc v2020 jumps over the first `min` bytes in pairs).
const MIN_MIN_CHUNK: u32 = 128;
/// Highest zstd level: those above are for windows far longer than a chunk.
pub const MAX_ZSTD_LEVEL: u8 = 19;

/// The public keys of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceKeys {
    /// Ed25519: signs logins, commits and links. Names the device.
    pub sign: VerifyingKey,
    /// X-Wing key to which boxes are sealed; empty while the device has none.
    pub box_pk: Vec<u8>,
}

impl DeviceKeys {
    /// The device's id.
    pub fn id(&self) -> DeviceId {
        DeviceId::of(&self.sign)
    }
}

/// The first link of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genesis {
    /// Random: two accounts never share an id.
    pub salt: [u8; 32],
    /// The first device; signs this link.
    pub device: DeviceKeys,
    /// Public half of the key derived from the account secret key: may read slot and chain.
    pub slot_fetch: VerifyingKey,
    /// Public half of the key derived from the account root: may add a device.
    pub enrol: VerifyingKey,
    /// Commitment to the secrets of the private domain, so that every device knows it was given the same ones.
    pub domain_commitment: [u8; 32],
}

/// How file content of a drive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Off,
    /// zstd at this level, 1 to 19.
    Zstd(u8),
}

/// What is fixed for the life of a drive. Part of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveConfig {
    /// Shortest chunk, bytes.
    pub min_chunk: u32,
    /// Mean chunk aimed at, bytes.
    pub avg_chunk: u32,
    /// Longest chunk, bytes, at most `limits::MAX_CHUNK`.
    pub max_chunk: u32,
    /// Compression of content.
    pub compression: Compression,
}

/// Head of a drive at the moment a device is revoked: what that device signed later does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveHead {
    /// The drive.
    pub drive: DriveId,
    /// Its last commit that counts; 0 for none.
    pub seq: u64,
    /// Hash of that commit.
    pub hash: CommitHash,
}

/// What a link does.
// A link is held one at a time; boxing the genesis would buy nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkBody {
    /// Founds the account.
    Genesis(Genesis),
    /// A device joins.
    AddDevice {
        /// Its keys.
        device: DeviceKeys,
        /// Its name, as a sealed label object; may be empty.
        label: Vec<u8>,
    },
    /// A device is out, from here on.
    RevokeDevice {
        /// The device.
        device: DeviceId,
        /// The heads of all drives, so that what it signs later is recognised.
        heads: Vec<DriveHead>,
    },
    /// A drive comes to be.
    CreateDrive {
        /// Random: two drives never share an id.
        nonce: [u8; 16],
        /// Its configuration.
        config: DriveConfig,
        /// Its name, as a sealed label object; may be empty.
        label: Vec<u8>,
    },
}

impl LinkBody {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Genesis(genesis) => {
                out.push(1);
                out.extend_from_slice(&genesis.salt);
                encode_device(&genesis.device, out);
                out.extend_from_slice(genesis.slot_fetch.as_bytes());
                out.extend_from_slice(genesis.enrol.as_bytes());
                out.extend_from_slice(&genesis.domain_commitment);
            }
            Self::AddDevice { device, label } => {
                out.push(2);
                encode_device(device, out);
                encode_blob(label, out);
            }
            Self::RevokeDevice { device, heads } => {
                out.push(3);
                out.extend_from_slice(device.as_bytes());
                out.extend_from_slice(&length(heads.len()));
                for head in heads {
                    out.extend_from_slice(head.drive.as_bytes());
                    out.extend_from_slice(&head.seq.to_le_bytes());
                    out.extend_from_slice(head.hash.as_bytes());
                }
            }
            Self::CreateDrive {
                nonce,
                config,
                label,
            } => {
                out.push(4);
                out.extend_from_slice(nonce);
                out.extend_from_slice(&config.min_chunk.to_le_bytes());
                out.extend_from_slice(&config.avg_chunk.to_le_bytes());
                out.extend_from_slice(&config.max_chunk.to_le_bytes());
                out.push(match config.compression {
                    Compression::Off => 0,
                    Compression::Zstd(level) => level,
                });
                encode_blob(label, out);
            }
        }
    }

    pub(super) fn parse(reader: &mut Fields<'_>) -> Result<Self, LinkError> {
        Ok(match reader.u8()? {
            1 => Self::Genesis(Genesis {
                salt: reader.array()?,
                device: parse_device(reader)?,
                slot_fetch: parse_key(reader)?,
                enrol: parse_key(reader)?,
                domain_commitment: reader.array()?,
            }),
            2 => Self::AddDevice {
                device: parse_device(reader)?,
                label: parse_label(reader)?,
            },
            3 => Self::RevokeDevice {
                device: DeviceId(reader.array()?),
                heads: parse_heads(reader)?,
            },
            4 => Self::CreateDrive {
                nonce: reader.array()?,
                config: parse_config(reader)?,
                label: parse_label(reader)?,
            },
            _ => return Err(LinkError::Format),
        })
    }
}

// A length that does not fit becomes u16::MAX, which no parser accepts: `LinkFields::sign` parses what it wrote.
fn length(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes()
}

fn encode_blob(blob: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&length(blob.len()));
    out.extend_from_slice(blob);
}

fn encode_device(device: &DeviceKeys, out: &mut Vec<u8>) {
    out.extend_from_slice(device.sign.as_bytes());
    encode_blob(&device.box_pk, out);
}

fn parse_key(reader: &mut Fields<'_>) -> Result<VerifyingKey, LinkError> {
    let key =
        VerifyingKey::from_bytes(&reader.array()?).map_err(|_| LinkError::Value("public key"))?;
    // A small-order key would verify signatures nobody made.
    if key.is_weak() {
        Err(LinkError::Value("public key"))
    } else {
        Ok(key)
    }
}

fn parse_device(reader: &mut Fields<'_>) -> Result<DeviceKeys, LinkError> {
    let sign = parse_key(reader)?;
    let box_len = usize::from(reader.u16()?);
    if box_len != 0 && box_len != BOX_PK_LEN {
        return Err(LinkError::Value("box key length"));
    }
    Ok(DeviceKeys {
        sign,
        box_pk: reader.bytes(box_len)?.to_vec(),
    })
}

fn parse_label(reader: &mut Fields<'_>) -> Result<Vec<u8>, LinkError> {
    let len = usize::from(reader.u16()?);
    if len > MAX_LABEL {
        return Err(LinkError::Value("label length"));
    }
    Ok(reader.bytes(len)?.to_vec())
}

fn parse_heads(reader: &mut Fields<'_>) -> Result<Vec<DriveHead>, LinkError> {
    let count = usize::from(reader.u16()?);
    if count > MAX_REVOKED_HEADS {
        return Err(LinkError::Value("number of heads"));
    }
    let mut heads: Vec<DriveHead> = Vec::with_capacity(count);
    for _ in 0..count {
        let head = DriveHead {
            drive: DriveId(reader.array()?),
            seq: reader.u64()?,
            hash: CommitHash(reader.array()?),
        };
        // Rising order: one list has one encoding, and no drive can be named twice.
        if heads.last().is_some_and(|last| last.drive >= head.drive) {
            return Err(LinkError::Value("order of heads"));
        }
        if (head.seq == 0) != (head.hash == CommitHash::NONE) {
            return Err(LinkError::Value("head"));
        }
        heads.push(head);
    }
    Ok(heads)
}

fn parse_config(reader: &mut Fields<'_>) -> Result<DriveConfig, LinkError> {
    let config = DriveConfig {
        min_chunk: reader.u32()?,
        avg_chunk: reader.u32()?,
        max_chunk: reader.u32()?,
        compression: match reader.u8()? {
            0 => Compression::Off,
            level @ 1..=MAX_ZSTD_LEVEL => Compression::Zstd(level),
            _ => return Err(LinkError::Value("compression")),
        },
    };
    let (min, avg, max) = (config.min_chunk, config.avg_chunk, config.max_chunk);
    let even = [min, avg, max].iter().all(|size| size % 2 == 0);
    if !even || min < MIN_MIN_CHUNK || min >= avg || avg >= max || max as usize > MAX_CHUNK {
        return Err(LinkError::Value("chunk size"));
    }
    Ok(config)
}
