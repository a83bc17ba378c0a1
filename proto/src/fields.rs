//! Strict reading of fixed byte layouts: one cursor, no allocation, every length checked once.
//!
//! Invariant: a read never goes past the end, and `finish` refuses what was not read, so an encoding has no slack
//! in which something unsigned could hide. Called by every parser of this crate and by the pack format.

/// The bytes end before a field does, or go on after the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misshapen {
    /// A field needs more bytes than are left.
    #[error("truncated")]
    Truncated,
    /// Bytes are left after the last field.
    #[error("trailing bytes")]
    Trailing,
}

/// A cursor over a byte layout. Integers are little-endian, as everywhere outside tree keys.
#[derive(Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Misshapen> {
        let (head, tail) = self
            .rest
            .split_at_checked(len)
            .ok_or(Misshapen::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Misshapen> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Misshapen::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Misshapen> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Misshapen> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Misshapen> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Misshapen> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Refuses anything left over.
    pub fn finish(self) -> Result<(), Misshapen> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Misshapen::Trailing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_reads_past_the_end_and_refuses_leftovers() {
        let mut fields = Fields::new(&[1, 2, 0, 9]);
        assert_eq!(fields.u8(), Ok(1));
        assert_eq!(fields.u16(), Ok(2));
        assert_eq!(fields.clone().finish(), Err(Misshapen::Trailing));
        assert_eq!(fields.u32(), Err(Misshapen::Truncated));
        assert_eq!(fields.bytes(1), Ok(&[9][..]));
        assert_eq!(fields.finish(), Ok(()));
    }
}
