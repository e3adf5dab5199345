//! Trust on first use: a policy that accepts exactly what one server showed.

use super::{ConfigurationPolicy, EvidencePolicy, FORMAT, ModelPolicy, Policy, ServicePolicy};
use crate::VerifiedService;

impl Policy {
    /// A policy that accepts this service, later versions of its models, and
    /// nothing else. It is marked as not reviewed.
    #[must_use]
    pub fn pin(service: &VerifiedService) -> Self {
        let (claims, statement) = (service.claims(), service.statement());
        let configuration = &statement.configuration;
        Self {
            format: FORMAT,
            reviewed: false,
            evidence: EvidencePolicy {
                tee: vec![claims.tee()],
                trust: vec![claims.trust()],
                protection: vec![claims.protection()],
                measurements: vec![claims.measurement().clone()],
                configurations: Some(vec![configuration.digest()]),
                // TOML's integers end there.
                minimum_tcb: claims.tcb().min(i64::MAX as u64),
            },
            service: ServicePolicy {
                owners: statement.owners.clone(),
                models: Some(pinned_models(service)),
                configuration: ConfigurationPolicy {
                    kem: vec![configuration.kem.clone()],
                    padding: Some(vec![configuration.padding.clone()]),
                    client_authentication: Some(vec![configuration.client_authentication.clone()]),
                    guard: Some(vec![configuration.guard.clone()]),
                    brokers: configuration.broker.clone().map(|broker| vec![broker]),
                },
            },
        }
    }
}

/// One entry for each model id, with the lowest version served.
fn pinned_models(service: &VerifiedService) -> Vec<ModelPolicy> {
    let mut versions = std::collections::BTreeMap::new();
    for model in &service.statement().models {
        let lowest = versions.entry(&model.id).or_insert(model.version);
        *lowest = model.version.min(*lowest);
    }
    versions
        .into_iter()
        .map(|(id, minimum_version)| ModelPolicy {
            id: id.clone(),
            minimum_version,
            digests: None,
        })
        .collect()
}
