//! How many queries are answered.

use serde::{Deserialize, Serialize};

use crate::ConfigurationError;

/// The longest window, in seconds: a year.
const LONGEST_WINDOW: u32 = 365 * 24 * 3600;

/// Limits on how many queries a model answers. A query is one row of an answer, so that
/// asking for many at once gains nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Budgets {
    /// Length of a window in seconds, from 1 to a year. Windows begin at multiples of it,
    /// counted from 1970 by the broker's clock.
    pub window_seconds: u32,
    /// Of each client, whom a token of an issuer names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<QueryBudget>,
    /// Of all clients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<QueryBudget>,
}

/// How many queries there may be; what is left out has no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QueryBudget {
    /// In one window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

impl Budgets {
    pub(crate) fn check(&self) -> Result<(), ConfigurationError> {
        if self.window_seconds == 0 || self.window_seconds > LONGEST_WINDOW {
            return Err(ConfigurationError::Value {
                field: "budgets.window-seconds",
                found: self.window_seconds.to_string(),
                expected: "1 to 31536000, a year",
            });
        }
        for (field, budget) in [
            ("budgets.client", self.client),
            ("budgets.model", self.model),
        ] {
            let Some(budget) = budget else { continue };
            let expected = "window, total or both, each 1 or more";
            let found = match (budget.window, budget.total) {
                (None, None) => "nothing",
                (Some(0), _) | (_, Some(0)) => "0",
                _ => continue,
            };
            return Err(ConfigurationError::Value {
                field,
                found: found.to_owned(),
                expected,
            });
        }
        if self.client.is_none() && self.model.is_none() {
            return Err(ConfigurationError::Value {
                field: "budgets",
                found: "no limit".to_owned(),
                expected: "budgets.client, budgets.model or both",
            });
        }
        Ok(())
    }
}

impl QueryBudget {
    /// The smaller of its limits: the most that can be allowed at once.
    #[must_use]
    pub fn smallest(&self) -> u64 {
        let least = self.window.into_iter().chain(self.total).min();
        least.unwrap_or(u64::MAX)
    }
}
