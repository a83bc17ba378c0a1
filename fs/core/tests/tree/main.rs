//! The tree against a plain ordered map: incremental ≡ rebuild, lookups and ranges ≡ model, bounds, and refusal of
//! damage.
//!
//! The rebuild in `world` is written from FORMAT.md and shares no code with the merge.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that unwraps fails where it stands"
)]

mod decoding;
mod extents;
mod golden;
mod merging;
mod reading;
mod records;
mod world;
