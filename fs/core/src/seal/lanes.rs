//! The inner lock of several messages side by side: the same bytes as one after another, in less time.
//!
//! AES-CMAC (RFC 4493) is a chain: each block waits for the one before it, and the processor waits with it, fourteen
//! instructions deep. The chains of different messages do not wait for each other.
//!
//! Invariant: byte for byte what the library makes, which opens it and is held against it in the tests. Called by
//! `inner.rs`.

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit,
    KeyIvInit, StreamCipher,
};
use cmac::Mac;
use ctr::Ctr128BE;
use dbl::Dbl;
use sealdrive_proto::header::TAG_LEN;
use zeroize::Zeroize;

/// Chains at once. On one machine reference and seal made 338 MB/s with one, 393 with two, 460 with four; more were not
/// tried.
pub(super) const LANES: usize = 4;

type Block = Array<u8, U16>;

/// One message.
pub(super) struct Message<'a> {
    /// Associated data.
    pub(super) vector: Vec<&'a [u8]>,
    /// `TAG_LEN` spare bytes, then the plaintext; afterwards `V ‖ C`.
    pub(super) room: &'a mut [u8],
}

/// Seals each in place as AES-SIV does (RFC 5297 §2.6), with the cipher `C` and its CMAC `M`. No message may be shorter
/// than a block.
pub(super) fn encrypt<C, M>(key: &[u8], messages: &mut [Message<'_>])
where
    C: BlockCipherEncrypt<BlockSize = U16> + KeyInit,
    M: Mac<OutputSize = U16> + KeyInit,
{
    // RFC 5297 §2.6: the first half is for S2V, the second for the counter mode.
    let (key, text) = key.split_at(key.len() / 2);
    let cipher = C::new_from_slice(key).expect("half a key");
    for group in messages.chunks_mut(LANES) {
        let tags = tags::<C, M>(&cipher, key, group);
        for (message, tag) in group.iter_mut().zip(tags) {
            let (head, plain) = message.room.split_at_mut(TAG_LEN);
            head.copy_from_slice(&tag);
            let mut counter = tag;
            // RFC 5297 §2.5: so that adding to the counter carries within 32 bits.
            counter[8] &= 0x7f;
            counter[12] &= 0x7f;
            let mut stream = Ctr128BE::<C>::new_from_slices(text, &counter).expect("half a key");
            stream.apply_keystream(plain);
        }
    }
}

/// S2V of each (RFC 5297 §2.4).
fn tags<C, M>(cipher: &C, key: &[u8], group: &[Message<'_>]) -> Vec<Block>
where
    C: BlockCipherEncrypt<BlockSize = U16>,
    M: Mac<OutputSize = U16> + KeyInit,
{
    let plains = group.iter().map(|message| &message.room[TAG_LEN..]);
    let mut chains: Vec<Chain<'_>> = plains.map(Chain::new).collect();
    run(cipher, &mut chains);
    let mut subkeys = Subkeys::new(cipher);
    let tags = chains.into_iter().zip(group).map(|(chain, message)| {
        let mut mask = mask::<M>(key, &message.vector);
        let tag = chain.finish(cipher, &subkeys, &mask);
        mask.zeroize();
        tag
    });
    let tags = tags.collect();
    subkeys.wipe();
    tags
}

/// What S2V makes of the associated data: the value that is added to the end of the message.
fn mask<M: Mac<OutputSize = U16> + KeyInit>(key: &[u8], vector: &[&[u8]]) -> Block {
    let mac = |bytes: &[u8]| {
        let mut mac = <M as KeyInit>::new_from_slice(key).expect("half a key");
        mac.update(bytes);
        mac.finalize().into_bytes()
    };
    let mut mask = mac(&[0; TAG_LEN]);
    for part in vector {
        mask = mask.dbl();
        xor(&mut mask, &mac(part));
    }
    mask
}

/// The subkeys of CMAC (RFC 4493 §2.3).
struct Subkeys {
    whole: Block,
    padded: Block,
}

impl Subkeys {
    fn new<C: BlockCipherEncrypt<BlockSize = U16>>(cipher: &C) -> Self {
        let mut zero = Block::default();
        cipher.encrypt_block(&mut zero);
        let whole = zero.dbl();
        Self {
            whole,
            padded: whole.dbl(),
        }
    }

    fn wipe(&mut self) {
        self.whole.zeroize();
        self.padded.zeroize();
    }
}

/// One chain: the blocks that S2V leaves as they are, and the rest, 16 to 31 bytes, whose last 16 it masks.
struct Chain<'a> {
    state: Block,
    blocks: &'a [Block],
    rest: &'a [u8],
}

impl<'a> Chain<'a> {
    fn new(plain: &'a [u8]) -> Self {
        assert!(plain.len() >= TAG_LEN, "no message is shorter than a block");
        let whole = (plain.len() - TAG_LEN) / TAG_LEN;
        let (blocks, rest) = plain.split_at(whole * TAG_LEN);
        Self {
            state: Block::default(),
            blocks: Array::slice_as_chunks(blocks).0,
            rest,
        }
    }

    fn finish<C>(mut self, cipher: &C, subkeys: &Subkeys, mask: &Block) -> Block
    where
        C: BlockCipherEncrypt<BlockSize = U16>,
    {
        let (len, mut end) = (self.rest.len(), [0; 2 * TAG_LEN]);
        end[..len].copy_from_slice(self.rest);
        for (byte, mask) in end[len - TAG_LEN..len].iter_mut().zip(mask) {
            *byte ^= mask;
        }
        if len > TAG_LEN {
            end[len] = 0x80;
            add(&mut self.state, &end[..TAG_LEN]);
            cipher.encrypt_block(&mut self.state);
            add(&mut self.state, &end[TAG_LEN..]);
            xor(&mut self.state, &subkeys.padded);
        } else {
            add(&mut self.state, &end[..TAG_LEN]);
            xor(&mut self.state, &subkeys.whole);
        }
        cipher.encrypt_block(&mut self.state);
        end.zeroize();
        self.state
    }
}

/// Takes all chains to the end of their blocks: as many side by side as still have some.
fn run<C: BlockCipherEncrypt<BlockSize = U16>>(cipher: &C, chains: &mut [Chain<'_>]) {
    loop {
        let mut open: Vec<&mut Chain<'_>> = chains
            .iter_mut()
            .filter(|chain| !chain.blocks.is_empty())
            .collect();
        let steps = open.iter().map(|chain| chain.blocks.len()).min();
        let Some(steps) = steps else { return };
        match &mut open[..] {
            [a, b, c, d] => cipher.encrypt_with_backend(Steps([a, b, c, d], steps)),
            [a, b, c] => cipher.encrypt_with_backend(Steps([a, b, c], steps)),
            [a, b] => cipher.encrypt_with_backend(Steps([a, b], steps)),
            [a] => cipher.encrypt_with_backend(Steps([a], steps)),
            _ => unreachable!("groups have at most {LANES} messages"),
        }
    }
}

/// So many blocks of each of `N` chains.
struct Steps<'s, 'a, const N: usize>([&'s mut Chain<'a>; N], usize);

impl<const N: usize> BlockSizeUser for Steps<'_, '_, N> {
    type BlockSize = U16;
}

impl<const N: usize> BlockCipherEncClosure for Steps<'_, '_, N> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let Self(chains, steps) = self;
        let mut states: [Block; N] = std::array::from_fn(|lane| chains[lane].state);
        let blocks: [&[Block]; N] = std::array::from_fn(|lane| &chains[lane].blocks[..steps]);
        #[expect(
            clippy::needless_range_loop,
            reason = "a step is one block of each lane"
        )]
        for step in 0..steps {
            for lane in 0..N {
                xor(&mut states[lane], &blocks[lane][step]);
                backend.encrypt_block((&mut states[lane]).into());
            }
        }
        for (chain, state) in chains.into_iter().zip(&mut states) {
            chain.state = *state;
            chain.blocks = &chain.blocks[steps..];
            state.zeroize();
        }
    }
}

