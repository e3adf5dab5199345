//! Evidence of a trusted execution environment (TEE), verified into claims,
//! judged by policy.
//!
//! 1. A verifier draws a [`Nonce`]. Inside the TEE, an [`Attester`] collects
//!    [`Evidence`] over a [`Binding`]: on the user's leg that of the nonce and the
//!    [`ServiceStatement`], on the broker's leg the KBS protocol's own.
//! 2. A [`Verifier`] turns evidence into [`Claims`], only if its signature and the
//!    binding hold; what vendors publish about their hardware is its [`Collateral`]. [`AttestationResponse::verify`] does so for a server's answer
//!    and gives a [`VerifiedService`].
//! 3. A [`Policy`] judges: [`Policy::judge_claims`] on the broker's leg,
//!    [`Policy::judge_service`] on the user's. What it does not name, it refuses,
//!    and the [`Refusal`] says what was found and what was wanted.
//! 4. [`Policy::pin`] writes a policy from what was seen, marked as not reviewed;
//!    [`sign_policy`] and [`PolicyFile`] carry policies that an owner stands
//!    behind.
//!
//! Hostile: whoever sends evidence, statements and responses, and every file a
//! policy is read from. Evidence and statements have exactly one encoding, so no
//! byte of them can change without refusal.
//!
//! Not here: sockets, clocks (the caller gives the time) and secrets. Each technology
//! has a folder of its own with its collection and its verification. The simulated
//! TEE is behind the cargo feature `simulated`, off by default: **anyone can forge its
//! evidence**, and a build without the feature refuses it whatever a policy says.
#![forbid(unsafe_code)]

pub mod arm;
mod attester;
pub mod azure;
mod binding;
mod canonical;
pub mod cca;
mod certificate;
mod claims;
mod collateral;
mod command;
mod cose;
mod event_log;
mod evidence;
pub mod fetch;
pub mod intel;
mod machine;
pub mod nitro;
pub mod nvidia;
mod policy;
mod presence;
mod recorded;
mod register;
mod response;
pub mod se;
pub mod sgx;
#[cfg(feature = "simulated")]
pub mod simulated;
pub mod snp;
mod statement;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
pub mod tdx;
mod tee;
pub mod tpm;
pub mod trustzone;
mod tsm;
pub mod txt;
mod verifier;

pub use attester::{Attester, CollectError};
pub use binding::{Binding, Nonce, PROTOCOL_VERSION, UnixTime, UnixTimeError};
pub use canonical::DecodeError;
pub use claims::{
    Claims, ConfigurationDigest, Measurement, MeasurementError, Platform, Protection, Trust,
};
pub use collateral::{Collateral, CollateralError, CollateralItem, CollateralKind};
pub use evidence::{AdditionalEvidence, CertificateProblem, Evidence, VerifyError};
pub use machine::Machine;
pub use policy::{
    Policy, PolicyError, PolicyFile, PolicyFileError, Refusal, SignPolicyError, sign_policy,
};
pub use presence::{Collection, Presence, automatic, survey};
pub use recorded::{RecordedError, RecordedEvidence};
pub use register::{Register, RegisterError};
pub use response::{AttestationResponse, VerifiedService};
pub use statement::{SecurityConfiguration, ServedModel, ServiceStatement, StatementError};
pub use tee::{TeeChoice, TeeKind, TeeKindError};
pub use verifier::{Genuine, LastingVerifier, Verifier};
