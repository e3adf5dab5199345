//! Verifying that a quote is of a dynamic launch.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::tpm::{self, TpmDigest};
use crate::verifier::Part;
use crate::{Collateral, Measurement, Platform, Register, TeeKind, UnixTime, VerifyError};

/// The registers of the launch: its code and policy, and what it launched.
const LAUNCH: [u64; 2] = [17, 18];

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let verified = tpm::verify_quote(body, collateral, at)?;
    let mut launch = Sha256::new();
    for register in LAUNCH.into_iter().filter_map(Register::new) {
        let quoted = verified.platform.pcrs.get(&register);
        match quoted.map(TpmDigest::as_bytes) {
            Some(value) if *value != [0; 32] && *value != [0xff; 32] => launch.update(value),
            _ => return Err(VerifyError::NoLaunch { register }),
        }
    }
    let launch: [u8; 32] = launch.finalize().into();
    Ok(verified.into_part(TeeKind::Txt, Measurement::from(launch), Platform::Txt, at))
}
