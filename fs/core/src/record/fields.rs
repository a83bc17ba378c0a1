//! Reads fixed fields off the front of a record, little-endian, and refuses what is short or left over.

use super::BadRecord;

/// What is left of a record that is being decoded.
pub(crate) struct Fields<'a> {
    left: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(left: &'a [u8], what: &'static str) -> Self {
        Self { left, what }
    }

    pub(crate) fn bad(&self) -> BadRecord {
        BadRecord(self.what)
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], BadRecord> {
        let (head, tail) = self
            .left
            .split_at_checked(len)
            .ok_or(BadRecord(self.what))?;
        self.left = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], BadRecord> {
        let (head, tail) = self
            .left
            .split_first_chunk::<N>()
            .ok_or(BadRecord(self.what))?;
        self.left = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, BadRecord> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, BadRecord> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, BadRecord> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, BadRecord> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.left)
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), BadRecord> {
        if self.left.is_empty() {
            Ok(())
        } else {
            Err(BadRecord(self.what))
        }
    }
}
