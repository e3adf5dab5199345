//! The service statement and fresh evidence over it.
//!
//! Anyone may ask, with any nonce, as often as they like: evidence is public. A
//! few at a time are collected, so that asking cannot starve inference.

use std::sync::{Arc, Mutex, PoisonError};

use occlude_attest::{
    AttestationResponse, Attester, CollectError, Nonce, PROTOCOL_VERSION, SecurityConfiguration,
    ServedModel as StatedModel, ServiceStatement,
};
use occlude_channel::Gateway;
use tokio::sync::Semaphore;

use crate::loading::blocking;
use crate::models::Models;

/// Evidence collected at once. Hardware gives some tens of reports a second,
/// whatever the number of askers.
const AT_ONCE: usize = 4;

/// Askers that may wait for their turn; more are sent away.
const WAITING: usize = 64;

/// Collects evidence over the current statement.
pub(crate) struct Attestation {
    attester: Arc<Attester>,
    configuration: SecurityConfiguration,
    models: Arc<Models>,
    gateway: Arc<Gateway>,
    turns: Semaphore,
    queue: Semaphore,
    /// The statement and the generation of channel keys that it carries.
    current: Mutex<Option<(u64, Arc<ServiceStatement>)>>,
}

/// Why there is no evidence.
#[derive(Debug)]
pub(crate) enum AttestationError {
    /// Too many ask at once.
    Busy,
    /// The TEE gave none.
    Failed(CollectError),
}

impl Attestation {
    pub(crate) fn new(
        attester: Arc<Attester>,
        configuration: SecurityConfiguration,
        models: Arc<Models>,
        gateway: Arc<Gateway>,
    ) -> Self {
        Self {
            attester,
            configuration,
            models,
            gateway,
            turns: Semaphore::new(AT_ONCE),
            queue: Semaphore::new(AT_ONCE + WAITING),
            current: Mutex::new(None),
        }
    }

    /// The encoded response to one verifier.
    pub(crate) async fn respond(
        self: &Arc<Self>,
        nonce: Nonce,
        request: Option<String>,
    ) -> Result<Vec<u8>, AttestationError> {
        let _place = self
            .queue
            .try_acquire()
            .map_err(|_| AttestationError::Busy)?;
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|_| AttestationError::Busy)?;
        let attestation = Arc::clone(self);
        blocking(move || {
            let statement = attestation.statement();
            let request = request.as_deref();
            AttestationResponse::collect_answering(
                &attestation.attester,
                &nonce,
                &statement,
                request,
            )
            .map(|response| response.encode())
            .map_err(AttestationError::Failed)
        })
        .await
    }

    /// The statement, rebuilt whenever the channel's keys have rotated.
    pub(crate) fn statement(&self) -> Arc<ServiceStatement> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.gateway.generation();
        if let Some((of, statement)) = &*current
            && *of == generation
        {
            return Arc::clone(statement);
        }
        let statement = Arc::new(self.build());
        *current = Some((generation, Arc::clone(&statement)));
        statement
    }

    fn build(&self) -> ServiceStatement {
        let mut owners = Vec::new();
        for model in self.models.iter() {
            if !owners.contains(&model.owner) {
                owners.push(model.owner);
            }
        }
        ServiceStatement {
            protocol: PROTOCOL_VERSION,
            tee: self.attester.kind(),
            channel_keys: self.gateway.key_configurations(),
            owners,
            models: self
                .models
                .iter()
                .map(|model| StatedModel {
                    id: model.id.clone(),
                    version: model.version,
                    header_digest: model.digest,
                    owner: model.owner,
                    guard: model.guard_name(),
                })
                .collect(),
            configuration: self.configuration.clone(),
        }
    }
}
