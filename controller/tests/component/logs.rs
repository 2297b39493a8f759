//! Logs: taken from devices, given to operators.

use futures_util::StreamExt as _;
use operator_api::{API_PREFIX, LogEntry};
use protocol::logs::{Bundle, DeviceOrigin, LogEntry as Entry, LogTime, Origin};
use protocol::{ids::AppId, paths};
use reqwest::{Method, StatusCode};

use crate::device::{Device, post};
use crate::site::Site;

fn bundle(origin: Origin, lines: &[&str]) -> Vec<u8> {
    let entries = lines
        .iter()
        .map(|line| Entry {
            content: (*line).to_owned(),
            source: "pillar".to_owned(),
            timestamp: Some(LogTime {
                seconds: 1_700_000_000,
                nanos: 5_000_000,
            }),
            ..Entry::default()
        })
        .collect();
    Bundle {
        origin,
        made: 0,
        entries,
    }
    .encode()
    .unwrap()
}

fn of_device(device: &Device) -> Origin {
    Origin::Device(DeviceOrigin {
        device: device.id.to_string(),
        ..DeviceOrigin::default()
    })
}

#[tokio::test]
async fn logs_of_device_and_app_are_read_and_followed() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    let app = site.deploy("web", "box-1", 8080).await;
    let app_path = paths::app_newlogs(device.id, AppId(app.metadata.uid.unwrap()));
    let send = async |path: &str, origin: Origin, lines: &[&str]| {
        post(&site, path, device.seal(bundle(origin, lines)))
            .await
            .0
    };
    assert_eq!(
        send(
            &paths::newlogs(device.id),
            of_device(&device),
            &["booting", "enrolled"]
        )
        .await,
        StatusCode::CREATED
    );
    assert_eq!(
        send(
            &app_path,
            Origin::App("web".to_owned()),
            &["one", "two", "three"]
        )
        .await,
        StatusCode::CREATED
    );
    assert_eq!(
        send(
            &app_path,
            Origin::App("web".to_owned()),
            &["one", "two", "three"]
        )
        .await,
        StatusCode::CREATED,
        "sent again"
    );

    let text = async |path: &str| {
        site.ask(Method::GET, path, None)
            .await
            .text()
            .await
            .unwrap()
    };
    assert_eq!(
        text("devices/box-1/log").await,
        "2023-11-14T22:13:20.005Z pillar booting\n2023-11-14T22:13:20.005Z pillar enrolled\n"
    );
    let lines = |text: String| {
        text.lines()
            .map(|line| line.rsplit(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(text("apps/web/log").await), ["one", "two", "three"]);
    assert_eq!(lines(text("apps/web/log?tail=2").await), ["two", "three"]);
    assert_eq!(
        lines(text("apps/web/log?tail=0").await),
        Vec::<String>::new()
    );
    let entry: LogEntry =
        serde_json::from_str(text("apps/web/log?format=json&tail=1").await.trim()).unwrap();
    assert_eq!(
        (entry.content.as_str(), entry.source.as_str()),
        ("three", "pillar")
    );

    let request = site
        .http
        .get(site.url(&format!("{API_PREFIX}/apps/web/log?follow=true&tail=1")))
        .bearer_auth(&site.token);
    let mut stream = request.send().await.unwrap().bytes_stream();
    let mut next =
        async || String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(next().await.ends_with("three\n"));
    send(&app_path, Origin::App("web".to_owned()), &["four"]).await;
    assert!(next().await.ends_with("four\n"));
}

#[tokio::test]
async fn a_log_that_is_not_ones_own_or_none_at_all_is_not_kept() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN-1").await;
    let other = Device::attested(&site, "SN-2").await;
    let app = site.deploy("web", "box-1", 8080).await;
    let app = AppId(app.metadata.uid.unwrap());
    let path = paths::newlogs(other.id);
    let post = async |path: &str, body: Vec<u8>| post(&site, path, other.seal(body)).await.0;
    assert_eq!(
        post(&path, b"not gzip".to_vec()).await,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        post(&path, bundle(of_device(&device), &["x"])).await,
        StatusCode::BAD_REQUEST,
        "another device's"
    );
    assert_eq!(
        post(&path, bundle(Origin::App("web".to_owned()), &["x"])).await,
        StatusCode::BAD_REQUEST
    );
    // Devices cannot do anything about an app that was deleted meanwhile, so its log is taken, and dropped.
    assert_eq!(
        post(
            &paths::app_newlogs(other.id, app),
            bundle(Origin::App("web".to_owned()), &["x"])
        )
        .await,
        StatusCode::CREATED
    );
    let log = site
        .ask(Method::GET, "apps/web/log", None)
        .await
        .text()
        .await
        .unwrap();
    assert_eq!(log, "");
    assert_eq!(
        site.ask(Method::GET, "apps/none/log", None).await.status(),
        StatusCode::NOT_FOUND
    );
}
