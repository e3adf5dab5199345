//! Claims: a map of numbers (RFC 8392), read with the names that errors give them.

use std::collections::BTreeMap;

use coset::cbor::Value;

use super::{ArmPlatform, Component, DeviceKey, ImplementationId, InstanceId, Lifecycle};
use crate::cose::Signed;
use crate::{Measurement, Trust, VerifyError, canonical};

/// The most components of a firmware; real ones have some fifteen.
const MAX_COMPONENTS: usize = 64;

/// Numbers of claims (RFC 9783, section 4; RFC 9711).
pub(crate) const NONCE: i64 = 10;
pub(crate) const PROFILE: i64 = 265;
const INSTANCE_ID: i64 = 256;
const LIFECYCLE: i64 = 2395;
const IMPLEMENTATION_ID: i64 = 2396;
const COMPONENTS: i64 = 2399;

/// Numbers within a component (RFC 9783, section 4.4.1).
const COMPONENT_NAME: i64 = 1;
const COMPONENT_MEASUREMENT: i64 = 2;
const COMPONENT_VERSION: i64 = 4;
const COMPONENT_SIGNER: i64 = 5;

/// A map of claims, with what errors call it.
#[derive(Debug)]
pub(crate) struct ClaimSet {
    what: &'static str,
    claims: BTreeMap<i64, Value>,
}

impl ClaimSet {
    /// Reads the claims that a message's signature covers. Those that nobody asks for are
    /// left: they are signed.
    pub(crate) fn parse(what: &'static str, payload: &[u8]) -> Result<Self, VerifyError> {
        let mut rest = payload;
        let value: Value = coset::cbor::from_reader(&mut rest)
            .map_err(|error| VerifyError::malformed(what, &error))?;
        if !rest.is_empty() {
            return Err(VerifyError::malformed(what, &"bytes after its claims"));
        }
        Self::from_value(what, value)
    }

    fn from_value(what: &'static str, value: Value) -> Result<Self, VerifyError> {
        let Ok(entries) = value.into_map() else {
            return Err(VerifyError::malformed(what, &"its claims are not a map"));
        };
        let mut claims = BTreeMap::new();
        for (name, value) in entries {
            let number = name
                .as_integer()
                .and_then(|name| i128::from(name).try_into().ok());
            let Some(number) = number else {
                return Err(VerifyError::malformed(
                    what,
                    &"a claim that is not named by a number",
                ));
            };
            if claims.insert(number, value).is_some() {
                return Err(VerifyError::malformed(
                    what,
                    &format_args!("claim {number} twice"),
                ));
            }
        }
        Ok(Self { what, claims })
    }

    pub(crate) fn bytes(&self, claim: i64) -> Result<&[u8], VerifyError> {
        let found = self.claims.get(&claim).and_then(Value::as_bytes);
        found
            .map(Vec::as_slice)
            .ok_or_else(|| self.absent(claim, "bytes"))
    }

    /// Bytes of exactly that length.
    pub(crate) fn exactly<const N: usize>(&self, claim: i64) -> Result<[u8; N], VerifyError> {
        let found = self.bytes(claim)?.try_into();
        found.map_err(|_| self.absent(claim, &format!("{N} bytes")))
    }

    pub(crate) fn integer(&self, claim: i64) -> Result<i64, VerifyError> {
        let found = self.claims.get(&claim).and_then(Value::as_integer);
        found
            .and_then(|found| i128::from(found).try_into().ok())
            .ok_or_else(|| self.absent(claim, "a number"))
    }

    /// A text that may be missing.
    pub(crate) fn text(&self, claim: i64) -> Result<Option<&str>, VerifyError> {
        self.claims
            .get(&claim)
            .map(|found| found.as_text().ok_or_else(|| self.absent(claim, "a text")))
            .transpose()
    }

    /// A digest of 32, 48 or 64 bytes.
    pub(crate) fn measurement(&self, claim: i64) -> Result<Measurement, VerifyError> {
        let found = Measurement::from_bytes(self.bytes(claim)?);
        found.ok_or_else(|| self.absent(claim, "32, 48 or 64 bytes"))
    }

