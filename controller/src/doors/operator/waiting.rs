//! The waiting room, the boots that were seen, and what a person accepts of them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use operator_api::{
    AcceptFirmwareRequest, AttestationPolicy, Boot, List, WaitingDecided, WaitingDecisionRequest,
    WaitingMachine,
};

use super::collections::parse;
use super::problem::Answer;
use crate::doors::read_body;
use crate::fleet::Fleet;
use crate::fleet::users::User;

/// Largest decision, in bytes: some thousand machines by their ids.
const MAX_DECISION: usize = 256 << 10;

/// These lists show no state of the store that one could go on from.
fn list_of<T: operator_api::Object>(items: Vec<T>) -> Json<List<T>> {
    Json(List::new(items, String::new()))
}

pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
) -> Result<Json<List<WaitingMachine>>, Answer> {
    Ok(list_of(fleet.waiting().await?))
}

pub(super) async fn get(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
) -> Result<Json<WaitingMachine>, Answer> {
    Ok(Json(fleet.waiting_machine(&name).await?))
}

pub(super) async fn forget(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
) -> Result<Json<WaitingMachine>, Answer> {
    Ok(Json(fleet.forget_waiting(&name).await?))
}

pub(super) async fn decide(
    State(fleet): State<Arc<Fleet>>,
    Extension(user): Extension<User>,
    body: Body,
) -> Result<Json<WaitingDecided>, Answer> {
    let request: WaitingDecisionRequest = parse(&read_body(body, MAX_DECISION).await?)?;
    Ok(Json(fleet.decide_waiting(&request, &user.name).await?))
}

pub(super) async fn accept_firmware(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<AttestationPolicy>, Answer> {
    let request: AcceptFirmwareRequest = parse(&read_body(body, MAX_DECISION).await?)?;
    Ok(Json(fleet.accept_firmware(&name, &request).await?.object))
}

pub(super) async fn boots(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
) -> Result<Json<List<Boot>>, Answer> {
    Ok(list_of(fleet.boots(&name).await?))
}
