//! Logs as streams of lines.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use operator_api::LogEntry;
use serde::Deserialize;

use super::problem::Answer;
use crate::fleet::Fleet;
use crate::fleet::logs::Wanted;
use crate::fleet::objects::Governed;

/// What can be asked of a log.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LogQuery {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    format: Format,
}

/// How lines are given.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// What was written.
    #[default]
    Text,
    /// A `LogEntry` a line.
    Json,
}

pub(super) async fn log<T: Governed>(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Answer> {
    let object: T = fleet.get(&name).await?;
    let owner = object.metadata().uid.unwrap_or_default();
    let format = query.format;
    let entries = fleet
        .read_log(
            owner,
            Wanted {
                tail: query.tail,
                follow: query.follow,
            },
        )
        .await?;
    let stream =
        entries.map(move |entries| entries.map(|entries| Bytes::from(lines(&entries, format))));
    let kind = match format {
        Format::Text => "text/plain; charset=utf-8",
        Format::Json => "application/x-ndjson",
    };
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(stream)).into_response())
}

fn lines(entries: &[LogEntry], format: Format) -> Vec<u8> {
    let mut lines = Vec::new();
    for entry in entries {
        match format {
            Format::Text => {
                let time = entry.time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
                let source = if entry.source.is_empty() {
                    "-"
                } else {
                    &entry.source
                };
                lines.extend(format!("{time} {source} {}\n", entry.content).into_bytes());
            }
            Format::Json => {
                // Strings and a time always make JSON.
                lines.extend(serde_json::to_vec(entry).unwrap_or_default());
                lines.push(b'\n');
            }
        }
    }
    lines
}
