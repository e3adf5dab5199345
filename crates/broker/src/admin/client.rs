//! The owner's side of an order.

use occlude_keys::{ModelId, ModelKey, ModelVersion, OwnerKey};
use serde::de::DeserializeOwned;

use super::{
    Action, AdminChallenge, AdminRequest, KeyText, ModelRecord, SignedRequest, Withdrawal,
};
use crate::audit::{AuditError, AuditExport, AuditPage};
use crate::kbs::messages::OCCLUDE_PREFIX;
use crate::transport::{CallError, ConnectError, ConnectOptions, Transport};

/// A page of the audit log is the longest answer: at most 500 entries of about 2 kB.
const LONGEST_ANSWER: usize = 4 << 20;

/// Gives one broker an owner's orders.
#[derive(Debug, Clone)]
pub struct AdminClient {
    transport: Transport,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The broker said no.
    #[error("the broker refuses: {reason}")]
    Refused {
        /// The broker's words.
        reason: String,
    },
    /// The broker is down, slow or in trouble; whether it carried out the order is
    /// not known.
    #[error("the broker is unavailable: {reason}")]
    Unavailable {
        /// What went wrong.
        reason: String,
    },
    /// An answer longer than any honest one.
    #[error("the broker's answer is longer than {limit} bytes")]
    AnswerTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// An answer that is not of the protocol.
    #[error("the broker's answer is malformed: {reason}")]
    MalformedAnswer {
        /// What is wrong with it.
        reason: String,
    },
    /// A model key would cross the network in the clear.
    #[error("{url} is neither https nor on this machine, and a model key travels no other way")]
    InTheClear {
        /// The broker.
        url: String,
    },
    /// The audit log that came does not hold together.
    #[error("the broker's audit log is refused: {0}")]
    Audit(#[from] AuditError),
}

impl AdminClient {
    /// A client for the broker at `url`, `http://` or `https://`.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is sent yet.
    pub fn new(url: &str, options: &ConnectOptions) -> Result<Self, ConnectError> {
        Ok(Self {
            transport: Transport::new(url, options)?,
        })
    }

    /// Hands over the key of one sealed version. Doing so again replaces it.
    ///
    /// # Errors
    /// [`AdminError::InTheClear`] before anything is sent, if the broker is neither
    /// on this machine nor reached by https; otherwise as the broker answers.
    pub async fn add_model(
        &self,
        owner: &OwnerKey,
        model: &ModelRecord,
        key: &ModelKey,
    ) -> Result<(), AdminError> {
        if !self.transport.is_private() {
            return Err(AdminError::InTheClear {
                url: self.transport.url().to_string(),
            });
        }
        let action = Action::AddModel {
            model: model.clone(),
            key: KeyText::new(key),
        };
        self.order::<Done>(owner, action).await.map(|Done {}| ())
    }

    /// Sets the release policy of one model, or with `None` of all the owner's
    /// models that have none of their own. It replaces the one before.
    ///
    /// # Errors
    /// [`AdminError::Refused`] if the text is no policy or the order is refused;
    /// otherwise as the broker answers.
    pub async fn set_policy(
        &self,
        owner: &OwnerKey,
        model: Option<&ModelId>,
        policy: &str,
    ) -> Result<(), AdminError> {
        let action = Action::SetPolicy {
            model: model.cloned(),
            policy: policy.to_owned(),
        };
        self.order::<Done>(owner, action).await.map(|Done {}| ())
    }

    /// Withdraws all versions below one. They get no key any more, a running
    /// server's renewal included. This cannot be taken back.
    ///
    /// # Errors
    /// [`AdminError`], as the broker answers.
    pub async fn withdraw(
        &self,
        owner: &OwnerKey,
        model: &ModelId,
        below_version: ModelVersion,
    ) -> Result<Withdrawal, AdminError> {
        let action = Action::Withdraw {
            model: model.clone(),
            below_version,
        };
        self.order(owner, action).await
    }

    /// Reads the whole audit log and checks that it holds together under its signed
    /// head. Compare that head with an earlier one by [`AuditExport::extends`]: a
    /// rollback of the broker's whole database shows only so.
    ///
    /// # Errors
    /// [`AdminError::Audit`] if the chain is broken; otherwise as the broker answers.
    pub async fn audit(&self, owner: &OwnerKey) -> Result<AuditExport, AdminError> {
        let mut export: Option<AuditExport> = None;
        loop {
            let from = export
                .as_ref()
                .map_or(1, |export| export.entries.len() as u64 + 1);
            let page: AuditPage = self.order(owner, Action::Audit { from }).await?;
            let arrived = page.entries.len();
            let export = export.get_or_insert_with(|| AuditExport {
                entries: Vec::new(),
                head: page.head.clone(),
            });
            export.entries.extend(page.entries);
            // What was appended meanwhile lies beyond the first page's head.
            let wanted = usize::try_from(export.head.head.sequence).unwrap_or(usize::MAX);
            if arrived == 0 || export.entries.len() >= wanted {
                export.entries.truncate(wanted);
                break;
            }
        }
        let export = export.expect("the loop ran at least once");
        export.verify()?;
        Ok(export)
    }

    async fn order<T: DeserializeOwned>(
        &self,
        owner: &OwnerKey,
        action: Action,
    ) -> Result<T, AdminError> {
        let AdminChallenge { challenge } = self.post("/admin/challenge", Vec::new()).await?;
        let request = AdminRequest {
            challenge,
            owner: owner.public().fingerprint(),
            action,
        };
        let signed = serde_json::to_vec(&SignedRequest::sign(&request, owner))
            .expect("an envelope of strings makes JSON");
        self.post("/admin", signed).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, AdminError> {
        let answer = self
            .transport
            .post(
                &format!("{OCCLUDE_PREFIX}{path}"),
                None,
                body,
                LONGEST_ANSWER,
            )
            .await
            .map_err(|error| match error {
                CallError::Refused { reason } => AdminError::Refused { reason },
                CallError::Unavailable { reason } => AdminError::Unavailable { reason },
                CallError::TooLong { limit } => AdminError::AnswerTooLong { limit },
            })?;
        serde_json::from_slice(&answer.body).map_err(|error| AdminError::MalformedAnswer {
            reason: error.to_string(),
        })
    }
}

/// The answer to an order that has nothing to tell.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Done {}
