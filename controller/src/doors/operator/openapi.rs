//! The operator API's description, `/openapi.json`.

use axum::Json;
use utoipa::openapi::OpenApi;

pub(super) async fn document() -> Json<OpenApi> {
    Json(operator_api::openapi::document())
}
