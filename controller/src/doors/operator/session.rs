//! Logging in, the image bundle, and an operator's end of a console.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use operator_api::{EnrolmentWay, FieldError, ImageBundle, TokenRequest};
use serde::Deserialize;

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

/// What can be asked of an image bundle.
#[derive(Debug, Default, Deserialize)]
pub(super) struct BundleQuery {
    /// What devices try, in turn, separated by commas.
    enrolment: Option<String>,
}

pub(super) async fn image_bundle(
    State(fleet): State<Arc<Fleet>>,
    Query(query): Query<BundleQuery>,
) -> Result<Json<ImageBundle>, Answer> {
    let order = order(query.enrolment.as_deref().unwrap_or("zeroTouch,eve"))?;
    Ok(Json(fleet.image_bundle(&order)))
}

fn order(text: &str) -> Result<Vec<EnrolmentWay>, Answer> {
    let mut order = Vec::new();
    for word in text.split(',') {
        let way = match word {
            "zeroTouch" => EnrolmentWay::ZeroTouch,
            "eve" => EnrolmentWay::Eve,
            _ => {
                let message = "must be zeroTouch, eve, or both with a comma between";
                return Err(Answer::bad_request(
                    "the order of enrolment cannot be read",
                    vec![FieldError::new("enrolment", message)],
                ));
            }
        };
        if !order.contains(&way) {
            order.push(way);
        }
    }
    Ok(order)
}

pub(super) async fn console(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Answer> {
    let end = fleet.open_console(&name).await?;
    Ok(limited(upgrade).on_upgrade(move |socket| pump(socket, end)))
}
