//! Logging in, the image bundle, and an operator's end of a console.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use operator_api::{ImageBundle, TokenRequest};

use super::collections::parse;
use super::problem::Answer;
use crate::doors::console::{limited, pump};
use crate::doors::read_body;
use crate::fleet::{Fault, Fleet};

/// Largest login, in bytes.
const MAX_LOGIN: usize = 8 << 10;

/// Lets a request through if its token is good; the handlers find the user in its extensions.
pub(super) async fn authenticate(
    State(fleet): State<Arc<Fleet>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Answer> {
    let header = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    // RFC 9110, section 11.1: the scheme's name is case-insensitive.
    let token = header
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or(Fault::Unauthenticated(
            "log in with POST tokens, and send the token as `Authorization: Bearer TOKEN`",
        ))?;
    let user = fleet.authenticate(token).await?;
    request.extensions_mut().insert(user);
    Ok(next.run(request).await)
}

pub(super) async fn log_in(
    State(fleet): State<Arc<Fleet>>,
    body: Body,
) -> Result<Response, Answer> {
    let request: TokenRequest = parse(&read_body(body, MAX_LOGIN).await?)?;
    let response = fleet.log_in(request).await?;
    Ok((
        StatusCode::CREATED,
        [(header::CACHE_CONTROL, "no-store")],
        Json(response),
    )
        .into_response())
}

pub(super) async fn image_bundle(State(fleet): State<Arc<Fleet>>) -> Json<ImageBundle> {
    Json(fleet.image_bundle())
}

pub(super) async fn console(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Answer> {
    let end = fleet.open_console(&name).await?;
    Ok(limited(upgrade).on_upgrade(move |socket| pump(socket, end)))
}
