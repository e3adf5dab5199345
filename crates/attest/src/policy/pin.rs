//! Trust on first use: a policy that accepts exactly what one server showed.

use std::collections::BTreeMap;

use occlude_keys::{ModelId, OwnerPublic};

use super::{
    ConfigurationPolicy, EvidencePolicy, FORMAT, ModelPolicy, Policy, ServicePolicy, TpmPolicy,
};
use crate::tpm::{KeyFingerprint, TpmDigest};
use crate::{Claims, Measurement, Protection, Register, TeeKind, Trust, VerifiedService};

impl Policy {
    /// A policy that accepts this service, later versions of its models, and
    /// nothing else. It is marked as not reviewed.
    #[must_use]
    pub fn pin(service: &VerifiedService) -> Self {
        let statement = service.statement();
        let configuration = &statement.configuration;
        let mut evidence = EvidencePolicy::pin(service.claims());
        evidence.configurations = Some(vec![configuration.digest()]);
        Self {
            format: FORMAT,
            reviewed: false,
            evidence,
            service: ServicePolicy {
                owners: statement.owners.clone(),
                models: Some(pinned_models(service)),
                configuration: ConfigurationPolicy {
                    kem: vec![configuration.kem.clone()],
                    padding: Some(vec![configuration.padding.clone()]),
                    client_authentication: Some(vec![configuration.client_authentication.clone()]),
                    brokers: configuration.broker.clone().map(|broker| vec![broker]),
                },
            },
        }
    }
}

impl EvidencePolicy {
    fn pin(claims: &Claims) -> Self {
        let mut evidence = Self {
            tee: vec![claims.tee()],
            trust: vec![claims.trust()],
            protection: vec![claims.protection()],
            measurements: vec![claims.measurement().clone()],
            ..Self::default()
        };
        evidence.pin_platform(claims.platform());
        for part in claims.additional() {
            evidence.additional.push(part.tee());
            evidence.pin_platform(part.platform());
        }
        evidence
    }
}

impl Policy {
    /// A policy that accepts machines with these claims, and services of `owners`, in whatever
    /// configuration. It is marked as not reviewed.
    #[must_use]
    pub fn of_machine(claims: &Claims, owners: Vec<OwnerPublic>) -> Self {
        Self::unreviewed(EvidencePolicy::pin(claims), owners)
    }

    /// A policy that accepts machines of AMD SEV-SNP which were launched from an image that
    /// was measured beforehand, and services of `owners`. It is marked as not reviewed.
    #[must_use]
    pub fn of_launch(measurement: &Measurement, owners: Vec<OwnerPublic>) -> Self {
        let evidence = EvidencePolicy {
            tee: vec![TeeKind::Snp],
            measurements: vec![measurement.clone()],
            ..EvidencePolicy::default()
        };
        Self::unreviewed(evidence, owners)
    }

    /// A policy that accepts machines with one of these TPM keys which booted as a log says,
    /// and services of `owners`: their memory is open. It is marked as not reviewed.
    #[must_use]
    pub fn of_boot(
        registers: &BTreeMap<Register, TpmDigest>,
        attestation_keys: Vec<KeyFingerprint>,
        owners: Vec<OwnerPublic>,
    ) -> Self {
        let evidence = EvidencePolicy {
            tee: vec![TeeKind::Tpm],
            trust: vec![Trust::ListedKey],
            protection: vec![Protection::MeasuredBootOnly],
            tpm: TpmPolicy::expect(registers, attestation_keys),
            ..EvidencePolicy::default()
        };
        Self::unreviewed(evidence, owners)
    }

    fn unreviewed(evidence: EvidencePolicy, owners: Vec<OwnerPublic>) -> Self {
        Self {
            evidence,
            service: ServicePolicy {
                owners,
                ..ServicePolicy::default()
            },
            ..Self::default()
        }
    }
}

/// One entry for each model id, with its owner, who in a statement is one, the lowest
/// version served, and the guards of its versions.
fn pinned_models(service: &VerifiedService) -> Vec<ModelPolicy> {
    let mut models: BTreeMap<&ModelId, ModelPolicy> = BTreeMap::new();
    for model in &service.statement().models {
        let entry = models.entry(&model.id).or_insert_with(|| ModelPolicy {
            id: model.id.clone(),
            owner: Some(model.owner),
            minimum_version: model.version,
            digests: None,
            guards: Some(Vec::new()),
        });
        entry.minimum_version = entry.minimum_version.min(model.version);
        let guards = entry.guards.get_or_insert_default();
        if !guards.contains(&model.guard) {
            guards.push(model.guard.clone());
        }
    }
    models.into_values().collect()
}
