//! Verifying a token.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::TrustZonePlatform;
use crate::arm::{Lifecycle, NONCE, verify_device};
use crate::binding::BindingForm;
use crate::verifier::Part;
use crate::{
    Claims, Collateral, Measurement, Platform, Protection, TeeKind, UnixTime, VerifyError,
    canonical,
};

/// The longest token that is read: a device gives some hundred bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The claim that says who asked (RFC 9783, section 4.1.2).
const CLIENT_ID: i64 = 2394;

const PROFILES: [&str; 1] = ["tag:psacertified.org,2023:psa#tfm"];

/// What errors call it.
const THE_TOKEN: &str = "the token";

/// Evidence's body.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    token: String,
}

impl Body {
    pub(super) fn of_token(token: &[u8]) -> Self {
        Self {
            token: STANDARD.encode(token),
        }
    }
}

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let token = canonical::from_base64("token", &body.token)?;
    let malformed = |why: &dyn std::fmt::Display| VerifyError::malformed(THE_TOKEN, why);
    if token.len() > MAX_TOKEN_BYTES {
        return Err(malformed(&format_args!(
            "{} bytes, it has at most {MAX_TOKEN_BYTES}",
            token.len()
        )));
    }
    let keys = collateral.device_keys();
    let (claims, platform, trust) = verify_device(THE_TOKEN, &token, &PROFILES, keys)?;
    let client_id = claims.integer(CLIENT_ID)?;
    let mut firmware = Sha256::new();
    for component in &platform.components {
        firmware.update(component.measurement.as_bytes());
    }
    let firmware: [u8; 32] = firmware.finalize().into();
    Ok(Part {
        carried: claims.bytes(NONCE)?.to_vec(),
        form: BindingForm::Whole,
        claims: Claims {
            tee: TeeKind::TrustZone,
            trust,
            protection: Protection::MeasuredBootOnly,
            measurement: Measurement::from(firmware),
            configuration: None,
            debug: platform.lifecycle != Lifecycle::Secured,
            platform: Platform::TrustZone(Box::new(TrustZonePlatform {
                platform,
                client_id: client_id
                    .try_into()
                    .map_err(|_| malformed(&format_args!("client {client_id}")))?,
            })),
            verified_at: at,
            collateral_until: None,
            additional: Vec::new(),
        },
    })
}
