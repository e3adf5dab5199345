//! Leases: a model stays loaded only while its owner's broker says so.
//!
//! 1. Every period, the key is asked for again, with fresh evidence.
//! 2. Refused: the model is unloaded at once and stays so.
//! 3. No answer, or one that makes no sense: the model answers until its lease
//!    ends, two periods after the last release, and is unloaded then; when the
//!    broker answers again, it is opened and loaded again.
//!
//! The clock is monotonic, so setting the machine's date back gains nothing. An
//! operator who cuts the broker off keeps a withdrawn model alive for at most two
//! periods; one who freezes the whole machine also freezes the model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use occlude_keys::ModelKey;

use crate::loading::{FetchKeyError, Loader};
use crate::metrics::Metrics;
use crate::models::ServedModel;

/// How often in one period a broker that does not answer is tried again.
const TRIES_PER_PERIOD: u32 = 10;

/// The lease of one model.
pub(crate) struct Lease {
    pub(crate) model: Arc<ServedModel>,
    pub(crate) loader: Arc<Loader>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) period: Duration,
}

/// When a lease that was asked for at `asked` ends.
pub(crate) fn end(asked: Instant, period: Duration) -> Instant {
    asked + 2 * period
}

impl Lease {
    /// Renews until the model is withdrawn.
    pub(crate) async fn keep(self) {
        let mut next = self.period;
        loop {
            self.wait(next).await;
            // Counted from before the question: a slow answer lengthens nothing.
            let asked = Instant::now();
            let answer = self
                .loader
                .renew_key(&self.model.owner, &self.model.digest, &self.model.key)
                .await;
            next = match answer {
                Ok(key) => {
                    self.grant(key, end(asked, self.period)).await;
                    self.period
                }
                Err(FetchKeyError::Refused { reason }) => {
                    self.model.withdraw();
                    self.count("refused", &reason);
                    return;
                }
                Err(FetchKeyError::Unavailable { reason }) => {
                    self.count("unavailable", &reason);
                    self.period / TRIES_PER_PERIOD
                }
            };
        }
    }

    /// Waits for the next try, and unloads the model if its lease ends meanwhile.
    async fn wait(&self, next: Duration) {
        let next = Instant::now() + next;
        if let Some(end) = self.model.lease_end() {
            tokio::time::sleep_until(end.min(next).into()).await;
            if end <= Instant::now() {
                self.model.lapse();
                self.count("lapsed", "the broker could not be asked");
            }
        }
        tokio::time::sleep_until(next.into()).await;
    }

    async fn grant(&self, key: ModelKey, until: Instant) {
        if self.model.lease_end().is_some() {
            self.model.renew(until);
            self.count("renewed", "");
            return;
        }
        let (path, digest) = (self.model.path.clone(), self.model.digest);
        match self.loader.reload(path, digest, key).await {
            Ok(loaded) => {
                self.model.load(loaded, until);
                self.count("renewed", "loaded again");
            }
            Err(error) => tracing::error!(
                model = %self.model.id, version = self.model.version, %error,
                "the model could not be loaded again"
            ),
        }
    }

    fn count(&self, result: &'static str, reason: &str) {
        self.metrics.lease(result);
        let (model, version) = (&self.model.id, self.model.version);
        if result == "renewed" {
            tracing::info!(%model, version, result, reason, "lease");
        } else {
            tracing::warn!(%model, version, result, reason, "lease");
        }
    }
}
