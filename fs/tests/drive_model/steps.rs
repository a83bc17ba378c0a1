//! One random operation at a time, done to the drive and to the model.

use sealdrive::drive::{Cred, Errno, Fallocate, NewNode, RenameRule, SetAttr, XattrRule};
use sealdrive_core::record::{FileKind, Ino};

use crate::Run;
use crate::world::time;

const NAMES: [&[u8]; 9] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"a name longer than what keys hold in place, for once",
    b"\xff\xfe not text",
    b"z",
];

impl Run {
    pub(crate) fn step(&mut self) {
        match self.dice.below(34) {
            0..=5 => self.make(),
            6..=12 => self.write(),
            13 => self.truncate(),
            14 => self.hole(),
            15..=16 => self.copy(),
            17..=19 => self.unlink(),
            20 => self.rmdir(),
            21..=23 => self.rename(),
            24 => self.link(),
            25..=26 => self.xattr(),
            27 => self.chmod(),
            28..=30 => self.open_one(),
            31 => self.look(),
            _ => self.let_go(),
        }
    }

    fn any(&mut self, kind: FileKind) -> Option<Ino> {
        let all: Vec<Ino> = self
            .model
            .nodes
            .iter()
            .filter(|(_, node)| node.kind == kind)
            .map(|(ino, _)| *ino)
            .collect();
        (!all.is_empty()).then(|| self.dice.pick(&all))
    }

    fn any_node(&mut self) -> Ino {
        let all: Vec<Ino> = self.model.nodes.keys().copied().collect();
        self.dice.pick(&all)
    }

