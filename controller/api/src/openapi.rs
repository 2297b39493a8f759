//! The description of the operator API (OpenAPI 3.1), generated from the types that it exchanges. The controller serves it; the
//! reference in the book is written from it.

use utoipa::ToSchema;
use utoipa::openapi::content::Content;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
    ResponseBuilder, Schema, Type,
};

use crate::{
    API_PREFIX, AcceptFirmwareRequest, App, AttestationPolicy, Boot, BootReference, Datastore,
    Device, EnrolmentRule, ImageBundle, List, LogEntry, Manifest, Object, PROBLEM_JSON, Problem,
    TokenRequest, TokenResponse, TpmMaker, TrustedKey, WaitingDecided, WaitingDecisionRequest,
    WaitingMachine,
};

const JSON: &str = "application/json";

/// The description.
#[must_use]
pub fn document() -> OpenApi {
    let mut paths = PathsBuilder::new();
    paths = collection::<Device>(paths);
    paths = collection::<App>(paths);
    paths = collection::<Datastore>(paths);
    paths = collection::<Manifest>(paths);
    paths = collection::<EnrolmentRule>(paths);
    paths = collection::<TrustedKey>(paths);
    paths = collection::<TpmMaker>(paths);
    paths = collection::<AttestationPolicy>(paths);
    paths = collection::<BootReference>(paths);
    paths = enrolment(paths);
    for kind in [Device::COLLECTION, App::COLLECTION] {
        let operation = operation("log", kind, "The log, line by line.")
            .parameter(name())
            .parameter(query("tail", Type::Integer, "Only the last so many lines."))
            .parameter(query("follow", Type::Boolean, "Go on with new lines."))
            .parameter(query(
                "format",
                Type::String,
                "`text` (default), or `json` for a LogEntry a line.",
            ))
            .response(
                "200",
                ResponseBuilder::new()
                    .description("Lines.")
                    .content("text/plain", Content::new(None::<RefOr<Schema>>)),
            );
        paths = paths.path(
            format!("{API_PREFIX}/{kind}/{{name}}/log"),
            item(HttpMethod::Get, operation),
        );
    }
    let console = operation(
        "console",
        App::COLLECTION,
        "The console, as a WebSocket of binary messages.",
    )
    .parameter(name())
    .response("101", ResponseBuilder::new().description("A WebSocket."));
    paths = paths.path(
        format!("{API_PREFIX}/apps/{{name}}/console"),
        item(HttpMethod::Get, console),
    );
    let bundle = operation(
        "get",
        "imagebundle",
        "What an installer image needs to know of this controller.",
    )
    .parameter(query(
        "enrolment",
        Type::String,
        "What devices try, in turn, separated by commas: `zeroTouch`, `eve`. Both if left out. Without `eve` the onboarding key is \
         not given.",
    ))
    .response("200", answer::<ImageBundle>("The bundle."));
    paths = paths.path(
        format!("{API_PREFIX}/imagebundle"),
        item(HttpMethod::Get, bundle),
    );
    let log_in = operation("create", "tokens", "Logs in.")
        .request_body(Some(body::<TokenRequest>()))
        .response("201", answer::<TokenResponse>("A token."))
        .securities(Some([SecurityRequirement::default()]));
    paths = paths.path(
        format!("{API_PREFIX}/tokens"),
        item(HttpMethod::Post, log_in),
    );

    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let mut schemas = Vec::new();
    collect::<Device>(&mut schemas);
    collect::<App>(&mut schemas);
    collect::<Datastore>(&mut schemas);
    collect::<Manifest>(&mut schemas);
    collect::<EnrolmentRule>(&mut schemas);
    collect::<WaitingMachine>(&mut schemas);
    collect::<TrustedKey>(&mut schemas);
    collect::<TpmMaker>(&mut schemas);
    collect::<AttestationPolicy>(&mut schemas);
    collect::<BootReference>(&mut schemas);
    collect::<Boot>(&mut schemas);
    collect::<List<Device>>(&mut schemas);
    collect::<List<App>>(&mut schemas);
    collect::<List<Datastore>>(&mut schemas);
    collect::<List<Manifest>>(&mut schemas);
    collect::<List<EnrolmentRule>>(&mut schemas);
    collect::<List<WaitingMachine>>(&mut schemas);
    collect::<List<TrustedKey>>(&mut schemas);
    collect::<List<TpmMaker>>(&mut schemas);
    collect::<List<AttestationPolicy>>(&mut schemas);
    collect::<List<BootReference>>(&mut schemas);
    collect::<List<Boot>>(&mut schemas);
    collect::<WaitingDecisionRequest>(&mut schemas);
    collect::<WaitingDecided>(&mut schemas);
    collect::<AcceptFirmwareRequest>(&mut schemas);
    collect::<ImageBundle>(&mut schemas);
    collect::<LogEntry>(&mut schemas);
    collect::<Problem>(&mut schemas);
    collect::<TokenRequest>(&mut schemas);
    collect::<TokenResponse>(&mut schemas);
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Skerry operator API")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(
                    "Objects are written whole with PUT; errors are problem documents (RFC 9457).",
                )),
        )
        .paths(paths)
        .components(Some(
            ComponentsBuilder::new()
                .schemas_from_iter(schemas)
                .security_scheme("bearer", bearer)
                .build(),
        ))
        .security(Some([SecurityRequirement::new(
            "bearer",
            Vec::<String>::new(),
        )]))
        .build()
}

