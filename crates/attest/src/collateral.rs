//! Collateral: what vendors publish about their hardware, brought by the verifier.
//!
//! It is kept in a folder and read as a whole: each file is known by what it holds, not
//! by its name. Nothing in it is trusted for lying there; everything has to chain to a
//! root that this program pins.

use std::path::{Path, PathBuf};

use dcap_qvl::QuoteCollateralV3;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use x509_cert::der::Decode;

use crate::arm::{DeviceKey, device_keys};
use crate::nvidia::Rim;
use crate::se::{self, ImageTags};
use crate::{UnixTime, certificate};

/// What vendors publish about their hardware. The default has nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collateral {
    certificates: Vec<CertificateDer<'static>>,
    revocation_lists: Vec<Vec<u8>>,
    intel: Vec<QuoteCollateralV3>,
    device_keys: Vec<DeviceKey>,
    rims: Vec<Rim>,
    images: Vec<ImageTags>,
    host_keys: Vec<p521::PublicKey>,
}

/// One thing of a folder of collateral, by its own word: it is verified where it is used.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CollateralItem {
    /// What it is.
    pub kind: CollateralKind,
    /// Whose it is: a subject, an issuer, or a kind of processor.
    pub of: String,
    /// When it expires or is to be replaced; none if it holds for ever.
    pub until: Option<UnixTime>,
}

/// Kinds of collateral.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CollateralKind {
    /// A certificate.
    Certificate,
    /// A list of certificates that were taken back.
    RevocationList,
    /// What Intel publishes for one kind of processor, of SGX or of TDX.
    Intel,
    /// The key of one device of Arm's architecture, which a policy has to list.
    DeviceKey,
    /// What NVIDIA says that a version of a driver or of a VBIOS measures.
    Rim,
    /// The header of an image for IBM Secure Execution, by its measurement.
    Image,
}

impl std::fmt::Display for CollateralKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Certificate => "certificate",
            Self::RevocationList => "revocation-list",
            Self::Intel => "intel",
            Self::DeviceKey => "device-key",
            Self::Rim => "rim",
            Self::Image => "image",
        })
    }
}

/// Why a folder cannot be read as collateral.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollateralError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Something else than a file or a folder.
    #[error("{}: neither a file nor a folder", path.display())]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// A file that is longer than any collateral.
    #[error("{}: {found} bytes, collateral has at most {}", path.display(), Collateral::MAX_FILE_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
    /// More files than any verifier needs.
    #[error("{}: more than {} files", path.display(), Collateral::MAX_FILES)]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// A file that holds nothing that is known.
    #[error(
        "{}: neither certificates nor a revocation list, as PEM or DER, nor Intel's collateral or keys of Arm's devices as JSON, nor a manifest of NVIDIA's as XML, nor the header of an image for IBM Secure Execution",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
    },
}

impl Collateral {
    /// The longest file that is read: revocation lists of ten thousand certificates.
    pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

    /// The most files that are read: some for each machine of a large cluster.
    pub const MAX_FILES: usize = 4096;

    /// Reads every file of a folder, and of the folders in it. Those whose name begins
    /// with a dot are left out.
    ///
    /// # Errors
    /// [`CollateralError`], with the file.
    pub fn read(folder: &Path) -> Result<Self, CollateralError> {
        let mut files = Vec::new();
        list(folder, &mut files)?;
        if files.len() > Self::MAX_FILES {
            return Err(CollateralError::TooMany {
                path: folder.to_owned(),
            });
        }
        files.sort();
        let mut collateral = Self::default();
        for path in files {
            let bytes = read_file(&path)?;
            if !collateral.add(&bytes) {
                return Err(CollateralError::Unknown { path });
            }
        }
        Ok(collateral)
    }

    /// Adds what a file holds: certificates or a revocation list, as PEM or DER, or
    /// Intel's collateral for one kind of processor or keys of Arm's devices, as JSON, a
    /// manifest of NVIDIA's, as XML, or the header of an image for IBM Secure Execution. False if it holds nothing that is known.
    #[must_use]
    pub fn add(&mut self, file: &[u8]) -> bool {
        let (before, certificates) = (self.len(), self.certificates.len());
        if file.trim_ascii_start().starts_with(b"-----BEGIN") {
            let certificates = CertificateDer::pem_slice_iter(file).filter_map(Result::ok);
            self.certificates
                .extend(certificates.filter(|one| x509_cert::Certificate::from_der(one).is_ok()));
            let lists = CertificateRevocationListDer::pem_slice_iter(file).filter_map(Result::ok);
            let lists = lists.map(|list| list.as_ref().to_vec());
            self.revocation_lists
                .extend(lists.filter(|list| is_revocation_list(list)));
        } else if x509_cert::Certificate::from_der(file).is_ok() {
            self.certificates.push(file.to_vec().into());
        } else if is_revocation_list(file) {
            self.revocation_lists.push(file.to_vec());
        } else if let Ok(intel) = serde_json::from_slice(file) {
            self.intel.push(intel);
        } else if let Some(keys) = device_keys(file) {
            self.device_keys.extend(keys);
        } else if let Some(image) = ImageTags::of_header(file) {
            self.images.push(image);
        } else if let Some(rim) = Rim::read(file) {
            self.rims.push(rim);
        }
        let added = &self.certificates[certificates..];
        self.host_keys.extend(added.iter().filter_map(se::host_key));
        self.len() > before
    }

    fn len(&self) -> usize {
        self.certificates.len()
            + self.revocation_lists.len()
            + self.intel.len()
            + self.device_keys.len()
            + self.rims.len()
            + self.images.len()
    }

