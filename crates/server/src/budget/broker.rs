//! Asking the broker, for one sealed version.

use std::sync::Arc;

use occlude_broker::{
    Acknowledgement, Allowance, AllowanceRequest, AttestedSession, FetchError, UsageReport,
};
use occlude_keys::{HeaderDigest, ModelKey, OwnerFingerprint, OwnerPublic};

use crate::loading::Loader;

/// Why the broker allows no queries, or takes no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllowError {
    /// It said no, or has no such path.
    #[error("{0}")]
    Refused(String),
    /// It said nothing, or nothing that makes sense.
    #[error("{0}")]
    Unavailable(String),
}

/// Whoever allows queries, and hears what was seen in them.
pub(crate) trait Allow: Send + Sync {
    fn allow(
        &self,
        request: &AllowanceRequest,
    ) -> impl Future<Output = Result<Allowance, AllowError>> + Send;

    fn report(
        &self,
        report: &UsageReport,
    ) -> impl Future<Output = Result<Acknowledgement, AllowError>> + Send;
}

/// What the broker allows one sealed version, and is told of it.
pub(crate) struct BrokerAllowances {
    loader: Arc<Loader>,
    owner: OwnerPublic,
    digest: HeaderDigest,
    key: ModelKey,
    /// Evidence was shown for it; the broker forgets it after a while.
    session: tokio::sync::Mutex<Option<Arc<AttestedSession>>>,
}

impl BrokerAllowances {
    pub(crate) fn new(
        loader: Arc<Loader>,
        owner: OwnerPublic,
        digest: HeaderDigest,
        key: ModelKey,
    ) -> Self {
        Self {
            loader,
            owner,
            digest,
            key,
            session: tokio::sync::Mutex::new(None),
        }
    }

    /// The session that is open, or a new one instead of one that `failed`, and whether it is
    /// new.
    async fn session(
        &self,
        failed: Option<&Arc<AttestedSession>>,
    ) -> Result<(Arc<AttestedSession>, bool), FetchError> {
        let mut current = self.session.lock().await;
        if let Some(session) = &*current
            && failed.is_none_or(|failed| !Arc::ptr_eq(failed, session))
        {
            return Ok((Arc::clone(session), false));
        }
        let Loader {
            broker, attester, ..
        } = &*self.loader;
        let session = Arc::new(broker.attest(attester).await?);
        *current = Some(Arc::clone(&session));
        Ok((session, true))
    }

    /// Says it in the session that is open, and once more in a new one where the broker has
    /// forgotten that.
    async fn exchange<T: Sealed>(&self, said: &T) -> Result<T::Answer, AllowError> {
        let owner = self.owner.fingerprint();
        let place = (&owner, &self.digest, &self.key);
        let asked = async {
            let (session, new) = self.session(None).await?;
            match said.say(&session, place).await {
                Err(FetchError::Refused { .. }) if !new => {
                    let (session, _) = self.session(Some(&session)).await?;
                    said.say(&session, place).await
                }
                answer => answer,
            }
        };
        let answer = asked.await;
        // What was said is not told apart: an operator cannot, either.
        self.loader.metrics.allowance(match &answer {
            Ok(_) => "answered",
            Err(FetchError::Refused { .. }) => "refused",
            Err(_) => "unavailable",
        });
        answer.map_err(|error| match error {
            FetchError::Refused { reason } => AllowError::Refused(reason),
            error => AllowError::Unavailable(error.to_string()),
        })
    }
}

/// The owner, the version and its key.
type Place<'a> = (&'a OwnerFingerprint, &'a HeaderDigest, &'a ModelKey);

/// What the broker alone reads.
trait Sealed: Sync {
    type Answer: Send;

    fn say(
        &self,
        session: &AttestedSession,
        place: Place<'_>,
    ) -> impl Future<Output = Result<Self::Answer, FetchError>> + Send;
}

impl Sealed for AllowanceRequest {
    type Answer = Allowance;

    async fn say(
        &self,
        session: &AttestedSession,
        (owner, digest, key): Place<'_>,
    ) -> Result<Allowance, FetchError> {
        session.allowance(owner, digest, key, self).await
    }
}

impl Sealed for UsageReport {
    type Answer = Acknowledgement;

    async fn say(
        &self,
        session: &AttestedSession,
        (owner, digest, key): Place<'_>,
    ) -> Result<Acknowledgement, FetchError> {
        session.report(owner, digest, key, self).await
    }
}

impl Allow for BrokerAllowances {
    async fn allow(&self, request: &AllowanceRequest) -> Result<Allowance, AllowError> {
        self.exchange(request).await
    }

    async fn report(&self, report: &UsageReport) -> Result<Acknowledgement, AllowError> {
        self.exchange(report).await
    }
}