/// What waits, what was decided about it, and which boots were seen.
fn enrolment(paths: PathsBuilder) -> PathsBuilder {
    let waiting = operation("list", "waiting", "The machines that wait for a person.")
        .response("200", answer::<List<WaitingMachine>>("The machines."));
    let one = operation("get", "waiting", "One.")
        .parameter(name())
        .response("200", answer::<WaitingMachine>("The machine."));
    let forget = operation(
        "delete",
        "waiting",
        "Forgets one, and what was decided about it; if it asks again, it waits again.",
    )
    .parameter(name())
    .response("200", answer::<WaitingMachine>("Its last state."));
    let decide = operation("decide", "waiting", "Approves or denies machines.")
        .request_body(Some(body::<WaitingDecisionRequest>()))
        .response("200", answer::<WaitingDecided>("The machines."));
    let boots = operation(
        "boots",
        "devices",
        "The boots that were seen, newest first.",
    )
    .parameter(name())
    .response("200", answer::<List<Boot>>("The boots."));
    let accept = operation(
        "accept",
        "attestationpolicies",
        "Accepts the firmware of a device's last boot, for all machines that the policy is for.",
    )
    .parameter(name())
    .request_body(Some(body::<AcceptFirmwareRequest>()))
    .response("200", answer::<AttestationPolicy>("The policy."));
    let mut single = PathItem::new(HttpMethod::Get, one);
    single.merge_operations(PathItem::new(HttpMethod::Delete, forget));
    paths
        .path(
            format!("{API_PREFIX}/waiting"),
            item(HttpMethod::Get, waiting),
        )
        .path(format!("{API_PREFIX}/waiting/{{name}}"), single)
        .path(
            format!("{API_PREFIX}/waiting/decisions"),
            item(HttpMethod::Post, decide),
        )
        .path(
            format!("{API_PREFIX}/devices/{{name}}/boots"),
            item(HttpMethod::Get, boots),
        )
        .path(
            format!("{API_PREFIX}/attestationpolicies/{{name}}/firmware"),
            item(HttpMethod::Post, accept),
        )
}

fn collect<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

fn collection<T: Object + ToSchema>(paths: PathsBuilder) -> PathsBuilder {
    let kind = T::COLLECTION;
    let all = operation("list", kind, "All of them, by name.")
        .parameter(query(
            "watch",
            Type::Boolean,
            "Give a line of JSON for each object and then for each change.",
        ))
        .response("200", answer::<List<T>>("The objects."));
    let get = operation("get", kind, "One.")
        .parameter(name())
        .response("200", answer::<T>("The object."));
    let put = operation("put", kind, "Makes or replaces one.")
        .parameter(name())
        .parameter(
            ParameterBuilder::new()
                .name("If-Match")
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some("Resource version that the write is based on."))
                .schema(Some(ObjectBuilder::new().schema_type(Type::String))),
        )
        .request_body(Some(body::<T>()))
        .response("200", answer::<T>("Replaced."))
        .response("201", answer::<T>("Made."));
    let delete = operation("delete", kind, "Deletes one.")
        .parameter(name())
        .response("200", answer::<T>("Its last state."));
    let mut one = PathItem::new(HttpMethod::Get, get);
    one.merge_operations(PathItem::new(HttpMethod::Put, put));
    one.merge_operations(PathItem::new(HttpMethod::Delete, delete));
    paths
        .path(format!("{API_PREFIX}/{kind}"), item(HttpMethod::Get, all))
        .path(format!("{API_PREFIX}/{kind}/{{name}}"), one)
}

fn item(method: HttpMethod, operation: OperationBuilder) -> PathItem {
    PathItem::new(method, operation)
}

fn operation(verb: &str, kind: &str, summary: &str) -> OperationBuilder {
    let problem = ResponseBuilder::new()
        .description("What went wrong.")
        .content(
            PROBLEM_JSON,
            Content::new(Some(RefOr::<Schema>::Ref(Ref::from_schema_name(
                Problem::name(),
            )))),
        );
    let operation: Operation = OperationBuilder::new().response("default", problem).build();
    OperationBuilder::from(operation)
        .operation_id(Some(format!("{verb}_{kind}")))
        .tag(kind)
        .summary(Some(summary))
}

fn name() -> ParameterBuilder {
    ParameterBuilder::new()
        .name("name")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
}

fn query(name: &str, kind: Type, description: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(kind)))
}

fn reference<T: ToSchema>() -> Content {
    Content::new(Some(RefOr::<Schema>::Ref(Ref::from_schema_name(T::name()))))
}

fn body<T: ToSchema>() -> utoipa::openapi::request_body::RequestBody {
    RequestBodyBuilder::new()
        .content(JSON, reference::<T>())
        .required(Some(Required::True))
        .build()
}

fn answer<T: ToSchema>(description: &str) -> ResponseBuilder {
    ResponseBuilder::new()
        .description(description)
        .content(JSON, reference::<T>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.insert(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_path_is_there() {
        let document = serde_json::to_value(document()).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let paths: Vec<_> = document["paths"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        for path in [
            "/devices",
            "/devices/{name}",
            "/devices/{name}/log",
            "/apps/{name}/console",
            "/datastores/{name}",
            "/tokens",
            "/imagebundle",
        ] {
            assert!(paths.contains(&format!("{API_PREFIX}{path}")), "{path}");
        }
        let put = &document["paths"][format!("{API_PREFIX}/apps/{{name}}")]["put"];
        assert_eq!(
            put["requestBody"]["content"][JSON]["schema"]["$ref"],
            "#/components/schemas/App"
        );
        assert_eq!(
            document.pointer("/components/schemas/AppSpec/additionalProperties"),
            Some(&Value::Bool(false))
        );
    }
}
