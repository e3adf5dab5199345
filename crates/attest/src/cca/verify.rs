//! Verifying a token: the platform's part by the device's key, then the realm's part by
//! the key that the platform vouches for.

use coset::cbor::Value as Cbor;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::CcaPlatform;
use crate::arm::{ArmPlatform, ClaimSet, Lifecycle, NONCE, PROFILE, verify_device};
use crate::binding::BindingForm;
use crate::cose::{Key, Signed};
use crate::verifier::Part;
use crate::{
    Claims, Collateral, ConfigurationDigest, Measurement, Platform, Protection, TeeKind, Trust,
    UnixTime, VerifyError, canonical,
};

/// The longest token that is read. Real ones have about two kilobytes; the kernel gives
/// at most 4 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Tag and numbers of the two parts.
const TOKEN: u64 = 399;
const PLATFORM_PART: i64 = 44234;
const REALM_PART: i64 = 44241;

/// Claims of the realm's part.
const PERSONALIZATION: i64 = 44235;
const PUBLIC_KEY: i64 = 44237;
const INITIAL_MEASUREMENT: i64 = 44238;
const EXTENSIBLE_MEASUREMENTS: i64 = 44239;
const PUBLIC_KEY_HASH: i64 = 44240;

/// Profiles: of the draft, and of tokens before it.
const PLATFORM_PROFILES: [&str; 2] = [
    "tag:arm.com,2023:cca_platform#1.0.0",
    "http://arm.com/CCA-SSD/1.0.0",
];
const REALM_PROFILE: &str = "tag:arm.com,2023:realm#1.0.0";

/// What errors call the two parts.
const THE_PLATFORM: &str = "the platform's token";
const THE_REALM: &str = "the realm's token";

/// Evidence's body.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) token: Vec<u8>,
}

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let (platform_part, realm_part) = parts(&body.token)?;
    let keys = collateral.device_keys();
    let (claims, platform, trust) =
        verify_device(THE_PLATFORM, &platform_part, &PLATFORM_PROFILES, keys)?;

    let signed = Signed::parse(THE_REALM, &realm_part)?;
    let realm = ClaimSet::parse(THE_REALM, signed.payload())?;
    if realm.text(PROFILE)?.is_some() {
        realm.check_profile(&[REALM_PROFILE])?;
    }
    let realm_key = realm_key(&realm, claims.bytes(NONCE)?)?;
    signed.verify(
        &realm_key,
        VerifyError::BadSignature {
            of: THE_REALM,
            by: "the key that the platform vouches for",
        },
    )?;
    genuine(&realm, platform, trust, at)
}

/// The two parts of a token, in the one encoding that it has.
fn parts(token: &[u8]) -> Result<(Vec<u8>, Vec<u8>), VerifyError> {
    let malformed = |why: &dyn std::fmt::Display| VerifyError::malformed("the token", why);
    if token.len() > MAX_TOKEN_BYTES {
        return Err(malformed(&format_args!(
            "{} bytes, it has at most {MAX_TOKEN_BYTES}",
            token.len()
        )));
    }
    let value: Cbor = coset::cbor::from_reader(token).map_err(|error| malformed(&error))?;
    let mut written = Vec::new();
    coset::cbor::into_writer(&value, &mut written).map_err(|error| malformed(&error))?;
    if written != token {
        return Err(malformed(&"it is not in the one encoding that it has"));
    }
    if let Cbor::Tag(TOKEN, parts) = value
        && let Cbor::Map(parts) = *parts
        && let [(one, Cbor::Bytes(platform)), (other, Cbor::Bytes(realm))] = &parts[..]
        && *one == Cbor::from(PLATFORM_PART)
        && *other == Cbor::from(REALM_PART)
    {
        return Ok((platform.clone(), realm.clone()));
    }
    Err(malformed(&"it is not a platform's and a realm's part"))
}

/// The realm's key, if the platform's part carries its digest: as a key in CBOR, or as
/// the point alone that older tokens have.
fn realm_key(realm: &ClaimSet, vouched: &[u8]) -> Result<Key, VerifyError> {
    let bytes = realm.bytes(PUBLIC_KEY)?;
    let digest = match realm.text(PUBLIC_KEY_HASH)? {
        Some("sha-256") => Sha256::digest(bytes).to_vec(),
        Some("sha-384") => Sha384::digest(bytes).to_vec(),
        Some("sha-512") => Sha512::digest(bytes).to_vec(),
        other => {
            return Err(VerifyError::Unsupported {
                what: format!(
                    "a realm's key under hash {:?}",
                    canonical::reason(&other.unwrap_or("none"))
                ),
            });
        }
    };
    if digest != vouched {
        return Err(VerifyError::EndorsementMismatch {
            what: "another realm's key",
        });
    }
    Key::from_point(bytes)
        .or_else(|| Key::from_cbor(bytes))
        .ok_or_else(|| VerifyError::Malformed {
            reason: format!("{THE_REALM}: its key cannot be read"),
        })
}

fn genuine(
    realm: &ClaimSet,
    platform: ArmPlatform,
    trust: Trust,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let extended = realm.list(EXTENSIBLE_MEASUREMENTS)?.iter().map(|value| {
        let bytes = value.as_bytes().map(Vec::as_slice);
        bytes.and_then(Measurement::from_bytes)
    });
    let extended: Option<Vec<Measurement>> = extended.collect();
    let rem = extended.and_then(|extended| <[Measurement; 4]>::try_from(extended).ok());
    let rem = rem.ok_or_else(|| VerifyError::Malformed {
        reason: format!("{THE_REALM}: its extensible measurements are not four digests"),
    })?;
    let personalization: [u8; 64] = realm.exactly(PERSONALIZATION)?;
    Ok(Part {
        carried: realm.exactly::<64>(NONCE)?.to_vec(),
        form: BindingForm::Whole,
        claims: Claims {
            tee: TeeKind::Cca,
            trust,
            protection: Protection::ConfidentialMemory,
            measurement: realm.measurement(INITIAL_MEASUREMENT)?,
            configuration: ConfigurationDigest::of_launch(&personalization),
            debug: platform.lifecycle != Lifecycle::Secured,
            platform: Platform::Cca(Box::new(CcaPlatform {
                platform,
                rem,
                personalization: personalization.into(),
            })),
            verified_at: at,
            collateral_until: None,
            additional: Vec::new(),
        },
    })
}
