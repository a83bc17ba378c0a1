//! Mount options as people write them (`-o a,b=c`, the fourth column of fstab) parsed once into [`MountOptions`].
//!
//! Invariant: what reaches the kernel is one of the flags named here; every other word is either known to be meant
//! for someone else (`_netdev`, `x-systemd.…`) and dropped, or handed back to the command line, never guessed at.
//! Called by the command line for `sealdrive mount -o` and for the `mount.fuse.sealdrive` helper.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the kernel is told about a mount. The default is the safe one: `rw,nosuid,nodev`, visible to its owner only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Other users may enter the mount (`allow_other`; without root it needs `user_allow_other` in /etc/fuse.conf).
    pub allow_other: bool,
    /// Refuse every change (`ro`).
    pub read_only: bool,
    /// Honour set-user-id and set-group-id bits (`suid`; root only).
    pub suid: bool,
    /// Honour device nodes (`dev`; root only).
    pub dev: bool,
    /// Refuse to execute programs (`noexec`).
    pub noexec: bool,
    /// Never update access times (`noatime`). Reads do not change them here in any case.
    pub noatime: bool,
    /// Directory changes are synchronous (`dirsync`).
    pub dirsync: bool,
    /// All writes are synchronous (`sync`).
    pub sync: bool,
}

/// One option that is not the kernel's, for the command line to understand or refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherOption {
    /// The word before `=`.
    pub name: String,
    /// What follows `=`, if anything does.
    pub value: Option<String>,
}

/// Words of fstab that speak to mount(8), systemd or the boot scripts, not to a file system.
const FOR_OTHERS: &[&str] = &[
    "defaults",
    "remount",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "nonempty",
    "relatime",
    "strictatime",
    "lazytime",
    "diratime",
    "nodiratime",
    "async",
    "loud",
    "silent",
    "default_permissions",
];

/// What the mount table shows of a mount with a value: mount(8) hands it back to us at `remount`.
const SHOWN: &[&str] = &[
    "comment", "uhelper", "user_id", "group_id", "rootmode", "fd", "subtype", "fsname", "max_read",
];

impl MountOptions {
    /// Parses comma-separated lists, later words winning over earlier ones as in mount(8).
    /// Returns the words that are neither the kernel's nor known to be meant for someone else.
    pub fn parse<S: AsRef<str>>(lists: impl IntoIterator<Item = S>) -> (Self, Vec<OtherOption>) {
        let mut options = Self::default();
        let mut others = Vec::new();
        for list in lists {
            for word in list
                .as_ref()
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty())
            {
                if options.set(word) || is_for_others(word) {
                    continue;
                }
                others.push(match word.split_once('=') {
                    Some((name, value)) => OtherOption {
                        name: name.to_owned(),
                        value: Some(value.to_owned()),
                    },
                    None => OtherOption {
                        name: word.to_owned(),
                        value: None,
                    },
                });
            }
        }
        (options, others)
    }

    fn set(&mut self, word: &str) -> bool {
        match word {
            "allow_other" => self.allow_other = true,
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.noexec = false,
            "noexec" => self.noexec = true,
            "atime" => self.noatime = false,
            "noatime" => self.noatime = true,
            "dirsync" => self.dirsync = true,
            "sync" => self.sync = true,
            _ => return false,
        }
        true
    }

    /// The same options as words, for the mount table and for `fusermount3`.
    pub fn words(&self) -> Vec<&'static str> {
        let mut words = vec![if self.read_only { "ro" } else { "rw" }];
        words.push(if self.suid { "suid" } else { "nosuid" });
        words.push(if self.dev { "dev" } else { "nodev" });
        for (on, word) in [
            (self.noexec, "noexec"),
            (self.noatime, "noatime"),
            (self.dirsync, "dirsync"),
            (self.sync, "sync"),
            (self.allow_other, "allow_other"),
        ] {
            if on {
                words.push(word);
            }
        }
        words
    }
}

fn is_for_others(word: &str) -> bool {
    word.starts_with("x-")
        || word.starts_with("X-")
        || word
            .split_once('=')
            .is_some_and(|(name, _)| SHOWN.contains(&name))
        || FOR_OTHERS.contains(&word)
}