#[inline(always)]
fn xor(state: &mut Block, other: &Block) {
    let sum = u128::from_le_bytes(state.0) ^ u128::from_le_bytes(other.0);
    state.0 = sum.to_le_bytes();
}

fn add(state: &mut Block, bytes: &[u8]) {
    state.iter_mut().zip(bytes).for_each(|(s, b)| *s ^= b);
}

#[cfg(test)]
mod tests {
    use super::super::inner::{self, InnerData};
    use super::*;
    use crate::secret::Secret;
    use aes::Aes128;
    use cmac::Cmac;
    use proptest::prelude::*;

    fn key() -> Secret<64> {
        Secret::copy_of(&std::array::from_fn(|at| (at * 7) as u8))
    }

    /// Seals messages of these lengths side by side and one by one.
    fn both(lens: &[usize]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let data = InnerData {
            label: "lanes",
            fields: &[b"what", &[9; 32]],
        };
        let byte = |n: usize, at: usize| (at * 31 + n * 101 + at / 251) as u8;
        let room = |(n, len): (usize, &usize)| {
            let plain = (0..*len).map(|at| byte(n, at));
            [0; TAG_LEN].into_iter().chain(plain).collect::<Vec<u8>>()
        };
        let rooms: Vec<Vec<u8>> = lens.iter().enumerate().map(room).collect();
        let (mut together, mut alone) = (rooms.clone(), rooms);
        let rooms = together.iter_mut().map(|room| (data, &mut room[..]));
        inner::lock_together(&key(), rooms);
        for room in &mut alone {
            inner::lock(&key(), data, room);
        }
        (together, alone)
    }

