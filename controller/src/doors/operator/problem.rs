//! Faults of the fleet as problem documents (RFC 9457).

use axum::Json;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use operator_api::{FieldError, PROBLEM_JSON, Problem};

use crate::doors::BodyFault;
use crate::fleet::Fault;

/// An error answer.
pub(super) struct Answer(Problem);

impl Answer {
    fn new(
        status: StatusCode,
        kind: &str,
        title: &str,
        detail: String,
        errors: Vec<FieldError>,
    ) -> Self {
        Self(Problem {
            kind: format!("/problems/{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            errors,
        })
    }

    /// What was asked cannot be understood.
    pub(super) fn bad_request(detail: impl Into<String>, errors: Vec<FieldError>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request cannot be understood",
            detail.into(),
            errors,
        )
    }
}

impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        let detail = fault.to_string();
        let (status, kind, title, errors) = match fault {
            Fault::Unauthenticated(_) => (
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "Not logged in",
                Vec::new(),
            ),
            Fault::NotFound { .. } => (StatusCode::NOT_FOUND, "not-found", "Not found", Vec::new()),
            Fault::Invalid { errors, .. } => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid",
                "The object is not valid",
                errors,
            ),
            Fault::Conflict(_) => (
                StatusCode::CONFLICT,
                "conflict",
                "It does not fit what is there",
                Vec::new(),
            ),
            Fault::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "It cannot be done now",
                Vec::new(),
            ),
            Fault::TooMany(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many",
                "Too much at once",
                Vec::new(),
            ),
            Fault::StoreFull(_) => (
                StatusCode::INSUFFICIENT_STORAGE,
                "disk-full",
                "The disk is full",
                Vec::new(),
            ),
            Fault::Store(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "store",
                "The store does not answer",
                Vec::new(),
            ),
            Fault::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The controller failed",
                Vec::new(),
            ),
        };
        let detail = match status {
            StatusCode::SERVICE_UNAVAILABLE if kind == "unavailable" => detail,
            // What the database says is for the controller's log.
            status if status.is_server_error() => {
                tracing::error!(error = %detail, "operator API");
                format!("{title}; the controller's log says more")
            }
            _ => detail,
        };
        Self::new(status, kind, title, detail, errors)
    }
}

impl From<BodyFault> for Answer {
    fn from(fault: BodyFault) -> Self {
        let (status, detail) = match fault {
            BodyFault::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is too large; an object has 1 MiB at most",
            ),
            BodyFault::Slow => (
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            ),
            BodyFault::Broken => (StatusCode::BAD_REQUEST, "the body did not arrive whole"),
        };
        Self::new(
            status,
            "bad-request",
            "The request cannot be understood",
            detail.to_owned(),
            Vec::new(),
        )
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(PROBLEM_JSON),
        );
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static("Bearer"),
            );
        }
        response
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Answer {
    let detail = format!("there is nothing at {}; see /openapi.json", uri.path());
    Answer::new(
        StatusCode::NOT_FOUND,
        "not-found",
        "Not found",
        detail,
        Vec::new(),
    )
}

pub(super) async fn no_such_method(method: axum::http::Method, uri: Uri) -> Answer {
    let detail = format!(
        "{method} is not possible on {}; see /openapi.json",
        uri.path()
    );
    Answer::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "Not possible",
        detail,
        Vec::new(),
    )
}
