//! The world's dice: a small generator for decisions, so that one seed is one world.
//!
//! Invariant: the sequence depends on the seed alone. Called by the scheduler.

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, no bad seeds.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: for bounds far below 2^64 as good as even.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
