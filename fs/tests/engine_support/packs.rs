//! Where things lie in the packs of a machine's outbox, and how one of them rots.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::World;

/// Length of what stands before an object in a local pack: length, checksum, id, note.
pub const RECORD_HEAD: usize = 4 + 4 + 32 + 98;

/// Where the objects of a pack lie.
pub fn objects_in(pack: &[u8]) -> Vec<Range<usize>> {
    let (mut out, mut at) = (Vec::new(), 8);
    while let Some(len) = pack.get(at..at + 4) {
        let from = at + RECORD_HEAD;
        at = from + u32::from_le_bytes(len.try_into().unwrap()) as usize;
        out.push(from..at);
    }
    out
}

/// Where the objects of all packs in a machine's outbox lie.
pub fn outbox_of(world: &World, machine: &str) -> Vec<(PathBuf, Range<usize>)> {
    let outbox = PathBuf::from(machine).join("outbox");
    let packs = std::fs::read_dir(world.dir.path().join(&outbox)).unwrap();
    let mut packs: Vec<PathBuf> = packs
        .map(|entry| Path::new("outbox").join(entry.unwrap().file_name()))
        .collect();
    packs.sort();
    let objects = |pack: &PathBuf| {
        let bytes = std::fs::read(world.path(machine).join(pack)).unwrap();
        let found = objects_in(&bytes).into_iter();
        found.map(|at| (pack.clone(), at)).collect::<Vec<_>>()
    };
    packs.iter().flat_map(objects).collect()
}

/// Flips a bit in the middle of an object.
pub fn rot(world: &World, machine: &str, (pack, at): &(PathBuf, Range<usize>)) {
    let path = world.path(machine).join(pack);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at.start + at.len() / 2] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
