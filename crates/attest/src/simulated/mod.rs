//! The simulated TEE: everything runs on a laptop, and nothing is protected.
//!
//! Its evidence is signed with a test root whose secret stands right here. It
//! shows what a genuine flow looks like and lets every refusal be tested; it
//! proves nothing to anybody. Its claims say [`crate::Trust::Simulated`], the
//! default policy refuses them, and builds without the cargo feature `simulated`
//! do not contain this module.

mod collect;
mod verify;

use ed25519_dalek::{Signer, SigningKey};
use occlude_keys::hexadecimal_bytes;

pub(crate) use collect::SimulatedTee;
pub(crate) use verify::verify;

use crate::{Binding, ConfigurationDigest, Evidence, TeeKind};

/// The Ed25519 seed of the test root.
///
/// **THIS IS A PUBLISHED KEY. ANYONE CAN SIGN WITH IT.** Evidence under it is
/// worth nothing: it exists so that the flow can be run, and attacked, without
/// hardware. Never rely on a build that contains it.
pub const TEST_ROOT_SEED: [u8; 32] = *b"occlude: anyone can forge this!!";

/// Begins what the test root signs.
const LABEL: &[u8] = b"occlude/v1/simulated-evidence\0";

hexadecimal_bytes! {
    /// SHA-256 of an executable.
    pub(crate) ExecutableDigest, 32
}

hexadecimal_bytes! {
    /// An Ed25519 signature.
    pub(crate) SignatureBytes, 64
}

/// What a simulated TEE reports, before it is signed. Public, as the root is:
/// tests forge reports with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedReport {
    /// What the evidence is bound to.
    pub report_data: Binding,
    /// SHA-256 of the executable.
    pub measurement: [u8; 32],
    /// The configuration the process was started with.
    pub configuration: ConfigurationDigest,
    /// The pretended version of the platform's firmware.
    pub tcb: u32,
    /// Whether the host could pretend to debug it.
    pub debug: bool,
}

impl SimulatedReport {
    /// Signs the report with the published test root.
    ///
    /// # Panics
    /// Never: a report always has a JSON form.
    #[must_use]
    pub fn sign(&self) -> Evidence {
        let signature = SigningKey::from_bytes(&TEST_ROOT_SEED).sign(&self.message());
        let body = Body {
            report_data: self.report_data,
            measurement: self.measurement.into(),
            configuration: self.configuration,
            tcb: self.tcb,
            debug: self.debug,
            signature: signature.to_bytes().into(),
        };
        Evidence::new(
            TeeKind::Simulated,
            serde_json::to_value(body).expect("a report has a JSON form"),
        )
    }

    /// The bytes that are signed: all fields, each of fixed length.
    fn message(&self) -> Vec<u8> {
        [
            LABEL,
            self.report_data.as_bytes(),
            &self.measurement,
            self.configuration.as_bytes(),
            &self.tcb.to_le_bytes(),
            &[u8::from(self.debug)],
        ]
        .concat()
    }
}

/// The evidence's body as it travels.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Body {
    report_data: Binding,
    measurement: ExecutableDigest,
    configuration: ConfigurationDigest,
    tcb: u32,
    debug: bool,
    signature: SignatureBytes,
}
