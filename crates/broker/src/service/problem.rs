//! Refusals and failures as KBS tells them: a status and `{type, detail}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kbs_types::ErrorInformation;

use crate::sessions::Full;
use crate::store::StoreError;

/// An answer that is not the one hoped for.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    kind: &'static str,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            detail: detail.into(),
        }
    }

    /// The request is not of the protocol.
    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// Session, challenge, signature or evidence do not hold.
    pub(super) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// They hold, and the answer is still no.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// Nothing is there.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }

    /// What is recorded is not what this broker wrote: nothing is released on it.
    pub(super) fn tampered(error: &StoreError) -> Self {
        tracing::error!(%error, "a record is not believed");
        Self::forbidden(format!("the broker does not believe its record: {error}"))
    }

    /// The words that also go to the audit log.
    pub(super) fn reason(&self) -> String {
        crate::audit::shorten(&self.detail)
    }
}

impl From<Full> for Problem {
    fn from(_: Full) -> Self {
        Self::unavailable("too many challenges are open: try again in a minute")
    }
}

/// What went wrong inside goes to the broker's log, not to whoever asked.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        Self::unavailable("the broker's database failed; its log says how")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ErrorInformation {
            error_type: format!("urn:occlude:broker:{}", self.kind),
            detail: self.detail,
        };
        (self.status, Json(body)).into_response()
    }
}

pub(super) async fn no_such_path() -> Problem {
    Problem::not_found("the broker has no such path")
}

pub(super) async fn no_such_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "malformed",
        "the path has no such method",
    )
}
