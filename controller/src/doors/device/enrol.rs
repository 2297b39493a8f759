//! Enrolment by the machine's own keys: two requests, each with a sealed answer, whatever it says.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use protocol::enrolment::MAX_REQUEST;

use super::eve::Fault;
use super::sealed;
use crate::doors::read_body;
use crate::fleet::Fleet;

/// Largest first message, in bytes: a few certificates and names.
const MAX_HELLO: usize = 64 << 10;

pub(super) async fn hello(State(fleet): State<Arc<Fleet>>, body: Body) -> Result<Response, Fault> {
    let body = read_body(body, MAX_HELLO).await?;
    Ok(sealed(StatusCode::OK, fleet.enrol_hello(body).await?))
}

pub(super) async fn evidence(
    State(fleet): State<Arc<Fleet>>,
    body: Body,
) -> Result<Response, Fault> {
    let body = read_body(body, MAX_REQUEST).await?;
    Ok(sealed(StatusCode::OK, fleet.enrol_evidence(body).await?))
}
