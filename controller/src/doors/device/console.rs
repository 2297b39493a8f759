//! A device's end of a console. The session's id, random and good once, is its proof.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::ids::SessionId;

use crate::doors::console::{limited, pump};
use crate::fleet::Fleet;

pub(super) async fn console(
    State(fleet): State<Arc<Fleet>>,
    Path(session): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let end = session
        .parse::<SessionId>()
        .ok()
        .and_then(|session| fleet.links().take_console(session));
    let Some(end) = end else {
        return (
            StatusCode::NOT_FOUND,
            "there is no such console session, or it is over",
        )
            .into_response();
    };
    limited(upgrade).on_upgrade(move |socket| pump(socket, end))
}
