//! What operators may do, and how they are told what they may not.

use std::time::Duration;

use futures_util::StreamExt as _;
use operator_api::{API_PREFIX, App, Device as Object, ImageBundle, PROBLEM_JSON, Problem};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::device::Device;
use crate::site::{Site, container, datastore};

async fn problem(response: Response) -> Problem {
    assert_eq!(response.headers()["content-type"], PROBLEM_JSON);
    let status = response.status();
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(problem.status, status.as_u16());
    problem
}

fn fields(problem: &Problem) -> Vec<&str> {
    problem
        .errors
        .iter()
        .map(|error| error.field.as_str())
        .collect()
}

#[tokio::test]
async fn nothing_is_readable_without_a_token() {
    let site = Site::start().await;
    let refused = site.log_in("admin", "wrong").await.err().unwrap();
    let unknown = site.log_in("nobody", "wrong").await.err().unwrap();
    assert_eq!(
        (refused.status, &refused.detail),
        (401, &unknown.detail),
        "it does not say which of both was wrong"
    );
    for path in [
        "devices",
        "devices/box-1",
        "devices/box-1/log",
        "apps",
        "apps/web/log",
        "apps/web/console",
        "datastores",
        "imagebundle",
    ] {
        for token in [None, Some("skerry_guessed"), Some("")] {
            let mut request = site.http.get(site.url(&format!("{API_PREFIX}/{path}")));
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert_eq!(problem(response).await.status, 401, "{path}");
        }
    }
    let bundle: ImageBundle = site
        .ask(Method::GET, "imagebundle", None)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(bundle.server, format!("localhost:{}", site.address.port()));
    assert!(
        bundle
            .onboard_key
            .unwrap()
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
    let site = site.restart().await;
    assert_eq!(
        site.ask(Method::GET, "devices", None).await.status(),
        StatusCode::OK,
        "tokens survive a restart"
    );
}

#[tokio::test]
async fn errors_name_the_field() {
    let site = Site::start().await;
    Device::registered(&site, "SN").await;
    let put = async |path: &str, body: &Value| {
        problem(site.ask(Method::PUT, path, Some(body)).await).await
    };

    let refused = put("apps/web", &container("web", "box-9", 8080)).await;
    assert_eq!(
        (refused.status, fields(&refused)),
        (422, vec!["spec.device", "spec.image.datastore"])
    );

    site.deploy("web", "box-1", 8080).await;
    let refused = put("apps/other", &container("other", "box-1", 8080)).await;
    assert_eq!(
        (refused.status, fields(&refused)),
        (422, vec!["spec.ports[0].device"])
    );
    assert!(refused.errors[0].message.contains("`web`"), "{refused}");

    let mut tag = container("other", "box-1", 8081);
    tag["spec"]["image"]["reference"] = "hello:latest".into();
    tag["spec"]["resources"] = json!({"cpus": 0});
    let refused = put("apps/other", &tag).await;
    assert_eq!(
        (refused.status, fields(&refused)),
        (422, vec!["spec.image.reference", "spec.resources.cpus"])
    );

    let mut unknown = container("other", "box-1", 8081);
    unknown["spec"]["image"]["tag"] = "latest".into();
    let refused = put("apps/other", &unknown).await;
    assert_eq!(
        (refused.status, fields(&refused)),
        (400, vec!["spec.image.tag"])
    );

    let mut wrong_type = container("other", "box-1", 8081);
    wrong_type["spec"]["ports"][0]["app"] = "http".into();
    let refused = put("apps/other", &wrong_type).await;
    assert_eq!(
        (refused.status, fields(&refused)),
        (400, vec!["spec.ports[0].app"])
    );

    let refused = put("apps/another", &container("other", "box-1", 8081)).await;
    assert_eq!(
        (refused.status, fields(&refused)),
        (422, vec!["metadata.name"])
    );
    let refused = put("apps/other", &datastore()).await;
    assert_eq!(refused.status, 400);
    assert_eq!(site.list::<App>().await.len(), 1);

    let refused = problem(site.ask(Method::GET, "nonsense", None).await).await;
    assert_eq!(refused.status, 404);
    let refused = problem(site.ask(Method::POST, "apps", None).await).await;
    assert_eq!(refused.status, 405);
    let request = site
        .http
        .put(site.url(&format!("{API_PREFIX}/apps/web")))
        .bearer_auth(&site.token);
    assert_eq!(
        problem(request.body("{not json").send().await.unwrap())
            .await
            .status,
        400
    );
    let request = site
        .http
        .put(site.url(&format!("{API_PREFIX}/apps/web")))
        .bearer_auth(&site.token);
    assert_eq!(
        problem(
            request
                .body(vec![b' '; (1 << 20) + 1])
                .send()
                .await
                .unwrap()
        )
        .await
        .status,
        413
    );
}

#[tokio::test]
async fn two_admins_do_not_overwrite_each_other() {
    let site = Site::start().await;
    Device::registered(&site, "SN").await;
    let first = serde_json::to_value(site.deploy("web", "box-1", 8080).await).unwrap();
    let mut mine = first.clone();
    mine["spec"]["ports"][0]["device"] = 8081.into();
    let (status, written) = site.put("apps/web", &mine).await;
    assert_eq!(
        (status, &written["metadata"]["generation"]),
        (StatusCode::OK, &json!(2))
    );
    let mut theirs = first.clone();
    theirs["spec"]["ports"][0]["device"] = 8082.into();
    let refused = problem(site.ask(Method::PUT, "apps/web", Some(&theirs)).await).await;
    assert_eq!(refused.status, 409);

    let (status, same) = site.put("apps/web", &written).await;
    assert_eq!(
        (status, &same["metadata"]["resourceVersion"]),
        (StatusCode::OK, &written["metadata"]["resourceVersion"])
    );

    let url = site.url(&format!("{API_PREFIX}/apps/web"));
    let plain = container("web", "box-1", 8083);
    let old = format!(
        "\"{}\"",
        first["metadata"]["resourceVersion"].as_str().unwrap()
    );
    let request = site
        .http
        .put(&url)
        .bearer_auth(&site.token)
        .header("if-match", old)
        .json(&plain);
    assert_eq!(problem(request.send().await.unwrap()).await.status, 409);
    let tag = site.ask(Method::GET, "apps/web", None).await.headers()["etag"].clone();
    let request = site
        .http
        .put(&url)
        .bearer_auth(&site.token)
        .header("if-match", tag)
        .json(&plain);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    let (status, _) = site.put("apps/web", &container("web", "box-1", 8084)).await;
    assert_eq!(
        status,
        StatusCode::OK,
        "without a version it replaces what is there"
    );
    let mut gone = container("new", "box-1", 8090);
    gone["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(
        problem(site.ask(Method::PUT, "apps/new", Some(&gone)).await)
            .await
            .status,
        409
    );
}

#[tokio::test]
async fn a_device_is_renamed_with_its_apps_and_deleted_without() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN-1").await;
    Device::registered(&site, "SN-2").await;
    site.deploy("web", "box-1", 8080).await;
    let object = json!({
        "apiVersion": "skerry.io/v1", "kind": "Device",
        "metadata": {"name": "gate", "labels": {"site": "hall-3"}}, "spec": {"description": "at the gate"}
    });
    let (status, renamed) = site.put("devices/box-1", &object).await;
    assert_eq!(status, StatusCode::OK, "{renamed}");
    assert_eq!(renamed["metadata"]["uid"], json!(device.id.0));
    assert_eq!(site.get::<App>("web").await.spec.device, "gate");
    assert_eq!(
        device
            .config(&site, "")
            .await
            .1
            .unwrap()
            .config
            .unwrap()
            .device_name,
        "gate"
    );
    let (status, refused) = site.put("devices/box-2", &object).await;
    assert_eq!(
        (status, &refused["errors"][0]["field"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("metadata.name"))
    );
    let mut stranger = object.clone();
    stranger["metadata"]["name"] = "box-7".into();
    assert_eq!(
        site.put("devices/box-7", &stranger).await.0,
        StatusCode::CONFLICT,
        "devices are made by enrolment"
    );

    let delete = async |path: &str| site.ask(Method::DELETE, path, None).await.status();
    assert_eq!(delete("devices/gate").await, StatusCode::CONFLICT);
    assert_eq!(delete("datastores/demo").await, StatusCode::CONFLICT);
    assert_eq!(delete("apps/web").await, StatusCode::OK);
    assert_eq!(delete("apps/web").await, StatusCode::NOT_FOUND);
    assert_eq!(delete("datastores/demo").await, StatusCode::OK);
    assert_eq!(site.datastores().await, []);
    assert_eq!(delete("devices/gate").await, StatusCode::OK);
    let names: Vec<_> = site
        .list::<Object>()
        .await
        .into_iter()
        .map(|device| device.metadata.name)
        .collect();
    assert_eq!(names, ["box-2"]);
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_then_what_changes() {
    let site = Site::start().await;
    Device::registered(&site, "SN").await;
    site.deploy("web", "box-1", 8080).await;
    let request = site
        .http
        .get(site.url(&format!("{API_PREFIX}/apps?watch=true")))
        .bearer_auth(&site.token);
    let mut stream = request.send().await.unwrap().bytes_stream();
    let mut next = async || {
        let line = tokio::time::timeout(std::time::Duration::from_secs(5), stream.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let event: Value = serde_json::from_slice(&line).unwrap();
        (
            event["type"].as_str().unwrap().to_owned(),
            event["object"]["metadata"]["name"]
                .as_str()
                .unwrap()
                .to_owned(),
        )
    };
    let told = |what: &str, name: &str| (what.to_owned(), name.to_owned());
    assert_eq!(next().await, told("ADDED", "web"));
    site.put("apps/db", &container("db", "box-1", 8081)).await;
    assert_eq!(next().await, told("ADDED", "db"));
    site.put("apps/db", &container("db", "box-1", 8082)).await;
    assert_eq!(next().await, told("MODIFIED", "db"));
    site.ask(Method::DELETE, "apps/web", None).await;
    assert_eq!(next().await, told("DELETED", "web"));
}

#[tokio::test]
async fn the_api_describes_itself() {
    let site = Site::start().await;
    let document: Value = site
        .http
        .get(site.url("/openapi.json"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert!(document["paths"][format!("{API_PREFIX}/apps/{{name}}")]["put"].is_object());
}

#[tokio::test]
async fn a_change_goes_through_though_its_client_goes_away() {
    let site = Site::start().await;
    let held = site.hold_writes().await;
    let request = site
        .http
        .put(site.url(&format!("{API_PREFIX}/datastores/demo")))
        .bearer_auth(&site.token)
        .json(&datastore());
    // The client gives up while the change waits for its turn; its connection ends with it.
    tokio::time::timeout(Duration::from_millis(500), request.send())
        .await
        .unwrap_err();
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(held);
    site.eventually("the datastore", async |site| {
        let found = site.ask(Method::GET, "datastores/demo", None).await;
        found.status().is_success().then_some(())
    })
    .await;
}
