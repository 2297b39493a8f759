//! EVE's paths. Every handler reads the body, opens the envelope, and hands it to the fleet; those that only take what devices tell
//! are one.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::envelope::MAX_REQUEST;
use protocol::ids::{AppId, DeviceId};
use serde::Deserialize;

use super::{BodyFault, sealed};
use crate::doors::read_body;
use crate::fleet::enrol::Registered;
use crate::fleet::poll::Answer;
use crate::fleet::{Fleet, Opened, Refused};

/// Why a request has no answer of the fleet.
pub(super) enum Fault {
    Body(BodyFault),
    Refused(Refused),
}

impl From<BodyFault> for Fault {
    fn from(fault: BodyFault) -> Self {
        Self::Body(fault)
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self {
            Self::Body(fault) => fault.into_response(),
            Self::Refused(refused) => refused.into_response(),
        }
    }
}

fn id<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<T, Refused> {
    text.parse()
        .map_err(|error: T::Err| Refused::Malformed(error.to_string()))
}

/// Reads and opens a message on a device's path.
async fn open(fleet: &Fleet, device: &str, body: Body) -> Result<Opened, Fault> {
    let device: DeviceId = id(device)?;
    Ok(fleet.open_message(&read_body(body, MAX_REQUEST).await?, Some(device))?)
}

pub(super) async fn certs(State(fleet): State<Arc<Fleet>>) -> Result<Response, Fault> {
    Ok(sealed(StatusCode::OK, fleet.certificates()?))
}

pub(super) async fn ping() -> StatusCode {
    StatusCode::OK
}

pub(super) async fn register(
    State(fleet): State<Arc<Fleet>>,
    body: Body,
) -> Result<StatusCode, Fault> {
    Ok(
        match fleet.register(&read_body(body, MAX_REQUEST).await?).await? {
            Registered::New => StatusCode::CREATED,
            Registered::Again => StatusCode::OK,
        },
    )
}

pub(super) async fn uuid(State(fleet): State<Arc<Fleet>>, body: Body) -> Result<Response, Fault> {
    let opened = fleet.open_message(&read_body(body, MAX_REQUEST).await?, None)?;
    Ok(sealed(StatusCode::OK, fleet.uuid(opened).await?))
}

pub(super) async fn config(
    State(fleet): State<Arc<Fleet>>,
    Path(device): Path<String>,
    body: Body,
) -> Result<Response, Fault> {
    let opened = open(&fleet, &device, body).await?;
    Ok(match fleet.config(opened).await? {
        Answer::Unchanged => StatusCode::NOT_MODIFIED.into_response(),
        Answer::Config(config) => sealed(StatusCode::OK, config),
    })
}

pub(super) async fn attest(
    State(fleet): State<Arc<Fleet>>,
    Path(device): Path<String>,
    body: Body,
) -> Result<Response, Fault> {
    let opened = open(&fleet, &device, body).await?;
    Ok(sealed(StatusCode::CREATED, fleet.attest(opened).await?))
}

/// What devices tell, without waiting for more of an answer than that it was taken.
#[derive(Clone, Copy)]
pub(super) enum Told {
    Info,
    Metrics,
    Log,
    /// A log in EVE's old form.
    OldLog,
    Flows,
    HardwareHealth,
}

/// Whom a path is about.
#[derive(Deserialize)]
pub(super) struct Subject {
    device: String,
    /// On the paths of apps' logs.
    app: Option<String>,
}

/// Takes what a device tells.
pub(super) async fn take(
    told: Told,
    State(fleet): State<Arc<Fleet>>,
    Path(subject): Path<Subject>,
    body: Body,
) -> Result<StatusCode, Fault> {
    let app: Option<AppId> = subject.app.as_deref().map(id).transpose()?;
    let opened = open(&fleet, &subject.device, body).await?;
    match (told, app) {
        (Told::Info, _) => fleet.info(opened).await?,
        (Told::Metrics, _) => fleet.metrics(opened).await?,
        (Told::Log, None) => fleet.device_log(opened).await?,
        (Told::Log, Some(app)) => fleet.app_log(opened, app).await?,
        (Told::OldLog, app) => fleet.old_log(opened, app).await?,
        (Told::Flows, _) => fleet.flows(opened).await?,
        (Told::HardwareHealth, _) => fleet.hardware_health(opened).await?,
    }
    Ok(StatusCode::CREATED)
}
