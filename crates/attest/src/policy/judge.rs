//! The judgement. Each check stands alone: nothing is skipped because another
//! check passed, and the first that fails is told.

use occlude_keys::ModelId;
use occlude_weakening::{Weakening, is};

use super::{ConfigurationPolicy, EvidencePolicy, ModelPolicy, Policy};
use crate::{
    Claims, ConfigurationDigest, Refusal, SecurityConfiguration, ServedModel, ServiceStatement,
    TeeKind, VerifiedService,
};

impl Policy {
    /// Judges verified evidence alone: the broker's leg.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn judge_claims(&self, claims: &Claims) -> Result<(), Refusal> {
        self.judge_tee(claims)?;
        match (&self.evidence.configurations, claims.configuration()) {
            (Some(_), None) => Err(Refusal::ConfigurationNotMeasured),
            (_, Some(found)) => self.judge_configuration_digest(found),
            (None, None) => Ok(()),
        }
    }

    /// Judges a verified service: the user's leg.
    ///
    /// Every model of the statement that the policy names must satisfy it, and
    /// every owner in the statement must be named. A model that the policy does
    /// not name may be there; [`Policy::judge_model`] refuses to use it.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn judge_service(&self, service: &VerifiedService) -> Result<(), Refusal> {
        let (claims, statement) = (service.claims(), service.statement());
        self.judge_tee(claims)?;
        judge_agreement(claims, statement)?;
        self.judge_configuration_digest(&statement.configuration.digest())?;
        self.judge_owners(statement)?;
        for model in &statement.models {
            for wanted in self.model_policies(&model.id) {
                wanted.judge(model)?;
            }
        }
        self.service.configuration.judge(&statement.configuration)
    }

    /// Judges the use of one model of a service that [`Policy::judge_service`]
    /// accepted: it must be served and, if the policy lists models, be listed.
    ///
    /// # Errors
    /// [`Refusal::ModelNotNamed`], [`Refusal::ModelNotServed`].
    pub fn judge_model(&self, service: &VerifiedService, id: &ModelId) -> Result<(), Refusal> {
        if self.service.models.is_some() && self.model_policies(id).next().is_none() {
            return Err(Refusal::ModelNotNamed { id: id.clone() });
        }
        let served = service
            .statement()
            .models
            .iter()
            .any(|model| model.id == *id);
        if !served {
            return Err(Refusal::ModelNotServed { id: id.clone() });
        }
        Ok(())
    }

    /// Refuses a policy that this build cannot honour, before any evidence came.
    ///
    /// # Errors
    /// [`Refusal::SimulatedDisabled`] if it names the simulated TEE in a build
    /// without it: such a policy accepts nothing there.
    pub fn check_enforceable(&self) -> Result<(), Refusal> {
        if cfg!(not(feature = "simulated")) && self.names_simulated() {
            return Err(Refusal::SimulatedDisabled);
        }
        Ok(())
    }

    fn judge_tee(&self, claims: &Claims) -> Result<(), Refusal> {
        self.check_enforceable()?;
        let accepted = &self.evidence;
        // A weakened process judges others like itself.
        if claims.debug() && !occlude_weakening::any() {
            return Err(Refusal::Debug);
        }
        if !accepted.tee.contains(&claims.tee()) {
            return Err(Refusal::Tee {
                found: claims.tee(),
                accepted: accepted.tee.clone(),
            });
        }
        if !accepted.trust.contains(&claims.trust()) {
            return Err(Refusal::Trust {
                found: claims.trust(),
                accepted: accepted.trust.clone(),
            });
        }
        if !accepted.protection.contains(&claims.protection()) {
            return Err(Refusal::Protection {
                found: claims.protection(),
                accepted: accepted.protection.clone(),
            });
        }
        accepted.judge_part(claims)?;
        self.judge_additional(claims.additional())
    }

    /// What came along beside the TEE must be what the policy names: no less, so that
    /// nothing can be left out, and no more, since nobody would have judged it.
    fn judge_additional(&self, found: &[Claims]) -> Result<(), Refusal> {
        let wanted = &self.evidence.additional;
        let kinds: Vec<TeeKind> = found.iter().map(Claims::tee).collect();
        if let Some(missing) = wanted.iter().find(|kind| !kinds.contains(kind)) {
            return Err(Refusal::AdditionalMissing { missing: *missing });
        }
        for part in found {
            if !wanted.contains(&part.tee()) {
                return Err(Refusal::Additional {
                    found: part.tee(),
                    accepted: wanted.clone(),
                });
            }
            if part.debug() {
                return Err(Refusal::Debug);
            }
            self.evidence.judge_part(part)?;
        }
        Ok(())
    }

    fn judge_configuration_digest(&self, found: &ConfigurationDigest) -> Result<(), Refusal> {
        match &self.evidence.configurations {
            Some(accepted) if !accepted.contains(found) => {
                Err(Refusal::Configuration { found: *found })
            }
            _ => Ok(()),
        }
    }

    fn judge_owners(&self, statement: &ServiceStatement) -> Result<(), Refusal> {
        let accepted = &self.service.owners;
        if statement.owners.is_empty() {
            return Err(Refusal::NoOwner {
                accepted: accepted.clone(),
            });
        }
        let foreign = statement
            .owners
            .iter()
            .find(|owner| !accepted.contains(owner));
        match foreign {
            Some(found) if !is(Weakening::AnyOwner) => Err(Refusal::Owner {
                found: Box::new(*found),
                accepted: accepted.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn model_policies(&self, id: &ModelId) -> impl Iterator<Item = &ModelPolicy> {
        let id = id.clone();
        self.service
            .models
            .iter()
            .flatten()
            .filter(move |wanted| wanted.id == id)
    }
}

impl EvidencePolicy {
    /// Judges what a TEE and what comes along beside one have in common: how current the
    /// vendor's word is, the platform, and what was started on it.
    fn judge_part(&self, claims: &Claims) -> Result<(), Refusal> {
        let grace_hours = self.collateral_grace_hours;
        if let Some(until) = claims.collateral_until()
            && claims.verified_at().0 > until.0.saturating_add(u64::from(grace_hours) * 3600)
        {
            return Err(Refusal::StaleCollateral { until, grace_hours });
        }
        self.judge_platform(claims.platform())?;
        if !self.accepts_measurement(claims) && !is(Weakening::AnyMeasurement) {
            return Err(Refusal::Measurement {
                found: claims.measurement().clone(),
            });
        }
        Ok(())
    }
}

impl ModelPolicy {
    fn judge(&self, model: &ServedModel) -> Result<(), Refusal> {
        // Without it the policy has one owner, who is the model's too.
        if let Some(expected) = self.owner
            && model.owner != expected
            && !is(Weakening::AnyOwner)
        {
            return Err(Refusal::ModelOwner {
                id: model.id.clone(),
                found: Box::new(model.owner),
                expected: Box::new(expected),
            });
        }
        if model.version < self.minimum_version && !is(Weakening::AnyVersion) {
            return Err(Refusal::ModelVersion {
                id: model.id.clone(),
                found: model.version,
                minimum: self.minimum_version,
            });
        }
        if let Some(accepted) = &self.guards
            && !accepted.contains(&model.guard)
        {
            return Err(Refusal::ModelGuard {
                id: model.id.clone(),
                found: model.guard.clone(),
                accepted: format!("{accepted:?}"),
            });
        }
        match &self.digests {
            Some(digests)
                if !digests.contains(&model.header_digest) && !is(Weakening::AnyDigest) =>
            {
                Err(Refusal::ModelDigest {
                    id: model.id.clone(),
                    found: model.header_digest,
                })
            }
            _ => Ok(()),
        }
    }
}

impl ConfigurationPolicy {
    fn judge(&self, found: &SecurityConfiguration) -> Result<(), Refusal> {
        if is(Weakening::AnyConfiguration) {
            return Ok(());
        }
        judge_setting("kem", &found.kem, Some(&self.kem))?;
        match &self.padding {
            None if found.padding == "none" => {
                return Err(Refusal::Setting {
                    setting: "padding",
                    found: found.padding.clone(),
                    accepted: "any but \"none\"".to_owned(),
                });
            }
            accepted => judge_setting("padding", &found.padding, accepted.as_ref())?,
        }
        judge_setting(
            "client-authentication",
            &found.client_authentication,
            self.client_authentication.as_ref(),
        )?;
        let broker = found.broker.as_deref().unwrap_or("none");
        judge_setting("brokers", broker, self.brokers.as_ref())
    }
}

fn judge_setting(
    setting: &'static str,
    found: &str,
    accepted: Option<&Vec<String>>,
) -> Result<(), Refusal> {
    match accepted {
        Some(accepted) if !accepted.iter().any(|value| value == found) => Err(Refusal::Setting {
            setting,
            found: found.to_owned(),
            accepted: format!("{accepted:?}"),
        }),
        _ => Ok(()),
    }
}

/// What the statement says about its TEE must be what the evidence says.
fn judge_agreement(claims: &Claims, statement: &ServiceStatement) -> Result<(), Refusal> {
    if statement.tee != claims.tee() {
        return Err(Refusal::StatementTee {
            statement: statement.tee,
            evidence: claims.tee(),
        });
    }
    let stated = statement.configuration.digest();
    match claims.configuration() {
        Some(measured) if *measured != stated => Err(Refusal::StatementConfiguration {
            statement: stated,
            evidence: *measured,
        }),
        _ => Ok(()),
    }
}
