//! The owner's key as a file.
//!
//! Three lines in the manner of age: two comments, then the secret as
//! `OCCLUDE-OWNER-KEY-1…` (Bech32 in capitals, so that it is not mistaken for the
//! public half).

use std::path::Path;

use zeroize::Zeroizing;

use crate::OwnerKey;
use crate::file::{KeyFileError, read_private, write_private};

const PREFIX: bech32::Hrp = bech32::Hrp::parse_unchecked("occlude-owner-key-");

const EXPECTED: &str = "an owner's key: expected a line that starts with OCCLUDE-OWNER-KEY-1, as \
                        `occlude keygen` writes it";

impl OwnerKey {
    /// Reads the key that [`OwnerKey::write_new`] wrote.
    ///
    /// # Errors
    /// [`KeyFileError::TooOpen`] if group or others have any permission,
    /// [`KeyFileError::Malformed`] if it is no key, [`KeyFileError::Io`].
    pub fn read_from(path: &Path) -> Result<Self, KeyFileError> {
        read_private(path, EXPECTED, parse)
    }

    /// Writes the key to a new file with mode 0600.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`] if anything has that name, [`KeyFileError::Io`];
    /// nothing half-written is left.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyFileError> {
        write_private(path, &print(self))
    }
}

fn print(key: &OwnerKey) -> Zeroizing<String> {
    let secret = Zeroizing::new(
        bech32::encode_upper::<bech32::Bech32>(PREFIX, key.secret().as_slice())
            .expect("64 bytes fit into Bech32"),
    );
    Zeroizing::new(format!(
        "# The owner's key. Whoever holds it can open every model sealed with it: keep it secret, keep a copy.\n\
         # public: {}\n{}\n",
        key.public(),
        secret.as_str(),
    ))
}

fn parse(text: &str) -> Option<OwnerKey> {
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next()?;
    if lines.next().is_some() || line.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return None;
    }
    let parsed = bech32::primitives::decode::CheckedHrpstring::new::<bech32::Bech32>(line).ok()?;
    if parsed.hrp() != PREFIX || parsed.byte_iter().len() != OwnerKey::SECRET_LENGTH {
        return None;
    }
    let mut secret = Zeroizing::new([0; OwnerKey::SECRET_LENGTH]);
    for (target, byte) in secret.iter_mut().zip(parsed.byte_iter()) {
        *target = byte;
    }
    Some(OwnerKey::from_secret(&secret))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_is_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.key");
        let key = OwnerKey::generate();
        key.write_new(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let read = OwnerKey::read_from(&path).unwrap();
        assert_eq!(read.secret().as_slice(), key.secret().as_slice());
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.key");
        std::fs::write(&path, "precious").unwrap();
        let error = OwnerKey::generate().write_new(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Exists { path: ref named } if *named == path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.key");
        OwnerKey::generate().write_new(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = OwnerKey::read_from(&path).unwrap_err();
        assert!(
            matches!(error, KeyFileError::TooOpen { mode: 0o640, .. }),
            "{error}"
        );
    }

    #[test]
    fn another_file_that_others_can_read_is_no_key_before_all_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, b"\x08\x07\xff").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = OwnerKey::read_from(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Malformed { .. }), "{error}");
    }

    #[test]
    fn other_text_a_public_key_and_two_keys_are_refused() {
        let key = OwnerKey::generate();
        let two = format!("{0}{0}", print(&key).as_str());
        let changed = print(&key).replace("OCCLUDE-OWNER-KEY-1", "OCCLUDE-OWNER-KEY-1Q");
        let cases = [
            "".to_owned(),
            "hello".to_owned(),
            key.public().to_string(),
            two,
            changed,
        ];
        for text in cases {
            assert!(parse(&text).is_none(), "{text}");
        }
    }
}
