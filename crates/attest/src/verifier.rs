//! Verification: from evidence in hostile hands to claims.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use occlude_weakening::Weakening;
use serde_json::Value;

use crate::binding::BindingForm;
use crate::se::{ExchangeKey, SeRequest};
use crate::{
    AdditionalEvidence, Binding, Claims, Collateral, CollateralError, Evidence, TeeKind, UnixTime,
    VerifyError, azure, cca, nitro, nvidia, se, sgx, snp, tdx, tpm, trustzone, txt,
};

/// What a verifier brings besides its clock. It is offline: whatever a vendor has to
/// say comes with the evidence or is in its [`Collateral`].
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    collateral: Collateral,
    exchange: ExchangeKey,
}

/// Genuine evidence: its signature holds, by a key that is certified up to a root that
/// this program pins. It may be old, or made for somebody else: only
/// [`Genuine::bound_to`] says.
#[derive(Debug, Clone)]
pub struct Genuine {
    primary: Part,
    additional: Vec<Part>,
    /// What the primary part vouches for besides itself.
    vouched: AdditionalEvidence,
}

/// Genuine evidence of one kind: a TEE's own, or of something beside it.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) claims: Claims,
    /// What it is bound to: compared as it is, neither padded nor cut.
    pub(crate) carried: Vec<u8>,
    /// How it carries that.
    pub(crate) form: BindingForm,
}

impl Verifier {
    /// A verifier with collateral.
    #[must_use]
    pub fn new(collateral: Collateral) -> Self {
        Self {
            collateral,
            exchange: ExchangeKey::default(),
        }
    }

    /// What to ask a TEE with, as JSON, where the verifier has to ask first: IBM Secure
    /// Execution. Only this verifier can verify the answer, or with one that
    /// [`LastingVerifier`] gives, any that it gives.
    ///
    /// # Errors
    /// [`VerifyError::CollateralMissing`] if its collateral has no host key or no image.
    ///
    /// # Panics
    /// Never: text has a JSON form.
    pub fn request(&self) -> Result<String, VerifyError> {
        let request = SeRequest::new(&self.collateral, &self.exchange)?;
        Ok(serde_json::to_string(&request).expect("strings have a JSON form"))
    }

    /// Verifies evidence as of `at`: that it is genuine first, then that it carries
    /// `binding`.
    ///
    /// # Errors
    /// [`VerifyError`]; nothing about the sender is known then.
    pub fn verify(
        &self,
        evidence: &Evidence,
        binding: &Binding,
        at: UnixTime,
    ) -> Result<Claims, VerifyError> {
        self.authenticate(evidence, at)?.bound_to(binding)
    }

    /// Verifies that evidence is genuine, as of `at`.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn authenticate(&self, evidence: &Evidence, at: UnixTime) -> Result<Genuine, VerifyError> {
        let additional = evidence.additional().iter().map(|(tee, body)| {
            let part = if TeeKind::ADDITIONAL.contains(tee) {
                self.authenticate_part(*tee, body, at)
            } else {
                Err(VerifyError::Unsupported {
                    what: format!("{tee} beside another TEE"),
                })
            };
            part.map_err(|error| error.of_additional(*tee))
        });
        Ok(Genuine {
            primary: self.authenticate_part(evidence.tee(), evidence.body(), at)?,
            additional: additional.collect::<Result<_, _>>()?,
            vouched: evidence.additional().clone(),
        })
    }

    fn authenticate_part(
        &self,
        tee: TeeKind,
        body: &Value,
        at: UnixTime,
    ) -> Result<Part, VerifyError> {
        let collateral = &self.collateral;
        match tee {
            TeeKind::Simulated => authenticate_simulated(body, at),
            TeeKind::Snp => snp::verify(body, collateral, at),
            TeeKind::Tdx => tdx::verify(body, collateral, at),
            TeeKind::Sgx => sgx::verify(body, collateral, at),
            TeeKind::Nitro => nitro::verify(body, at),
            TeeKind::AzSnpVtpm => azure::verify_snp(body, collateral, at),
            TeeKind::AzTdxVtpm => azure::verify_tdx(body, collateral, at),
            TeeKind::Cca => cca::verify(body, collateral, at),
            TeeKind::TrustZone => trustzone::verify(body, collateral, at),
            TeeKind::Tpm => tpm::verify(body, collateral, at),
            TeeKind::Txt => txt::verify(body, collateral, at),
            TeeKind::Nvidia => nvidia::verify(body, collateral, at),
            TeeKind::Se => se::verify(body, collateral, &self.exchange, at),
        }
    }
}

