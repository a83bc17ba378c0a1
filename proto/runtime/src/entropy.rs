//! Randomness: the operating system's, or a simulated world's.
//!
//! Invariant: outside a world it comes from the operating system. Called by the two clock files.

/// The operating system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoEntropy;

/// Fills `out`.
pub fn fill(out: &mut [u8]) -> Result<(), NoEntropy> {
    #[cfg(feature = "simulation")]
    if let Some(me) = crate::simulation::current() {
        me.entropy(out);
        return Ok(());
    }
    getrandom::fill(out).map_err(|_| NoEntropy)
}
