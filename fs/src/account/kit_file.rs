//! The recovery kit as a file to print: lines for people, and the code that `recover` reads.
//!
//! Invariant: lines that start with `#` are for people only; whatever else stands in the file is the kit.
//! Called by the account flows.

use std::path::Path;

use sealdrive_core::kit::{BadKit, Kit};
use zeroize::Zeroizing;

use super::AccountError;
use crate::home::{HomeError, write_private_new};

/// Longest kit file read, bytes: a page of text.
const MAX_KIT: u64 = 16 << 10;
/// Groups of the code printed on one line.
const GROUPS: usize = 7;

/// Writes a new kit file, readable by its owner only; refuses to replace one.
pub(super) fn write(path: &Path, kit: &Kit) -> Result<(), AccountError> {
    let code = kit.encode();
    let (digits, address) = code
        .rsplit_once('@')
        .expect("a kit ends in @ and an address");
    let mut text = Zeroizing::new(String::with_capacity(4096));
    text.push_str(
        "# SEALDRIVE RECOVERY KIT\n#\n\
         # Print this page and keep it where you keep important papers. Then delete the file.\n\
         #\n\
         # With this kit AND your passphrase you get everything back on any machine:\n\
         #     sealdrive recover --kit THIS-FILE\n\
         # Without it, once all your machines are lost, nobody can: not you, not the server's owner.\n\
         # The kit alone opens nothing; whoever finds it still needs the passphrase.\n\
         # Typing it from paper: case, spaces and dashes do not matter, and O is 0, I and L are 1.\n#\n",
    );
    for line in digits.split('-').collect::<Vec<_>>().chunks(GROUPS) {
        for (at, group) in line.iter().enumerate() {
            if at > 0 {
                text.push('-');
            }
            text.push_str(group);
        }
        text.push('\n');
    }
    text.push('@');
    text.push_str(address);
    text.push('\n');
    Ok(write_private_new(path, text.as_bytes())?)
}

/// Reads a kit file, or one that was typed from paper.
pub(super) fn read(path: &Path) -> Result<Kit, AccountError> {
    use std::io::Read;
    let io = |source| HomeError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut text = Zeroizing::new(String::with_capacity(MAX_KIT as usize));
    let file = std::fs::File::open(path).map_err(io)?;
    match file.take(MAX_KIT).read_to_string(&mut text) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(BadKit::Text(0).into());
        }
        other => other.map_err(io)?,
    };
    Ok(parse(&text)?)
}

fn parse(text: &str) -> Result<Kit, BadKit> {
    let mut code = Zeroizing::new(String::with_capacity(text.len()));
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
    {
        code.push_str(line);
    }
    Kit::parse(&code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealdrive_core::secret::Secret;
    use sealdrive_proto::id::AccountId;

    #[test]
    fn the_printed_page_is_read_back_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kit.txt");
        let kit = Kit {
            account: AccountId([1; 32]),
            server_pk: [2; 32],
            ask: Secret::copy_of(&[3; 32]),
            address: "backup.example:7443".to_owned(),
        };
        write(&path, &kit).unwrap();
        let back = read(&path).unwrap();
        assert!(back.account == kit.account && back.ask.expose() == kit.ask.expose());
        assert_eq!(back.address, kit.address);
        assert!(matches!(
            write(&path, &kit),
            Err(AccountError::Home(HomeError::Occupied(_)))
        ));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.lines().all(|line| line.len() <= 100),
            "fits a page:\n{text}"
        );

        let typed = text.to_lowercase().replace('-', " ");
        let typed: String = typed.lines().filter(|l| !l.starts_with('#')).collect();
        assert!(parse(&typed).is_ok());
        let at = text.rfind('@').unwrap() - 3;
        let mut wrong = text.into_bytes();
        wrong[at] = if wrong[at] == b'7' { b'8' } else { b'7' };
        assert!(parse(&String::from_utf8(wrong).unwrap()).is_err());
    }
}
