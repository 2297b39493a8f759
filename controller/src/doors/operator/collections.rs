//! Lists and objects, for every kind alike.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use operator_api::{FieldError, List, Object};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::Answer;
use super::watch;
use crate::doors::read_body;
use crate::fleet::Fleet;
use crate::fleet::objects::Governed;

/// What can be asked of a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    watch: bool,
}

pub(super) async fn list<T: Governed>(
    State(fleet): State<Arc<Fleet>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Answer> {
    if query.watch {
        return watch::watch::<T>(&fleet).await;
    }
    let (items, revision) = fleet.list::<T>().await?;
    Ok(Json(List::new(items, revision.to_string())).into_response())
}

pub(super) async fn get<T: Governed>(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
) -> Result<Response, Answer> {
    Ok(one(StatusCode::OK, &fleet.get::<T>(&name).await?))
}

pub(super) async fn put<T: Governed>(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Answer> {
    let object: T = parse(&read_body(body, T::LIMIT).await?)?;
    let if_match = match headers.get(header::IF_MATCH).map(|value| value.to_str()) {
        None => None,
        Some(Ok(version)) => Some(version),
        Some(Err(_)) => {
            return Err(Answer::bad_request(
                "the header If-Match cannot be read",
                Vec::new(),
            ));
        }
    };
    let written = fleet.put(&name, object, if_match).await?;
    let status = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(one(status, &written.object))
}

pub(super) async fn delete<T: Governed>(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
) -> Result<Response, Answer> {
    Ok(one(StatusCode::OK, &fleet.delete::<T>(&name).await?))
}

fn one<T: Object>(status: StatusCode, object: &T) -> Response {
    let tag = format!("\"{}\"", object.metadata().resource_version);
    (status, [(header::ETAG, tag)], Json(object)).into_response()
}

/// Reads JSON; an error names the field.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let message = error.inner().to_string();
        Answer::bad_request(
            "the body is not an object of this kind",
            vec![FieldError::new(field, message)],
        )
    })?;
    json.end().map_err(|error| {
        Answer::bad_request(
            format!("the body has more than one object: {error}"),
            Vec::new(),
        )
    })?;
    Ok(parsed)
}