/// What mount(8) passes to `/sbin/mount.fuse.sealdrive`: `SOURCE MOUNTPOINT [-sfnvw] [-r] [-t TYPE] [-o LIST]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountCall {
    /// First column of fstab: which drive.
    pub source: OsString,
    /// Second column: where.
    pub mountpoint: PathBuf,
    /// The lists given with `-o`, unparsed.
    pub lists: Vec<String>,
    /// `-f`: check only, mount nothing.
    pub fake: bool,
    /// `-v`.
    pub verbose: bool,
    /// `-o remount,…`: change the flags of what is mounted there ([`super::attach::remount`]), start nothing.
    pub remount: bool,
}

/// Why the arguments of a helper were not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CallError {
    /// A flag that mount(8) does not pass.
    #[error("unknown flag {0}")]
    UnknownFlag(String),
    /// `-o` or `-t` without what must follow.
    #[error("{0} needs a value")]
    MissingValue(&'static str),
    /// Options must be text.
    #[error("mount options are not valid UTF-8")]
    NotText,
    /// Source or mount point missing, or a third word.
    #[error("expected a source and a mount point")]
    WrongWords,
}

impl MountCall {
    /// Parses the arguments after the program name (mount(8), "EXTERNAL HELPERS").
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, CallError> {
        let mut call = Self::default();
        let mut words = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("-o") => {
                    let list = args.next().ok_or(CallError::MissingValue("-o"))?;
                    call.lists
                        .push(list.into_string().map_err(|_| CallError::NotText)?);
                }
                Some("-t" | "-N") => drop(args.next().ok_or(CallError::MissingValue("-t"))?),
                Some("-r") => call.lists.push("ro".to_owned()),
                Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                    for flag in flags.chars().skip(1) {
                        match flag {
                            'f' => call.fake = true,
                            'v' => call.verbose = true,
                            's' | 'n' | 'w' => {}
                            other => return Err(CallError::UnknownFlag(format!("-{other}"))),
                        }
                    }
                }
                _ => words.push(arg),
            }
        }
        let [source, mountpoint] =
            <[OsString; 2]>::try_from(words).map_err(|_| CallError::WrongWords)?;
        call.remount = call
            .lists
            .iter()
            .any(|list| list.split(',').any(|word| word == "remount"));
        call.source = source;
        call.mountpoint = mountpoint.into();
        Ok(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_refuses_suid_and_devices() {
        let (options, others) =
            MountOptions::parse(["defaults,_netdev,x-systemd.automount,nofail"]);
        assert_eq!(options, MountOptions::default());
        assert_eq!(options.words(), ["rw", "nosuid", "nodev"]);
        assert!(others.is_empty());
    }

    #[test]
    fn later_words_win_and_unknown_ones_come_back() {
        let (options, others) =
            MountOptions::parse(["suid,dev,nodev", "ro,server=a:1,allow_other,offline"]);
        assert!(options.suid && !options.dev && options.read_only && options.allow_other);
        let names: Vec<_> = others
            .iter()
            .map(|other| (other.name.as_str(), other.value.as_deref()))
            .collect();
        assert_eq!(names, [("server", Some("a:1")), ("offline", None)]);
    }

    #[test]
    fn the_helper_understands_what_mount_passes() {
        let args = [
            "work",
            "/mnt",
            "-sv",
            "-o",
            "rw,suid",
            "-t",
            "fuse.sealdrive",
        ]
        .map(OsString::from);
        let call = MountCall::parse(args).unwrap();
        assert_eq!(
            (call.source.to_str(), call.mountpoint.to_str()),
            (Some("work"), Some("/mnt"))
        );
        assert!(call.verbose && !call.fake);
        assert_eq!(call.lists, ["rw,suid"]);
        assert!(!call.remount);
        let again = MountCall::parse(
            [
                "work",
                "/mnt",
                "-o",
                "remount,ro,user_id=0,uhelper=fuse.sealdrive",
            ]
            .map(OsString::from),
        )
        .unwrap();
        assert!(again.remount && MountOptions::parse(again.lists).1.is_empty());
        assert_eq!(
            MountCall::parse(["work".into()]),
            Err(CallError::WrongWords)
        );
        assert_eq!(
            MountCall::parse(["a".into(), "b".into(), "-o".into()]),
            Err(CallError::MissingValue("-o"))
        );
        assert!(matches!(
            MountCall::parse(["-x".into()]),
            Err(CallError::UnknownFlag(_))
        ));
    }
}
