//! Published vectors through our own wrappers: RFC 5297 A.1 and A.2, Wycheproof for both ciphers and both key
//! derivations.
//!
//! They catch a wrong feature, a wrong backend or a wrong order of arguments, which self-made vectors would only
//! repeat.

use super::inner::{self, InnerRefused, siv_decrypt, siv_encrypt};
use super::outer;
use crate::secret::{Secret, hkdf, hmac_sha256};
use aes_siv::KeyInit;
use aes_siv::siv::{Aes128Siv, Aes256Siv};
use wycheproof::TestResult;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hex")
    };
    digits.chunks(2).map(byte).collect()
}

fn rfc5297(key: &str, vector: &[&str], plain: &str, sealed: &str) {
    let (key, plain, sealed) = (hex(key), hex(plain), hex(sealed));
    let vector: Vec<Vec<u8>> = vector.iter().map(|part| hex(part)).collect();
    let parts = || vector.iter().map(Vec::as_slice);
    let mut siv = Aes128Siv::new(key[..].try_into().expect("32 bytes"));
    let mut room = [vec![0; 16], plain.clone()].concat();
    siv_encrypt(&mut siv, parts(), &mut room);
    assert_eq!(room, sealed);
    assert_eq!(
        siv_decrypt(&mut siv, parts(), &mut room).map(|p| p.to_vec()),
        Ok(plain)
    );
    let mut broken = sealed;
    broken[3] ^= 1;
    assert_eq!(
        siv_decrypt(&mut siv, parts(), &mut broken),
        Err(InnerRefused)
    );
    assert!(
        broken[16..].iter().all(|b| *b == 0),
        "nothing of the plaintext is left"
    );
}

#[test]
fn rfc_5297_a_1() {
    rfc5297(
        "fffefdfc fbfaf9f8 f7f6f5f4 f3f2f1f0 f0f1f2f3 f4f5f6f7 f8f9fafb fcfdfeff",
        &["10111213 14151617 18191a1b 1c1d1e1f 20212223 24252627"],
        "11223344 55667788 99aabbcc ddee",
        "85632d07 c6e8f37f 950acd32 0a2ecc93 40c02b96 90c4dc04 daef7f6a fe5c",
    );
}

#[test]
fn rfc_5297_a_2() {
    rfc5297(
        "7f7e7d7c 7b7a7978 77767574 73727170 40414243 44454647 48494a4b 4c4d4e4f",
        &[
            "00112233 44556677 8899aabb ccddeeff deaddada deaddada ffeeddcc bbaa9988 77665544 33221100",
            "10203040 50607080 90a0",
            "09f91102 9d74e35b d84156c5 635688c0",
        ],
        "74686973 20697320 736f6d65 20706c61 696e7465 78742074 6f20656e 63727970 74207573 696e6720
         5349562d 414553",
        "7bdb6e3b 432667eb 06f4d14b ff2fbd0f cb900f2f ddbe4043 26601965 c889bf17 dba77ceb 094fa663
         b7a3f748 ba8af829 ea64ad54 4a272e9c 485b62a3 fd5c0d",
    );
}

/// The S2V vector is (associated data, nonce), as in RFC 5297 §3.
#[test]
fn wycheproof_aes_siv_cmac() {
    let set =
        wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesSivCmac).expect("vectors");
    let mut run = 0;
    for test in set
        .test_groups
        .iter()
        .filter(|g| g.key_size == 512)
        .flat_map(|g| &g.tests)
    {
        let mut siv = Aes256Siv::new(test.key[..].try_into().expect("64 bytes"));
        let vector = || [&test.aad[..], &test.nonce[..]].into_iter();
        let sealed = [&test.tag[..], &test.ct[..]].concat();
        let opened = siv_decrypt(&mut siv, vector(), &mut sealed.clone()).map(|p| p.to_vec());
        if test.result == TestResult::Valid {
            assert_eq!(opened.as_deref(), Ok(&test.pt[..]), "{}", test.tc_id);
            let mut room = [&[0; 16], &test.pt[..]].concat();
            siv_encrypt(&mut siv, vector(), &mut room);
            assert_eq!(room, sealed, "{}", test.tc_id);
        } else {
            assert_eq!(opened, Err(InnerRefused), "{}", test.tc_id);
        }
        run += 1;
    }
    assert!(run > 200, "only {run} vectors");
}

#[test]
fn wycheproof_xchacha20_poly1305() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::XChaCha20Poly1305)
        .expect("vectors");
    let mut run = 0;
    for test in set.test_groups.iter().flat_map(|g| &g.tests) {
        // Nonces and tags of another length are not representable here.
        let (Ok(nonce), Ok(tag)) = (test.nonce[..].try_into(), test.tag[..].try_into()) else {
            continue;
        };
        let key: [u8; 32] = test.key[..].try_into().expect("32 bytes");
        let mut text = test.ct.to_vec();
        let opened = outer::unlock(&key, nonce, &test.aad, &mut text, tag);
        if test.result == TestResult::Valid {
            assert_eq!(
                (opened, &text[..]),
                (Ok(()), &test.pt[..]),
                "{}",
                test.tc_id
            );
            assert_eq!(
                outer::lock(&key, nonce, &test.aad, &mut text),
                *tag,
                "{}",
                test.tc_id
            );
            assert_eq!(text, test.ct[..], "{}", test.tc_id);
        } else {
            assert_eq!(opened, Err(outer::OuterRefused), "{}", test.tc_id);
            assert!(
                text.iter().all(|b| *b == 0),
                "nothing of the plaintext is left: {}",
                test.tc_id
            );
        }
        run += 1;
    }
    assert!(run > 250, "only {run} vectors");
}

#[test]
fn wycheproof_hkdf_sha512() {
    let set =
        wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha512).expect("vectors");
    let mut run = 0;
    for test in set
        .test_groups
        .iter()
        .flat_map(|g| &g.tests)
        .filter(|t| t.result == TestResult::Valid)
    {
        // Our wrapper fixes the length; a longer output of HKDF begins with the shorter one.
        let ours: Secret<64> = hkdf(&test.salt, &test.ikm, &[&test.info]);
        let both = test.size.min(64);
        assert_eq!(ours.expose()[..both], test.okm[..both], "{}", test.tc_id);
        run += 1;
    }
    assert!(run > 50, "only {run} vectors");
}

#[test]
fn wycheproof_hmac_sha256() {
    let set =
        wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).expect("vectors");
    let mut run = 0;
    for test in set.test_groups.iter().flat_map(|g| &g.tests) {
        let Ok(key) = test.key[..].try_into() else {
            continue;
        };
        let ours = hmac_sha256(key, &[&test.msg]);
        assert_eq!(
            ours[..test.tag.len()] == test.tag[..],
            test.result == TestResult::Valid,
            "{}",
            test.tc_id
        );
        run += 1;
    }
    assert!(run > 50, "only {run} vectors");
}

/// The label is the first component of the vector, not part of the next one.
#[test]
fn components_are_not_concatenated() {
    let key = Secret::copy_of(&[1; 64]);
    let mut one = [[0; 16], [7; 16]].concat();
    let mut two = one.clone();
    inner::lock(
        &key,
        inner::InnerData {
            label: "ab",
            fields: &[b"c"],
        },
        &mut one,
    );
    inner::lock(
        &key,
        inner::InnerData {
            label: "a",
            fields: &[b"bc"],
        },
        &mut two,
    );
    assert_ne!(one, two);
}