    fn dir(&mut self) -> Ino {
        if self.dice.one_in(20) {
            return self.any_node(); // often no directory: ENOTDIR
        }
        self.any(FileKind::Directory).expect("the root")
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = match self.dice.below(40) {
            0 => 1_500_000,
            1..=3 => 200_000,
            4..=8 => 20_000,
            9..=20 => 3_000,
            _ => 400,
        };
        let len = 1 + self.dice.below(len) as usize;
        // A few contents come again, so that digests meet.
        let seed = if self.dice.one_in(3) {
            self.dice.below(4) + 1
        } else {
            self.dice.next()
        };
        let len = if seed < 5 { 5_000 * seed as usize } else { len };
        let mut dice = crate::Dice(seed | 1);
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&dice.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    fn make(&mut self) {
        let (parent, name, now) = (self.dir(), self.dice.pick(&NAMES), self.now);
        let expected = self.model.may_make(parent, name);
        let cred = Cred::default();
        let sort = self.dice.below(8);
        let (kind, mode, content) = match sort {
            0..=1 => (FileKind::Directory, 0o755, Vec::new()),
            2 => {
                let len = if self.dice.one_in(3) {
                    1_900 + self.dice.below(2_195)
                } else {
                    1 + self.dice.below(60)
                };
                (FileKind::Symlink, 0o777, vec![b't'; len as usize])
            }
            3 => (FileKind::Fifo, 0o600, Vec::new()),
            _ => (FileKind::Regular, 0o644, Vec::new()),
        };
        let new = NewNode {
            kind,
            mode: 0o666 & if mode == 0o600 { 0o600 } else { 0o666 },
            umask: 0o022,
            rdev: 0,
        };
        let made = match kind {
            FileKind::Directory => self
                .world
                .run(|drive| drive.mkdir(parent, name, 0o777, 0o022, cred, time(now))),
            FileKind::Symlink => self
                .world
                .run(|drive| drive.symlink(parent, name, &content, cred, time(now))),
            FileKind::Regular => self
                .world
                .run(|drive| drive.create(parent, name, new, cred, time(now)))
                .map(|(attr, handle)| {
                    self.open.push((attr.ino, handle));
                    attr
                }),
            _ => self
                .world
                .run(|drive| drive.mknod(parent, name, new, cred, time(now))),
        };
        assert_eq!(
            made.map(|attr| attr.kind),
            expected.map(|()| kind),
            "making a {kind:?}"
        );
        if let Ok(attr) = made {
            *self.lookups.entry(attr.ino).or_default() += 1;
            self.model
                .make(parent, name, attr.ino, kind, mode, &content, now);
        }
    }

    fn write(&mut self) {
        let Some(ino) = self.any(FileKind::Regular) else {
            return;
        };
        let data = self.bytes();
        let size = self.model.nodes[&ino].content.len() as u64;
        let off = match self.dice.below(6) {
            0 => 0,
            1 => self.dice.below(size + 1),
            2 => self.dice.below(size + 70_000),
            _ => size,
        };
        if off > 4 << 20 {
            return;
        }
        let now = self.now;
        // Some writes come as many small ones, which are gathered.
        let step = if self.dice.one_in(4) { 700 } else { data.len() };
        for (index, part) in data.chunks(step).enumerate() {
            let at = off + (index * step) as u64;
            let wrote = self
                .world
                .run(|drive| drive.write(ino, at, part, false, time(now)));
            assert_eq!(wrote, Ok(part.len() as u32));
        }
        self.model.write(ino, off as usize, &data, now);
    }

    fn truncate(&mut self) {
        let Some(ino) = self.any(FileKind::Regular) else {
            return;
        };
        let size = self.model.nodes[&ino].content.len() as u64;
        let (size, now) = (self.dice.below(size + 2_000), self.now);
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let attr = self.world.run(|drive| drive.setattr(ino, set, time(now)));
        assert_eq!(attr.map(|attr| attr.size), Ok(size));
        self.model.resize(ino, size as usize, now);
    }

    fn hole(&mut self) {
        let Some(ino) = self.any(FileKind::Regular) else {
            return;
        };
        let size = self.model.nodes[&ino].content.len() as u64;
        let (off, len, now) = (
            self.dice.below(size + 10),
            1 + self.dice.below(size + 10),
            self.now,
        );
        let how = self.dice.pick(&[
            Fallocate::PunchHole,
            Fallocate::ZeroRange,
            Fallocate::ZeroRangeKeepSize,
            Fallocate::Extend,
        ]);
        self.world
            .run(|drive| drive.fallocate(ino, off, len, how, time(now)))
            .expect("fallocate");
        let end = (off + len) as usize;
        match how {
            Fallocate::Extend if end <= size as usize => {}
            Fallocate::Extend => self.model.resize(ino, end, now),
            _ => self.model.zero(ino, off as usize, end, now),
        }
        if how == Fallocate::ZeroRange && end > size as usize {
            self.model.resize(ino, end, now);
        }
    }

    fn copy(&mut self) {
        let (Some(from), Some(to)) = (self.any(FileKind::Regular), self.any(FileKind::Regular))
        else {
            return;
        };
        let (from_size, to_size) = (
            self.model.nodes[&from].content.len() as u64,
            self.model.nodes[&to].content.len() as u64,
        );
        let (from_off, to_off) = (
            self.dice.below(from_size + 1),
            self.dice.below(to_size + 5_000),
        );
        let (len, now) = (1 + self.dice.below(from_size + 100), self.now);
        if to_off > 4 << 20 {
            return;
        }
        let real = len.min(from_size - from_off);
        let copied = self
            .world
            .run(|drive| drive.copy_range(from, from_off, to, to_off, len, time(now)));
        if from == to && from_off < to_off + real && to_off < from_off + real {
            assert_eq!(copied, Err(Errno::EINVAL));
            return;
        }
        let copied = copied.expect("copy");
        assert!(
            copied == real,
            "no copy here is long enough to be cut short"
        );
        if copied > 0 {
            let part = self.model.nodes[&from].content
                [from_off as usize..(from_off + copied) as usize]
                .to_vec();
            self.model.write(to, to_off as usize, &part, now);
        }
    }

    fn unlink(&mut self) {
        let (parent, name, now) = (self.dir(), self.dice.pick(&NAMES), self.now);
        let expected = self.model.unlink(parent, name, now);
        let done = self
            .world
            .run(|drive| drive.unlink(parent, name, time(now)));
        assert_eq!(done, expected.map(|_| ()), "unlink");
        if let Ok(ino) = expected {
            self.bury(ino);
        }
    }

    fn rmdir(&mut self) {
        let (parent, name, now) = (self.dir(), self.dice.pick(&NAMES), self.now);
        let expected = self.model.rmdir(parent, name, now);
        let done = self.world.run(|drive| drive.rmdir(parent, name, time(now)));
        assert_eq!(done, expected.map(|_| ()), "rmdir");
        if let Ok(ino) = expected {
            self.bury(ino);
        }
    }

    fn rename(&mut self) {
        let (from, to, now) = (self.dir(), self.dir(), self.now);
        let (name, new_name) = (self.dice.pick(&NAMES), self.dice.pick(&NAMES));
        let rule = self.dice.pick(&[
            RenameRule::Replace,
            RenameRule::Replace,
            RenameRule::NoReplace,
            RenameRule::Exchange,
        ]);
        let expected = self.model.rename(
            (from, name),
            (to, new_name),
            rule == RenameRule::NoReplace,
            rule == RenameRule::Exchange,
            now,
        );
        let done = self
            .world
            .run(|drive| drive.rename(from, name, to, new_name, rule, time(now)));
        assert_eq!(done, expected.map(|_| ()), "rename {from} to {to} {rule:?}");
        if let Ok(Some(ino)) = expected {
            self.bury(ino);
        }
    }

    fn link(&mut self) {
        let (ino, parent, name, now) = (
            self.any_node(),
            self.dir(),
            self.dice.pick(&NAMES),
            self.now,
        );
        let expected = self.model.link(ino, parent, name, now);
        let done = self
            .world
            .run(|drive| drive.link(ino, parent, name, time(now)));
        assert_eq!(done.map(|attr| attr.ino), expected.map(|()| ino), "link");
        if done.is_ok() {
            *self.lookups.entry(ino).or_default() += 1;
        }
    }

    fn xattr(&mut self) {
        let Some(ino) = self
            .any(FileKind::Regular)
            .filter(|_| !self.dice.one_in(4))
            .or_else(|| self.any(FileKind::Directory))
        else {
            return;
        };
        let name = self.dice.pick(&[
            &b"user.one"[..],
            b"user.two",
            b"trusted.three",
            b"security.four",
        ]);
        let now = self.now;
        if self.dice.one_in(4) {
            let had = self.model.at(ino).xattrs.remove(name).is_some();
            let done = self
                .world
                .run(|drive| drive.removexattr(ino, name, time(now)));
            assert_eq!(done, if had { Ok(()) } else { Err(Errno::ENODATA) });
            if had {
                self.model.at(ino).ctime = now;
            }
            return;
        }
        let mut value = self.bytes();
        value.truncate(
            self.dice
                .pick(&[0, 20, 2_046, 2_047, 2_048, 30_000, 65_536]),
        );
        let rule = self.dice.pick(&[
            XattrRule::Any,
            XattrRule::Any,
            XattrRule::Create,
            XattrRule::Replace,
        ]);
        let had = self.model.at(ino).xattrs.contains_key(name);
        let expected = match (rule, had) {
            (XattrRule::Create, true) => Err(Errno::EEXIST),
            (XattrRule::Replace, false) => Err(Errno::ENODATA),
            _ => Ok(()),
        };
        let done = self
            .world
            .run(|drive| drive.setxattr(ino, name, &value, rule, false, time(now)));
        assert_eq!(done, expected);
        if done.is_ok() {
            let node = self.model.at(ino);
            node.xattrs.insert(name.to_vec(), value);
            node.ctime = now;
        }
    }

    fn chmod(&mut self) {
        let (ino, now) = (self.any_node(), self.now);
        let mode = self.dice.below(0o10000) as u32;
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.world
            .run(|drive| drive.setattr(ino, set, time(now)))
            .expect("chmod");
        let node = self.model.at(ino);
        node.mode = mode;
        node.ctime = now;
        // A directory's set-group-id bit would be inherited, which the model leaves out.
        if node.kind == FileKind::Directory && mode & 0o2000 != 0 {
            node.mode &= !0o2000;
            let set = SetAttr {
                mode: Some(node.mode),
                ..SetAttr::default()
            };
            self.world
                .run(|drive| drive.setattr(ino, set, time(now)))
                .expect("chmod");
        }
    }

    fn open_one(&mut self) {
        let Some(ino) = self.any(FileKind::Regular) else {
            return;
        };
        // The kernel opens only what it holds.
        if self.model.nodes[&ino].nlink == 0 {
            return;
        }
        let write = self.dice.one_in(2);
        let handle = self
            .world
            .run(|drive| drive.open(ino, write))
            .expect("open");
        self.open.push((ino, handle));
    }

    fn look(&mut self) {
        let (parent, name) = (self.dir(), self.dice.pick(&NAMES));
        let expected = self.model.find(parent, name);
        let found = self.world.run(|drive| drive.lookup(parent, name));
        assert_eq!(found.map(|attr| attr.ino), expected, "lookup");
        if let Ok(ino) = expected {
            *self.lookups.entry(ino).or_default() += 1;
        }
    }
}