    /// What is there and until when it holds, what ends first at the beginning.
    #[must_use]
    pub fn items(&self) -> Vec<CollateralItem> {
        let certificates = self.certificates.iter().filter_map(|certificate| {
            let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
            let tbs = parsed.tbs_certificate();
            let until = tbs.validity().not_after.to_unix_duration().as_secs();
            Some(CollateralItem {
                kind: CollateralKind::Certificate,
                of: tbs.subject().to_string(),
                until: Some(UnixTime(until)),
            })
        });
        let lists = self.revocation_lists.iter().filter_map(|list| {
            Some(CollateralItem {
                kind: CollateralKind::RevocationList,
                of: certificate::list_issuer(list)?,
                until: Some(certificate::list_until(list)?),
            })
        });
        let intel = self.intel.iter().filter_map(|intel| {
            let (of, until) = crate::intel::described(intel)?;
            Some(CollateralItem {
                kind: CollateralKind::Intel,
                of,
                until: Some(until),
            })
        });
        let keys = self.device_keys.iter().map(|key| CollateralItem {
            kind: CollateralKind::DeviceKey,
            of: format!("{} of device {}", key.fingerprint(), key.instance_id),
            until: None,
        });
        let rims = self.rims.iter().map(|rim| CollateralItem {
            kind: CollateralKind::Rim,
            of: rim.describe(),
            until: None,
        });
        let items = certificates.chain(lists).chain(intel).chain(keys);
        let images = self.images.iter().map(|image| CollateralItem {
            kind: CollateralKind::Image,
            of: image.measurement().to_string(),
            until: None,
        });
        let items = items.chain(rims).chain(images);
        let mut items: Vec<_> = items.collect();
        items.sort_by(|one, other| {
            let order = |item: &CollateralItem| (item.until.is_none(), item.until);
            (order(one), &one.of).cmp(&(order(other), &other.of))
        });
        items
    }

    pub(crate) fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.certificates.iter()
    }

    /// Intel's, for quotes.
    pub(crate) fn intel(&self) -> &[QuoteCollateralV3] {
        &self.intel
    }

    /// Of Arm's devices.
    pub(crate) fn device_keys(&self) -> &[DeviceKey] {
        &self.device_keys
    }

    /// Of images for IBM Secure Execution.
    pub(crate) fn images(&self) -> &[ImageTags] {
        &self.images
    }

    /// Of machines with IBM Secure Execution: they are certificates as well.
    pub(crate) fn host_keys(&self) -> &[p521::PublicKey] {
        &self.host_keys
    }

    /// Of NVIDIA's drivers and VBIOSes.
    pub(crate) fn rims(&self) -> &[Rim] {
        &self.rims
    }

    pub(crate) fn revocation_lists(&self) -> &[Vec<u8>] {
        &self.revocation_lists
    }
}

fn is_revocation_list(der: &[u8]) -> bool {
    webpki::BorrowedCertRevocationList::from_der(der).is_ok()
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), CollateralError> {
    let io = |source| CollateralError::Io {
        path: folder.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = entry.file_type().map_err(io)?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
        if files.len() > Collateral::MAX_FILES {
            break;
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<u8>, CollateralError> {
    let io = |source| CollateralError::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        // A pipe would be waited for.
        return Err(CollateralError::NotAFile {
            path: path.to_owned(),
        });
    }
    if metadata.len() > Collateral::MAX_FILE_BYTES {
        return Err(CollateralError::TooLarge {
            path: path.to_owned(),
            found: metadata.len(),
        });
    }
    std::fs::read(path).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn an_empty_folder_is_no_collateral_and_hidden_files_are_left_out() {
        let folder = folder();
        std::fs::write(folder.path().join(".note"), "nothing").unwrap();
        std::fs::create_dir(folder.path().join("amd")).unwrap();
        assert_eq!(
            Collateral::read(folder.path()).unwrap(),
            Collateral::default()
        );
    }

    #[test]
    fn what_only_looks_like_a_certificate_is_refused_by_name() {
        let folder = folder();
        for kind in ["CERTIFICATE", "X509 CRL", "PRIVATE KEY"] {
            let path = folder.path().join("a.pem");
            let text = format!("-----BEGIN {kind}-----\nMAA=\n-----END {kind}-----\n");
            std::fs::write(&path, text).unwrap();
            assert!(matches!(
                Collateral::read(folder.path()),
                Err(CollateralError::Unknown { path: named }) if named == path
            ));
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_not_taken_for_an_empty_one() {
        let absent = folder().path().join("absent");
        assert_eq!(
            Collateral::read(&absent).unwrap_err().to_string(),
            format!(
                "{}: No such file or directory (os error 2)",
                absent.display()
            )
        );
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_by_name() {
        let folder = folder();
        let path = folder.path().join("long.pem");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(Collateral::MAX_FILE_BYTES + 1).unwrap();
        assert_eq!(
            Collateral::read(folder.path()).unwrap_err().to_string(),
            format!(
                "{}: 1048577 bytes, collateral has at most 1048576",
                path.display()
            )
        );
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let folder = folder();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(
            Collateral::read(folder.path()).unwrap_err().to_string(),
            format!("{}: neither a file nor a folder", path.display())
        );
    }

    #[test]
    fn more_files_than_any_verifier_needs_are_refused() {
        let folder = folder();
        for number in 0..=Collateral::MAX_FILES {
            std::fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(
            Collateral::read(folder.path()).unwrap_err().to_string(),
            format!("{}: more than 4096 files", folder.path().display())
        );
    }
}
