//! Fetching collateral: what vendors publish for the hardware that one piece of evidence
//! comes from.
//!
//! How bytes are had is the caller's matter ([`Transport`]); what is asked, and where it is
//! kept, is here. What comes is kept only if it can be read, and is verified where it is
//! used, like all collateral: whoever answers can withhold, not forge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Collateral, Evidence, TeeKind, UnixTime, VerifyError, intel, nvidia, snp};

/// AMD's own service.
pub const AMD: &str = "https://kdsintf.amd.com";

/// Intel's own service.
pub const INTEL: &str = "https://api.trustedservices.intel.com";

/// NVIDIA's own service.
pub const NVIDIA: &str = "https://rim.attestation.nvidia.com";

/// Where vendors publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    /// AMD's Key Distribution Service (AMD 57230).
    pub amd: String,
    /// Intel's Provisioning Certification Service, version 4, or a cache of it (PCCS).
    pub intel: String,
    /// NVIDIA's service of reference integrity manifests.
    pub nvidia: String,
}

impl Default for Services {
    /// The vendors' own.
    fn default() -> Self {
        Self {
            amd: AMD.to_owned(),
            intel: INTEL.to_owned(),
            nvidia: NVIDIA.to_owned(),
        }
    }
}

/// How bytes are had.
pub trait Transport {
    /// Asks for a URL. Only an answer that says success is one; its headers' names are in
    /// small letters.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn get(&self, url: &str) -> Result<Answer, String>;
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Headers, by their names in small letters.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Evidence of a kind for which nothing is published that could be fetched.
    #[error("nothing is to be fetched for evidence of {tee}: {instead}")]
    Nothing {
        /// The kind.
        tee: TeeKind,
        /// What to do instead.
        instead: &'static str,
    },
    /// The evidence cannot be read.
    #[error(transparent)]
    Evidence(#[from] VerifyError),
    /// The service gave no answer.
    #[error("{url}: {reason}")]
    Unavailable {
        /// What was asked for.
        url: String,
        /// Why, in the transport's words.
        reason: String,
    },
    /// The service gave something else.
    #[error("{url}: the answer cannot be used: {reason}")]
    Unusable {
        /// What was asked for.
        url: String,
        /// Why.
        reason: String,
    },
    /// The file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// What was fetched, or was there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it was fetched now; else it was there and still held.
    pub new: bool,
    /// When it is to be fetched anew; none if never.
    pub until: Option<UnixTime>,
}

/// One file to have.
pub(crate) struct Wanted {
    /// Its name below the cache.
    pub(crate) name: String,
    /// How it is had.
    pub(crate) get: Get,
}

/// Has bytes of a client.
pub(crate) type Get = Box<dyn Fn(&Client<'_>) -> Result<Vec<u8>, FetchError>>;

/// A transport to the vendors.
pub(crate) struct Client<'a> {
    pub(crate) services: &'a Services,
    pub(crate) transport: &'a dyn Transport,
}

impl Client<'_> {
    pub(crate) fn get(&self, url: &str) -> Result<Answer, FetchError> {
        self.transport
            .get(url)
            .map_err(|reason| FetchError::Unavailable {
                url: url.to_owned(),
                reason,
            })
    }
}

/// Something that a service gave and that is of no use.
pub(crate) fn unusable(url: &str, reason: impl std::fmt::Display) -> FetchError {
    FetchError::Unusable {
        url: url.to_owned(),
        reason: crate::canonical::reason(&reason),
    }
}

/// Fetches what is published for the hardware of `evidence`, and of what came along beside
/// it, into a folder. What is there and holds at `at` is kept, unless `again`.
///
/// # Errors
/// [`FetchError`]; what was fetched before stays.
pub fn fetch(
    evidence: &Evidence,
    folder: &Path,
    services: &Services,
    transport: &dyn Transport,
    at: UnixTime,
    again: bool,
) -> Result<Vec<Fetched>, FetchError> {
    let client = Client {
        services,
        transport,
    };
    let mut wanted = wanted(evidence)?;
    wanted.dedup_by(|one, other| one.name == other.name);
    let fetched = wanted.iter().map(|file| {
        let path = folder.join(&file.name);
        if !again && let Some(until) = holds(&path, at) {
            return Ok(Fetched {
                path,
                new: false,
                until,
            });
        }
        let bytes = (file.get)(&client)?;
        let until = until(&bytes).ok_or_else(|| unusable(&file.name, "it is no collateral"))?;
        write(&path, &bytes)?;
        Ok(Fetched {
            path,
            new: true,
            until,
        })
    });
    fetched.collect()
}

fn wanted(evidence: &Evidence) -> Result<Vec<Wanted>, FetchError> {
    let mut wanted = wanted_of(evidence)?;
    for (tee, body) in evidence.additional() {
        if *tee == TeeKind::Nvidia {
            wanted.extend(nvidia::wanted(body)?);
        }
    }
    Ok(wanted)
}

fn wanted_of(evidence: &Evidence) -> Result<Vec<Wanted>, FetchError> {
    let nothing = |tee, instead| Err(FetchError::Nothing { tee, instead });
    match evidence.tee() {
        TeeKind::Snp => Ok(snp::wanted(evidence.body())?),
        TeeKind::Tdx | TeeKind::Sgx => Ok(intel::wanted(evidence.body(), "quote")?),
        TeeKind::Nvidia => Ok(nvidia::wanted(evidence.body())?),
        tee @ (TeeKind::AzSnpVtpm | TeeKind::AzTdxVtpm) => nothing(
            tee,
            "Azure's metadata service gives a server its certificates, which come with the evidence",
        ),
        tee @ TeeKind::Nitro => nothing(tee, "its certificates come with the evidence"),
        tee @ (TeeKind::Cca | TeeKind::TrustZone) => nothing(
            tee,
            "the devices' maker has their keys: put them into the folder as JSON",
        ),
        tee @ (TeeKind::Tpm | TeeKind::Txt) => nothing(
            tee,
            "list the TPM's key in the policy, or put the certificates of its issuer into the folder",
        ),
        tee @ TeeKind::Se => nothing(tee, "IBM's documents are had from IBM"),
        tee @ TeeKind::Simulated => nothing(tee, "anybody can make it"),
    }
}

/// When what a file holds is over; none if it is, or if it is no collateral.
fn holds(path: &Path, at: UnixTime) -> Option<Option<UnixTime>> {
    let until = until(&std::fs::read(path).ok()?)?;
    until.is_none_or(|until| at <= until).then_some(until)
}

/// When the first thing in a file is over, if it is collateral.
fn until(bytes: &[u8]) -> Option<Option<UnixTime>> {
    let mut collateral = Collateral::default();
    let known = collateral.add(bytes);
    // What only looks like some has nothing in it that could be told.
    let items = collateral.items();
    (known && !items.is_empty()).then(|| items.iter().filter_map(|item| item.until).min())
}

/// Writes a file whole or not at all: others read the folder meanwhile.
fn write(path: &Path, bytes: &[u8]) -> Result<(), FetchError> {
    let io = |source| FetchError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(io)?;
    // Readers of the folder leave out what begins with a dot.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!(".{name}.{}", std::process::id()));
    std::fs::write(&part, bytes)
        .and_then(|()| std::fs::rename(&part, path))
        .inspect_err(|_| {
            // It may never have been there.
            let _ = std::fs::remove_file(&part);
        })
        .map_err(io)
}
