//! The broker's master key and what is sealed under it.
//!
//! Whoever reads the database, a backup of it or the disk under it must learn no
//! model key, and whoever writes to it must not move a key or a policy to another
//! place: each sealed value has its place as associated data. The file lies
//! elsewhere than the database if the owner so chooses; who has both has all keys.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::random;

const FILE_PREFIX: &str = "OCCLUDE-BROKER-KEY-1-";

/// Far more than the two lines need.
const LONGEST_FILE: u64 = 4096;

const NONCE_LENGTH: usize = 12;
const TAG_LENGTH: usize = 16;

/// Seals rows of the database and signs the audit log's head. Wiped when dropped.
pub(crate) struct MasterKey {
    sealing: Zeroizing<[u8; 32]>,
    /// Public: recorded in the database, so that another master key is noticed.
    check: String,
    audit: SigningKey,
}

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MasterKeyError {
    /// Others on this machine could read it.
    #[error("{} can be read by others (mode {mode:o}): run chmod 600 on it", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} is not a broker's master key", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The database has keys sealed under a master key that is not there. None is
    /// made anew: it could open none of them.
    #[error("the database's master key is missing: {} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The database's keys are sealed under another master key.
    #[error("{} is not the master key of this database", path.display())]
    OtherDatabase {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A row was moved, altered, or sealed under another master key: one error on
/// purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row of the database is not authentic at its place")]
pub(crate) struct Inauthentic;

impl MasterKey {
    pub(crate) fn from_secret(secret: &[u8; 32]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(None, secret);
        let derive = |label: &str| {
            let mut key = Zeroizing::new([0; 32]);
            hkdf.expand(label.as_bytes(), key.as_mut_slice())
                .expect("32 bytes are a valid HKDF-SHA-256 output length");
            key
        };
        Self {
            sealing: derive("occlude/v1/broker/sealing"),
            check: hex::encode(*derive("occlude/v1/broker/check")),
            audit: SigningKey::from_bytes(&derive("occlude/v1/broker/audit")),
        }
    }

    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self, MasterKeyError> {
        let io = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => MasterKeyError::Missing {
                path: path.to_owned(),
            },
            _ => MasterKeyError::Io {
                path: path.to_owned(),
                source,
            },
        };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(MasterKeyError::TooOpen {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::with_capacity(LONGEST_FILE as usize));
        let malformed = || MasterKeyError::Malformed {
            path: path.to_owned(),
        };
        file.take(LONGEST_FILE)
            .read_to_string(&mut text)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidData => malformed(),
                _ => io(error),
            })?;
        let mut secret = Zeroizing::new([0; 32]);
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(FILE_PREFIX))
            .ok_or_else(malformed)?;
        hex::decode_to_slice(line, secret.as_mut_slice()).map_err(|_| malformed())?;
        Ok(Self::from_secret(&secret))
    }

    /// Makes a key and writes it to a new file with mode 0600.
    pub(crate) fn create(path: &Path) -> Result<Self, MasterKeyError> {
        let io = |source| MasterKeyError::Io {
            path: path.to_owned(),
            source,
        };
        let secret = Zeroizing::new(random::<32>());
        let text = Zeroizing::new(format!(
            "# A broker's master key: keep it secret, keep a copy, apart from the database.\n\
             {FILE_PREFIX}{}\n",
            Zeroizing::new(hex::encode(*secret)).as_str()
        ));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all());
        written.map_err(|source| {
            // The file is ours and useless: leave nothing half-written behind.
            let _ = std::fs::remove_file(path);
            io(source)
        })?;
        Ok(Self::from_secret(&secret))
    }

    pub(crate) fn check(&self) -> &str {
        &self.check
    }

    pub(crate) fn audit(&self) -> &SigningKey {
        &self.audit
    }

    /// AES-256-GCM with `place` as associated data: nonce, ciphertext, tag, base64.
    pub(crate) fn seal(&self, place: &str, plaintext: &[u8]) -> String {
        let nonce = random::<NONCE_LENGTH>();
        let mut sealed = [&nonce, plaintext].concat();
        let tag = Aes256Gcm::new((&*self.sealing).into())
            .encrypt_inout_detached(
                &nonce.into(),
                place.as_bytes(),
                (&mut sealed[NONCE_LENGTH..]).into(),
            )
            .expect("a key or a policy is far shorter than AES-GCM's limit");
        sealed.extend_from_slice(&tag);
        STANDARD.encode(sealed)
    }

    pub(crate) fn open(
        &self,
        place: &str,
        sealed: &str,
    ) -> Result<Zeroizing<Vec<u8>>, Inauthentic> {
        let sealed = STANDARD.decode(sealed).map_err(|_| Inauthentic)?;
        let (nonce, rest) = sealed
            .split_first_chunk::<NONCE_LENGTH>()
            .ok_or(Inauthentic)?;
        let (content, tag) = rest.split_last_chunk::<TAG_LENGTH>().ok_or(Inauthentic)?;
        let mut content = Zeroizing::new(content.to_vec());
        Aes256Gcm::new((&*self.sealing).into())
            .decrypt_inout_detached(
                &(*nonce).into(),
                place.as_bytes(),
                content.as_mut_slice().into(),
                &(*tag).into(),
            )
            .map_err(|_| Inauthentic)?;
        Ok(content)
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_at_its_place_only() {
        let key = MasterKey::from_secret(&[1; 32]);
        let sealed = key.seal("a", b"value");
        assert_eq!(key.open("a", &sealed).unwrap().as_slice(), b"value");
        assert_eq!(key.open("b", &sealed), Err(Inauthentic));
        assert_eq!(
            MasterKey::from_secret(&[2; 32]).open("a", &sealed),
            Err(Inauthentic)
        );
        assert_eq!(key.open("a", &sealed[4..]), Err(Inauthentic));
        assert_eq!(key.open("a", "AAAA"), Err(Inauthentic));
    }

    #[test]
    fn a_master_key_is_written_once_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master");
        assert!(matches!(
            MasterKey::read(&path),
            Err(MasterKeyError::Missing { .. })
        ));
        let made = MasterKey::create(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(MasterKey::read(&path).unwrap().check(), made.check());
        assert!(matches!(
            MasterKey::create(&path),
            Err(MasterKeyError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists
        ));
    }

    #[test]
    fn a_readable_or_foreign_file_is_no_master_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master");
        std::fs::write(&path, "OCCLUDE-BROKER-KEY-1-abc\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            MasterKey::read(&path),
            Err(MasterKeyError::TooOpen { mode: 0o640, .. })
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            MasterKey::read(&path),
            Err(MasterKeyError::Malformed { .. })
        ));
    }
}
