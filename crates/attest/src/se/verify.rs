//! Verifying an ultravisor's answer to a request of this verifier's.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Sha512;

use super::request::{ADDITIONAL_BYTES, KEY_BYTES, MEASUREMENT_BYTES, NONCE_BYTES};
use super::{ExchangeKey, ImageTags, SePlatform};
use crate::binding::BindingForm;
use crate::verifier::Part;
use crate::{
    Claims, Collateral, Platform, Protection, TeeKind, Trust, UnixTime, VerifyError, canonical,
};

/// Bytes that the guest chooses: the binding.
const USER_DATA_BYTES: usize = 64;

/// Evidence's body, in the KBS protocol's form: each in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) measurement: String,
    pub(super) additional_data: String,
    pub(super) user_data: String,
    pub(super) cuid: String,
    pub(super) encr_measurement_key: String,
    pub(super) encr_request_nonce: String,
    pub(super) image_hdr_tags: String,
}

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    exchange: &ExchangeKey,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let answer = Answer {
        user_data: exactly("user_data", &body.user_data)?,
        cuid: exactly("cuid", &body.cuid)?,
        additional: exactly("additional_data", &body.additional_data)?,
    };
    let asked_with = canonical::from_base64("image_hdr_tags", &body.image_hdr_tags)?;
    let open = |field: &str, text: &str| canonical::from_base64(field, text);
    let key = open("encr_measurement_key", &body.encr_measurement_key)?;
    let nonce = open("encr_request_nonce", &body.encr_request_nonce)?;
    let foreign = || VerifyError::EndorsementMismatch {
        what: "another request than this verifier's",
    };
    let key = exchange
        .open::<KEY_BYTES>(&key, &asked_with)
        .ok_or_else(foreign)?;
    let nonce = exchange
        .open::<NONCE_BYTES>(&nonce, &asked_with)
        .ok_or_else(foreign)?;
    let measurement: [u8; MEASUREMENT_BYTES] = exactly("measurement", &body.measurement)?;
    // The request names one image, and the machine may have started any that is known here.
    let image = collateral
        .images()
        .iter()
        .find(|image| {
            let items = answer.items(image.as_bytes(), &*nonce);
            // A key of any length is one.
            let mac = Hmac::<Sha512>::new_from_slice(&*key).map(|mac| mac.chain_update(items));
            mac.is_ok_and(|mac| mac.verify_slice(&measurement).is_ok())
        })
        .ok_or(VerifyError::BadSignature {
            of: "the answer",
            by: "an ultravisor that started an image of the collateral",
        })?;
    let (image_host_key, host_key) = answer.host_keys();
    Ok(Part {
        carried: answer.user_data.to_vec(),
        form: BindingForm::Whole,
        claims: Claims {
            tee: TeeKind::Se,
            trust: Trust::ListedKey,
            protection: Protection::ConfidentialMemory,
            measurement: image.measurement(),
            configuration: None,
            debug: false,
            platform: Platform::Se(Box::new(SePlatform {
                host_key: host_key.into(),
                image_host_key: image_host_key.into(),
                configuration_uid: answer.cuid.into(),
            })),
            verified_at: at,
            collateral_until: None,
            additional: Vec::new(),
        },
    })
}

fn exactly<const N: usize>(field: &str, text: &str) -> Result<[u8; N], VerifyError> {
    let bytes = canonical::from_base64(field, text)?;
    <[u8; N]>::try_from(&bytes[..])
        .map_err(|_| VerifyError::malformed(field, &format_args!("{} bytes", bytes.len())))
}

/// What an ultravisor vouches for besides the image.
pub(super) struct Answer {
    pub(super) user_data: [u8; USER_DATA_BYTES],
    pub(super) cuid: [u8; 16],
    pub(super) additional: [u8; ADDITIONAL_BYTES],
}

impl Answer {
    /// What is measured: the image, the start, lengths, the guest's bytes, the nonce, and
    /// what else was asked for.
    pub(super) fn items(&self, image: &[u8; ImageTags::BYTES], nonce: &[u8]) -> Vec<u8> {
        items(image, &self.cuid, &self.user_data, nonce, &self.additional)
    }

    /// Hashes of the image's and the request's host key.
    fn host_keys(&self) -> ([u8; 32], [u8; 32]) {
        let mut halves = [[0; 32]; 2];
        for (half, bytes) in halves.iter_mut().zip(self.additional.chunks(32)) {
            half.copy_from_slice(bytes);
        }
        let [image, request] = halves;
        (image, request)
    }
}

/// The measured bytes, one after the other.
pub(super) fn items(
    image: &[u8],
    cuid: &[u8; 16],
    user_data: &[u8],
    nonce: &[u8],
    additional: &[u8],
) -> Vec<u8> {
    [
        image,
        cuid,
        &(user_data.len() as u16).to_be_bytes(),
        &[0; 2],
        &(additional.len() as u32).to_be_bytes(),
        user_data,
        nonce,
        additional,
    ]
    .concat()
}
