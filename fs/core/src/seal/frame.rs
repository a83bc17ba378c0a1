//! The frame: what both locks protect. A payload, how it is coded, and zeros up to a size bucket.
//!
//! Invariant: one plaintext has one frame per codec outcome; a frame with anything unusual (length, code, padding)
//! is refused.
//! Called by the object seal only.
//! Layout: `ver u8 = 1 ‖ codec u8 (0 raw, 1 zstd) ‖ 0 u16 ‖ plain_len u32 ‖ comp_len u32 ‖ payload ‖ zeros`.

use sealdrive_proto::bucket::bucket;
use sealdrive_proto::header::FRAME_LEN;
use sealdrive_proto::limits::MAX_CHUNK;

const VERSION: u8 = 1;

/// How a payload is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Codec {
    /// The plaintext itself.
    Raw = 0,
    /// One zstd frame, shorter than the plaintext.
    Zstd = 1,
}

/// The frame is not canonical.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadFrame;

/// A parsed frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) codec: Codec,
    pub(crate) plain_len: usize,
    pub(crate) payload: &'a [u8],
}

/// Appends the frame. The payload is copied once and only the padding is filled with zeros: an object that began as
/// zeros would be written twice.
pub(crate) fn append(codec: Codec, plain_len: usize, payload: &[u8], object: &mut Vec<u8>) {
    let end = object.len() + FRAME_LEN + bucket(payload.len());
    object.extend_from_slice(&[VERSION, codec as u8, 0, 0]);
    object.extend_from_slice(&(plain_len as u32).to_le_bytes());
    object.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    object.extend_from_slice(payload);
    object.resize(end, 0);
}

/// Reads a whole frame.
pub(crate) fn parse(frame: &[u8]) -> Result<Frame<'_>, BadFrame> {
    let (head, body) = frame.split_first_chunk::<FRAME_LEN>().ok_or(BadFrame)?;
    let [version, codec, 0, 0, p0, p1, p2, p3, c0, c1, c2, c3] = *head else {
        return Err(BadFrame);
    };
    let plain_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    let comp_len = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
    if version != VERSION
        || !(1..=MAX_CHUNK).contains(&plain_len)
        || comp_len == 0
        || comp_len > plain_len
    {
        return Err(BadFrame);
    }
    let codec = match codec {
        0 if comp_len == plain_len => Codec::Raw,
        1 if comp_len < plain_len => Codec::Zstd,
        _ => return Err(BadFrame),
    };
    if body.len() != bucket(comp_len) {
        return Err(BadFrame);
    }
    let (payload, padding) = body.split_at(comp_len);
    if padding.iter().any(|b| *b != 0) {
        return Err(BadFrame);
    }
    Ok(Frame {
        codec,
        plain_len,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        append(Codec::Raw, payload.len(), payload, &mut frame);
        frame
    }

    #[test]
    fn round_trip() {
        for len in [1, 4095, 4096, 4097, 100_000, MAX_CHUNK] {
            let payload = vec![7; len];
            let frame = raw(&payload);
            assert_eq!(
                parse(&frame),
                Ok(Frame {
                    codec: Codec::Raw,
                    plain_len: len,
                    payload: &payload
                })
            );
        }
        let mut frame = Vec::new();
        append(Codec::Zstd, 5000, b"short", &mut frame);
        assert_eq!(
            parse(&frame),
            Ok(Frame {
                codec: Codec::Zstd,
                plain_len: 5000,
                payload: b"short"
            })
        );
    }

    #[test]
    fn every_header_byte_and_all_padding_is_checked() {
        let good = raw(b"hello");
        for i in (0..FRAME_LEN).chain([FRAME_LEN + 5, good.len() - 1]) {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                assert_eq!(parse(&bad), Err(BadFrame), "byte {i} bit {bit}");
            }
        }
        assert_eq!(parse(&good[..good.len() - 1]), Err(BadFrame));
        let longer = [&good[..], &[0]].concat();
        assert_eq!(parse(&longer), Err(BadFrame), "padding beyond the bucket");
        assert_eq!(parse(&[]), Err(BadFrame));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_canonically_or_refuse(head in proptest::array::uniform12(0u8..3), fill in 0usize..3) {
            let mut bytes = head.to_vec();
            bytes.resize(FRAME_LEN + [4096, 4608, 5000][fill], 0);
            if let Ok(frame) = parse(&bytes) {
                let mut again = Vec::new();
                append(frame.codec, frame.plain_len, frame.payload, &mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