    pub(crate) fn list(&self, claim: i64) -> Result<&[Value], VerifyError> {
        let found = self.claims.get(&claim).and_then(Value::as_array);
        found
            .map(Vec::as_slice)
            .ok_or_else(|| self.absent(claim, "a list"))
    }

    /// That it is one of the profiles that are known.
    pub(crate) fn check_profile(&self, known: &[&str]) -> Result<(), VerifyError> {
        match self.text(PROFILE)? {
            Some(found) if known.contains(&found) => Ok(()),
            found => Err(VerifyError::Unsupported {
                what: format!(
                    "{} of profile {:?}",
                    self.what,
                    canonical::reason(&found.unwrap_or("none"))
                ),
            }),
        }
    }

    fn absent(&self, claim: i64, expected: &str) -> VerifyError {
        VerifyError::malformed(self.what, &format_args!("claim {claim} is not {expected}"))
    }
}

/// Verifies a token that a device signs, and gives its claims with what they say of the
/// device.
///
/// # Errors
/// [`VerifyError`]: another profile, a device whose key the verifier has not, a signature
/// that is not that key's.
pub(crate) fn verify_device(
    what: &'static str,
    token: &[u8],
    profiles: &[&str],
    keys: &[DeviceKey],
) -> Result<(ClaimSet, ArmPlatform, Trust), VerifyError> {
    let signed = Signed::parse(what, token)?;
    let claims = ClaimSet::parse(what, signed.payload())?;
    claims.check_profile(profiles)?;
    let key = DeviceKey::of(&claims, keys)?;
    signed.verify(
        &key.key,
        VerifyError::BadSignature {
            of: what,
            by: "the device's key",
        },
    )?;
    let trust = if key.is_published() {
        Trust::VendorTestRoot
    } else {
        Trust::ListedKey
    };
    let platform = platform(&claims, key)?;
    Ok((claims, platform, trust))
}

/// Reads what a token says of the device, whose key is known.
fn platform(claims: &ClaimSet, key: &DeviceKey) -> Result<ArmPlatform, VerifyError> {
    let lifecycle = claims.integer(LIFECYCLE)?;
    let lifecycle = Lifecycle::from_claim(lifecycle).ok_or_else(|| {
        VerifyError::malformed(claims.what, &format_args!("lifecycle {lifecycle}"))
    })?;
    let listed = claims.list(COMPONENTS)?;
    // A policy that lists components would accept a firmware that lists none.
    if listed.is_empty() || listed.len() > MAX_COMPONENTS {
        return Err(VerifyError::malformed(
            claims.what,
            &format_args!("{} components", listed.len()),
        ));
    }
    let components = listed.iter().map(|component| {
        let component = ClaimSet::from_value(claims.what, component.clone())?;
        Ok(Component {
            name: component.text(COMPONENT_NAME)?.map(str::to_owned),
            measurement: component.measurement(COMPONENT_MEASUREMENT)?,
            signer: component.measurement(COMPONENT_SIGNER)?,
            version: component.text(COMPONENT_VERSION)?.map(str::to_owned),
        })
    });
    Ok(ArmPlatform {
        attestation_key: key.fingerprint(),
        instance_id: key.instance_id,
        implementation_id: key.implementation_id,
        lifecycle,
        components: components.collect::<Result<_, VerifyError>>()?,
    })
}

impl DeviceKey {
    /// The key of the device that a token names, of those that the verifier has.
    pub(crate) fn of<'a>(
        claims: &ClaimSet,
        keys: &'a [DeviceKey],
    ) -> Result<&'a DeviceKey, VerifyError> {
        let instance = InstanceId::from(claims.exactly::<33>(INSTANCE_ID)?);
        let implementation = ImplementationId::from(claims.exactly::<32>(IMPLEMENTATION_ID)?);
        keys.iter()
            .find(|key| key.instance_id == instance && key.implementation_id == implementation)
            .ok_or_else(|| VerifyError::CollateralMissing {
                what: format!("the key of device {instance} of implementation {implementation}"),
            })
    }
}
