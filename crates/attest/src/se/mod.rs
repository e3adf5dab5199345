//! IBM Secure Execution: a virtual machine on IBM Z or `LinuxONE` whose memory the
//! *ultravisor*, firmware under the hypervisor, keeps from the hypervisor and its
//! administrator.
//!
//! There is no quote that anybody could verify. The verifier makes a request first, which
//! only the ultravisor of a machine can open, since it is encrypted to that machine's host
//! key: a key and a nonce. The ultravisor answers with an HMAC-SHA-512 under that key over
//! what the guest was started from, the nonce, and 64 bytes that the guest chooses ("IBM
//! Secure Execution for Linux", SC34-7759; the formats are those of `pvattest` in IBM's
//! s390-tools). So whoever verifies is who asked. Between the two, the key and the nonce
//! travel in the request and in the answer, sealed by the verifier for itself.
//!
//! Both travel as the KBS protocol has them. The host key's document is a certificate that IBM
//! signs; here the policy lists the key, after its owner checked the document.

mod collect;
mod request;
#[cfg(test)]
mod tests;
mod verify;

use occlude_keys::hexadecimal_bytes;
use sha2::{Digest, Sha256};

pub(crate) use collect::{check_present, collect};
pub(crate) use request::{ExchangeKey, SeRequest, host_key};
pub(crate) use verify::verify;

use crate::Measurement;
use crate::tpm::KeyFingerprint;

hexadecimal_bytes! {
    /// What the ultravisor calls one start of a guest.
    pub ConfigurationUid, 16
}

/// What a verified answer says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SePlatform {
    /// The host key that the request was opened with.
    pub host_key: KeyFingerprint,
    /// The host key that the image was opened with.
    pub image_host_key: KeyFingerprint,
    /// This start of the guest.
    pub configuration_uid: ConfigurationUid,
}

/// The part of an image's header that the ultravisor measures: digests of its pages, their
/// addresses and their tweaks, and the header's tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageTags([u8; Self::BYTES]);

impl ImageTags {
    pub(crate) const BYTES: usize = 3 * 64 + 16;

    /// From a header: `hdr.bin` of `pvextract-hdr`.
    pub(crate) fn of_header(header: &[u8]) -> Option<Self> {
        const DIGESTS: std::ops::Range<usize> = 0xe0..0x1a0;
        let number = |at: usize| Some(u32::from_be_bytes(*header.get(at..)?.first_chunk()?));
        let known = header.starts_with(b"IBMSecEx")
            && number(8)? == 0x100
            && usize::try_from(number(12)?) == Ok(header.len());
        let tag = header.last_chunk::<16>()?;
        let digests = header.get(DIGESTS)?;
        let tags = [digests, tag].concat().try_into().ok()?;
        known.then_some(Self(tags))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// SHA-256 over them, for the policy.
    pub(crate) fn measurement(&self) -> Measurement {
        Measurement::from(<[u8; 32]>::from(Sha256::digest(self.0)))
    }
}
