//! Size buckets: the only payload lengths a server ever sees.
//!
//! Invariant: a bucket is `m * 2^s` with `8 <= m < 16` and at least [`MIN_BUCKET`], so eight sizes per doubling: at
//! most 12.5 % padding (4.8 % measured on cut chunks) and 4.5 visible bits per chunk instead of 11.7.
//! Called by the header, by the sealing room (pads) and by the server (checks what it stores).

use crate::limits::MIN_BUCKET;

/// Steps per doubling. Eight: see the file comment.
const STEPS_LOG2: u32 = 3;

/// The smallest bucket that holds `len` bytes.
pub const fn bucket(len: usize) -> usize {
    if len <= MIN_BUCKET {
        return MIN_BUCKET;
    }
    // The unit is 2^s such that len - 1 has exactly four significant digits in base two above it.
    let top = usize::BITS - 1 - (len - 1).leading_zeros();
    let unit = 1 << (top - STEPS_LOG2);
    len.div_ceil(unit) * unit
}

/// Whether `len` is a bucket.
pub const fn is_bucket(len: usize) -> bool {
    bucket(len) == len
}

/// The largest bucket below the bucket of `len`, or `None` if that is the smallest one already.
/// Compression is worth its time only if the result fits in there.
pub const fn bucket_below(len: usize) -> Option<usize> {
    let own = bucket(len);
    if own == MIN_BUCKET {
        return None;
    }
    // One byte less than the bucket lies within the last step of `own`: go down by that step.
    let top = usize::BITS - 1 - (own - 1).leading_zeros();
    Some(own - (1 << (top - STEPS_LOG2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, tried out one by one.
    fn by_definition(len: usize) -> usize {
        let want = len.max(MIN_BUCKET);
        (0..40)
            .flat_map(|s| (8usize..16).map(move |m| m << s))
            .filter(|b| *b >= want)
            .min()
            .expect("some bucket is large enough")
    }

    #[test]
    fn equals_the_definition() {
        let near = (12..21).flat_map(|s| {
            (8usize..=16)
                .flat_map(move |m| [-1i64, 0, 1].map(|d| ((m << (s - 3)) as i64 + d) as usize))
        });
        for len in [
            0,
            1,
            4095,
            4096,
            4097,
            5000,
            100_000,
            1 << 20,
            (1 << 20) + 1,
        ]
        .into_iter()
        .chain(near)
        {
            assert_eq!(bucket(len), by_definition(len), "{len}");
            assert_eq!(is_bucket(len), by_definition(len) == len, "{len}");
        }
    }

    #[test]
    fn below_is_the_next_smaller_bucket() {
        assert_eq!(bucket_below(1), None);
        assert_eq!(bucket_below(MIN_BUCKET), None);
        for len in (4097..70_000)
            .step_by(61)
            .chain([1 << 20, (1 << 20) - 1, 8192, 8193])
        {
            let below = bucket_below(len).expect("above the floor");
            assert!(is_bucket(below) && below < bucket(len), "{len}");
            assert_eq!(bucket(below + 1), bucket(len), "nothing between: {len}");
        }
    }
}
