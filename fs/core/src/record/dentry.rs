//! A directory entry: `kind u8 ‖ ino u64 LE` under the key `parent ‖ 1 ‖ name`.

use super::fields::Fields;
use super::inode::FileKind;
use super::{BadRecord, Ino, Value};

/// What a name in a directory leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dentry {
    /// The inode; never 0.
    pub ino: Ino,
    /// Its type, so that listing a directory needs no inode.
    pub kind: FileKind,
}

impl Dentry {
    /// The nine bytes.
    pub fn encode(&self) -> Value {
        let mut out = [0; 9];
        out[0] = self.kind.code();
        out[1..].copy_from_slice(&self.ino.to_le_bytes());
        Value::from(&out[..])
    }

    /// Reads the nine bytes strictly.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let mut fields = Fields::new(bytes, "dentry");
        let kind = FileKind::from_code(fields.u8()?).ok_or(fields.bad())?;
        let ino = fields.u64()?;
        if ino == 0 || ino == Ino::MAX {
            return Err(fields.bad());
        }
        fields.end()?;
        Ok(Self { ino, kind })
    }
}