    #[test]
    fn every_length_of_the_rest_and_every_number_of_lanes() {
        for len in 16..100 {
            let (together, alone) = both(&[len]);
            assert_eq!(together, alone, "{len}");
        }
        for count in 1..10 {
            let lens: Vec<usize> = (0..count).map(|n| 16 + n * 37).collect();
            let (together, alone) = both(&lens);
            assert_eq!(together, alone, "{lens:?}");
        }
    }

    proptest! {
        #[test]
        fn side_by_side_is_one_after_another(lens in proptest::collection::vec(16usize..3000, 1..9)) {
            let (together, alone) = both(&lens);
            prop_assert_eq!(together, alone);
        }
    }

    /// RFC 5297 A.2, the one of its vectors whose message has a block; twice, beside another message.
    #[test]
    fn rfc_5297_a_2_side_by_side() {
        let hex = |text: &str| -> Vec<u8> {
            let pairs = text.as_bytes().chunks(2);
            let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            pairs.map(byte).collect()
        };
        let key = hex("7f7e7d7c7b7a79787776757473727170404142434445464748494a4b4c4d4e4f");
        let parts = [
            hex("00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa99887766554433221100"),
            hex("102030405060708090a0"),
            hex("09f911029d74e35bd84156c5635688c0"),
        ];
        let plain = b"this is some plaintext to encrypt using SIV-AES";
        let sealed = hex(concat!(
            "7bdb6e3b432667eb06f4d14bff2fbd0fcb900f2fddbe404326601965c889bf17",
            "dba77ceb094fa663b7a3f748ba8af829ea64ad544a272e9c485b62a3fd5c0d"
        ));
        let mut rooms = vec![[&[0; TAG_LEN][..], plain].concat(); 2];
        rooms.push(vec![0; 500]);
        let vector = || parts.iter().map(Vec::as_slice).collect();
        let mut messages: Vec<Message<'_>> = rooms
            .iter_mut()
            .map(|room| Message {
                vector: vector(),
                room,
            })
            .collect();
        encrypt::<Aes128, Cmac<Aes128>>(&key, &mut messages);
        assert_eq!(&rooms[..2], &[sealed.clone(), sealed]);
    }
}
