//! The operator API under `/apis/skerry.io/v1`, and its description in `/openapi.json`.

mod collections;
mod logs;
mod openapi;
mod problem;
mod session;
mod waiting;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use operator_api::{
    API_PREFIX, App, AttestationPolicy, BootReference, Datastore, Device, EnrolmentRule, Manifest,
    Object, TpmMaker, TrustedKey,
};

use crate::fleet::Fleet;
use crate::fleet::objects::Governed;

/// The operator API.
pub fn router(fleet: Arc<Fleet>) -> Router {
    let guarded = collection::<Device>()
        .merge(collection::<App>())
        .merge(collection::<Datastore>())
        .merge(collection::<Manifest>())
        .merge(collection::<EnrolmentRule>())
        .merge(collection::<TrustedKey>())
        .merge(collection::<TpmMaker>())
        .merge(collection::<AttestationPolicy>())
        .merge(collection::<BootReference>())
        .route("/waiting", get(waiting::list))
        .route("/waiting/decisions", post(waiting::decide))
        .route("/waiting/{name}", get(waiting::get).delete(waiting::forget))
        .route(
            "/attestationpolicies/{name}/firmware",
            post(waiting::accept_firmware),
        )
        .route("/devices/{name}/boots", get(waiting::boots))
        .route("/devices/{name}/log", get(logs::log::<Device>))
        .route("/apps/{name}/log", get(logs::log::<App>))
        .route("/apps/{name}/console", get(session::console))
        .route("/imagebundle", get(session::image_bundle))
        .route_layer(middleware::from_fn_with_state(
            fleet.clone(),
            session::authenticate,
        ));
    let api = guarded
        .route("/tokens", post(session::log_in))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method);
    Router::new()
        .nest(API_PREFIX, api)
        .route("/openapi.json", get(openapi::document))
        .layer(DefaultBodyLimit::disable())
        .with_state(fleet)
}

fn collection<T: Governed>() -> Router<Arc<Fleet>> {
    let all = format!("/{}", <T as Object>::COLLECTION);
    let one = format!("{all}/{{name}}");
    Router::new()
        .route(&all, get(collections::list::<T>))
        .route(
            &one,
            get(collections::get::<T>)
                .put(collections::put::<T>)
                .delete(collections::delete::<T>),
        )
}
