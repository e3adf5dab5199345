//! Verifying that a quote is of a dynamic launch.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::tpm::{self, TpmDigest};
use crate::verifier::Genuine;
use crate::{Collateral, Measurement, Platform, Register, TeeKind, UnixTime, VerifyError};

/// The registers of the launch: its code and policy, and what it launched.
const LAUNCH: [u64; 2] = [17, 18];

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Genuine, VerifyError> {
    let verified = tpm::verify_quote(body, collateral, at)?;
    let mut launch = Sha256::new();
    for number in LAUNCH {
        let quoted = Register::new(number).and_then(|found| verified.platform.pcrs.get(&found));
        let value = quoted.map(TpmDigest::as_bytes);
        match value {
            Some(value) if *value != [0; 32] && *value != [0xff; 32] => launch.update(value),
            _ => {
                return Err(VerifyError::Unsupported {
                    what: format!(
                        "pcr{number} says that there was no dynamic launch: it is not quoted or was not measured into"
                    ),
                });
            }
        }
    }
    let launch: [u8; 32] = launch.finalize().into();
    Ok(verified.into_genuine(TeeKind::Txt, Measurement::from(launch), Platform::Txt, at))
}