/// How long a folder of collateral is believed to hold what it held.
const FOLDER_AGE: Duration = Duration::from_secs(60);

/// A verifier for a long time: its folder of collateral, if it has one, is read again
/// before evidence is verified, at most once a minute, so that what was fetched
/// meanwhile counts.
#[derive(Debug, Default)]
pub struct LastingVerifier {
    folder: Option<PathBuf>,
    exchange: ExchangeKey,
    read: Mutex<Option<(Instant, Arc<Verifier>)>>,
}

impl LastingVerifier {
    /// A verifier with the collateral of a folder.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self {
            folder,
            exchange: ExchangeKey::default(),
            read: Mutex::default(),
        }
    }

    /// The verifier as of now.
    ///
    /// # Errors
    /// [`CollateralError`]: a folder that cannot be read is not taken for an empty one.
    pub fn current(&self) -> Result<Arc<Verifier>, CollateralError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, verifier)) = &*read
            && (self.folder.is_none() || since.elapsed() < FOLDER_AGE)
        {
            return Ok(Arc::clone(verifier));
        }
        let collateral = self.folder.as_deref().map(Collateral::read).transpose()?;
        let verifier = Arc::new(Verifier {
            collateral: collateral.unwrap_or_default(),
            exchange: self.exchange.clone(),
        });
        *read = Some((Instant::now(), Arc::clone(&verifier)));
        Ok(verifier)
    }
}

impl Genuine {
    /// What the evidence says, if it carries `binding`.
    ///
    /// # Errors
    /// [`VerifyError::BindingMismatch`].
    pub fn bound_to(self, binding: &Binding) -> Result<Claims, VerifyError> {
        let primary = binding.covering(&self.vouched);
        self.bound_to_each(&primary, binding)
    }

    /// What the evidence says, if the TEE's own carries `primary` and everything beside it
    /// carries `additional`: for a protocol that has its own way to have the one vouch for
    /// the other.
    ///
    /// # Errors
    /// [`VerifyError::BindingMismatch`], or the same of what came along.
    pub fn bound_to_each(
        self,
        primary: &Binding,
        additional: &Binding,
    ) -> Result<Claims, VerifyError> {
        let mut claims = self.primary.bound_to(primary)?;
        for part in self.additional {
            let tee = part.claims.tee;
            let bound = part.bound_to(additional);
            claims
                .additional
                .push(bound.map_err(|error| error.of_additional(tee))?);
        }
        Ok(claims)
    }

    /// What evidence says that may have been recorded in another session: to be shown,
    /// never to be judged.
    #[must_use]
    pub fn unbound_claims(&self) -> Claims {
        Claims {
            additional: self
                .additional
                .iter()
                .map(|part| part.claims.clone())
                .collect(),
            ..self.primary.claims.clone()
        }
    }
}

impl Part {
    pub(crate) fn bound_to(self, binding: &Binding) -> Result<Claims, VerifyError> {
        let bound = self.carried == binding.in_form(self.form);
        if !bound && !occlude_weakening::is(Weakening::UnboundEvidence) {
            return Err(VerifyError::BindingMismatch);
        }
        Ok(self.claims)
    }
}

#[cfg(feature = "simulated")]
fn authenticate_simulated(body: &Value, at: UnixTime) -> Result<Part, VerifyError> {
    crate::simulated::verify(body, at)
}

#[cfg(not(feature = "simulated"))]
fn authenticate_simulated(_: &Value, _: UnixTime) -> Result<Part, VerifyError> {
    Err(VerifyError::SimulatedDisabled)
}
