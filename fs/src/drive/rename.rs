//! rename(2), with its rules for what stands at the new name.
//!
//! Invariant: a directory never becomes its own ancestor; what is replaced is of the same sort and, if a directory,
//! empty. Called by the kernel's border.

use sealdrive_core::record::{Dentry, FileKind, Ino, ROOT, Time};

use super::directory::check_name;
use super::errno::{Answer, Errno};
use super::gate::Need;
use super::state::State;
use super::{Drive, RenameRule};

/// Most directories above one another that are walked: a damaged tree may hold a ring, and the lock is held meanwhile.
const DEEPEST: u32 = 1 << 20;

/// A name: its directory and its bytes.
type Place<'a> = (Ino, &'a [u8]);

impl Drive {
    /// Moves a name, replacing or exchanging what the new one leads to.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        rule: RenameRule,
        now: Time,
    ) -> Answer<()> {
        let s = &mut *self.enter(Need::Records)?;
        for name in [name, new_name] {
            match check_name(name) {
                Err(error) if error == Errno::EEXIST.into() => return Err(Errno::EINVAL.into()),
                other => other?,
            }
        }
        s.load_dir(parent)?;
        s.load_dir(new_parent)?;
        let (from, to) = ((parent, name), (new_parent, new_name));
        let old = s.find(parent, name)?.ok_or(Errno::ENOENT)?;
        let there = s.find(new_parent, new_name)?;
        match (rule, there) {
            (RenameRule::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
            (RenameRule::Exchange, None) => return Err(Errno::ENOENT.into()),
            _ => {}
        }
        if there.is_some_and(|there| there.ino == old.ino) {
            return Ok(()); // two names of one file, or the same name: nothing to do
        }
        s.no_loop(old, parent, new_parent)?;
        s.load(old.ino)?;
        match (rule, there) {
            (RenameRule::Exchange, Some(there)) => {
                s.no_loop(there, new_parent, parent)?;
                s.load(there.ino)?;
                s.exchange(from, old, to, there, now);
            }
            (_, Some(there)) => s.replace(from, old, to, there, now)?,
            (_, None) => s.move_name(from, to, old, now),
        }
        s.done();
        Ok(())
    }
}

impl State {
    /// Refuses to move a directory from `parent` into itself or below.
    fn no_loop(&mut self, moved: Dentry, parent: Ino, into: Ino) -> Answer<()> {
        if moved.kind != FileKind::Directory || parent == into {
            return Ok(());
        }
        let mut at = into;
        let mut depth = 0;
        while at != ROOT {
            depth += 1;
            if depth > DEEPEST {
                return Err(Errno::EIO.into());
            }
            if at == moved.ino {
                return Err(Errno::EINVAL.into());
            }
            at = self.parent_of(at)?;
        }
        if moved.ino == ROOT {
            return Err(Errno::EINVAL.into());
        }
        Ok(())
    }

    fn replace(
        &mut self,
        from: Place<'_>,
        old: Dentry,
        to: Place<'_>,
        there: Dentry,
        now: Time,
    ) -> Answer<()> {
        let (moves_dir, over_dir) = (
            old.kind == FileKind::Directory,
            there.kind == FileKind::Directory,
        );
        let target = &self.load(there.ino)?.inode;
        match (moves_dir, over_dir) {
            (true, false) => return Err(Errno::ENOTDIR.into()),
            (false, true) => return Err(Errno::EISDIR.into()),
            (true, true) if target.size != 0 => return Err(Errno::ENOTEMPTY.into()),
            _ => {}
        }
        let last = over_dir || target.nlink <= 1;
        let remains = self.remains(there.ino, last)?;
        for ino in [from.0, to.0, old.ino] {
            self.load(ino)?;
        }
        self.remove_name(to.0, to.1, there.ino, there.kind, now);
        self.drop_link(there.ino, last, remains, now);
        self.move_name(from, to, old, now);
        Ok(())
    }

    fn move_name(&mut self, from: Place<'_>, to: Place<'_>, old: Dentry, now: Time) {
        self.remove_name(from.0, from.1, old.ino, old.kind, now);
        self.add_name(to.0, to.1, old.ino, old.kind, now);
        self.change(old.ino).ctime = now;
    }

    fn exchange(&mut self, from: Place<'_>, old: Dentry, to: Place<'_>, there: Dentry, now: Time) {
        self.remove_name(from.0, from.1, old.ino, old.kind, now);
        self.remove_name(to.0, to.1, there.ino, there.kind, now);
        self.add_name(to.0, to.1, old.ino, old.kind, now);
        self.add_name(from.0, from.1, there.ino, there.kind, now);
        self.change(old.ino).ctime = now;
        self.change(there.ino).ctime = now;
    }
}
