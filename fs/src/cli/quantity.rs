//! Sizes and times as people write them in mount options.
//!
//! Invariant: what cannot be read is refused with the form that can. Called by `mount`.

use std::time::Duration;

use super::exit::{Exit, Failure};

/// A time as people write it.
pub(super) fn parse_time(text: &str) -> Result<Duration, Failure> {
    humantime::parse_duration(text).map_err(|error| {
        let what = format!("{text:?} is not a time: {error}");
        Failure::new(Exit::Usage, what, "write it as 30s or 10min")
    })
}

/// A size as people write it: digits, and K, M, G or T for powers of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, Failure> {
    let wrong = || {
        let what = format!("{text:?} is not a size");
        Failure::new(Exit::Usage, what, "write it as 500M or 20G")
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..]
        .to_ascii_uppercase()
        .trim_end_matches("IB")
        .trim_end_matches('B')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("10k", 10 << 10),
            ("3G", 3 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "-1", "1X", "99999999999T", "1.5G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_time("10min").unwrap(), Duration::from_secs(600));
        assert!(parse_time("10").is_err() && parse_time("").is_err());
    }
}
