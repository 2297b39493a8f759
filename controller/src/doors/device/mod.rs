//! The device API: EVE's device API v2 under `/api/v2/edgedevice`, and under `/api/skerry/v1` our push channel and enrolment by the
//! machine's own keys.
//!
//! | status | when |
//! |---|---|
//! | 200, 201, 304 | as EVE's specification says for each path |
//! | 400 | it cannot be read, or the sender is not registered |
//! | 401 | the signature is not the sender's |
//! | 403 | another device's path, wrong integrity token, foreign onboarding certificate |
//! | 409 | another device has this serial number |
//! | 413, 408 | the body is too large, or did not come in time |
//! | 422 | there is no body |
//! | 503, 507 | too many enrol at once; the store does not answer, or is full: try again later |
//!
//! Bodies of errors are plain text for people: EVE ignores them, our agent shows them.

mod console;
mod enrol;
mod eve;
mod link;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use protocol::paths::CONTENT_TYPE;

use self::eve::Told;
use super::BodyFault;
use crate::fleet::{Fleet, Refused};

/// The device API.
pub fn router(fleet: Arc<Fleet>) -> Router {
    let take = |told| post(move |fleet, subject, body| eve::take(told, fleet, subject, body));
    let eve = Router::new()
        .route("/certs", get(eve::certs).post(eve::certs))
        .route("/ping", get(eve::ping))
        .route("/register", post(eve::register))
        .route("/uuid", post(eve::uuid))
        .route("/id/{device}/config", post(eve::config))
        .route("/id/{device}/attest", post(eve::attest))
        .route("/id/{device}/info", take(Told::Info))
        .route("/id/{device}/metrics", take(Told::Metrics))
        .route("/id/{device}/newlogs", take(Told::Log))
        .route(
            "/id/{device}/apps/instanceid/{app}/newlogs",
            take(Told::Log),
        )
        .route("/id/{device}/logs", take(Told::OldLog))
        .route(
            "/id/{device}/apps/instances/id/{app}/logs",
            take(Told::OldLog),
        )
        .route("/id/{device}/flowlog", take(Told::Flows))
        .route("/id/{device}/hardwarehealth", take(Told::HardwareHealth));
    Router::new()
        .nest(protocol::paths::EVE, eve)
        .route(protocol::paths::LINK, get(link::link))
        .route(protocol::paths::ENROL_HELLO, post(enrol::hello))
        .route(protocol::paths::ENROL_EVIDENCE, post(enrol::evidence))
        .route(
            &format!("{}/console/{{session}}", protocol::paths::SKERRY),
            get(console::console),
        )
        // Each handler bounds its body itself.
        .layer(DefaultBodyLimit::disable())
        .with_state(fleet)
}

/// A sealed message.
fn sealed(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Malformed(_) | Self::UnknownDevice(_) | Self::Ended(_) => StatusCode::BAD_REQUEST,
            Self::Busy => {
                return (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response();
            }
            Self::Signature(_) => StatusCode::UNAUTHORIZED,
            Self::OtherDevice { .. } | Self::Token | Self::Boot(_) | Self::NotAllowed(_) => {
                StatusCode::FORBIDDEN
            }
            Self::Clash(_) => StatusCode::CONFLICT,
            Self::Empty => StatusCode::UNPROCESSABLE_ENTITY,
            Self::StoreFull(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            tracing::error!(error = %self, "device API");
        } else {
            tracing::debug!(%status, error = %self, "device API");
        }
        // What the database says is nobody's business outside.
        let text = if status.is_server_error() {
            "the controller cannot do this at the moment".to_owned()
        } else {
            self.to_string()
        };
        (status, text).into_response()
    }
}

impl IntoResponse for BodyFault {
    fn into_response(self) -> Response {
        match self {
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the message is too large"),
            Self::Slow => (
                StatusCode::REQUEST_TIMEOUT,
                "the message did not arrive in time",
            ),
            Self::Broken => (StatusCode::BAD_REQUEST, "the message did not arrive whole"),
        }
        .into_response()
    }
}
