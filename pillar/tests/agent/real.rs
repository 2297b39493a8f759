//! The agent and the real controller, in one process, over TLS on loopback.

use std::path::Path;
use std::time::{Duration, Instant};

use controller::setup::{self, Name};
use controller::{doors, server};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::device::Device;

/// A controller that serves; ended by [`Controller::stop`].
struct Controller {
    port: u16,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Controller {
    /// Serves from `directory`, at `port` or at any.
    async fn start(directory: &Path, port: u16) -> Self {
        let listener = server::listen(format!("127.0.0.1:{port}").parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let name: Name = format!("localhost:{}", address.port()).parse().unwrap();
        let ready = setup::open(directory, &[name], address).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = doors::router(ready.fleet.clone());
        let served = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server::serve(
                listener,
                ready.tls,
                router,
                server::Limits::default(),
                stopped,
            )
            .await;
            ready.fleet.flush().await.unwrap();
            ready.store.close().await;
        });
        Self {
            port: address.port(),
            stop,
            served,
        }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
    }
}

/// The operator.
struct Operator {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Operator {
    async fn log_in(port: u16, root: &str, password: &str) -> Self {
        let root = pillar::bundle::certificates(root.as_bytes()).unwrap();
        let clock = pillar::clock::Clock::unset(std::time::SystemTime::now());
        let tls = pillar::tls::client_config(&root, clock).unwrap();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .build()
            .unwrap();
        let base = format!("https://localhost:{port}/apis/skerry.io/v1");
        let mut operator = Self {
            http,
            base,
            token: String::new(),
        };
        let login = json!({"user": "admin", "password": password});
        let token = operator.ask(Method::POST, "tokens", Some(login)).await;
        operator.token = token["token"].as_str().unwrap().to_owned();
        operator
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.http.request(method, format!("{}/{path}", self.base));
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    /// The device, once it is as wanted.
    async fn device(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..600 {
            last = self.ask(Method::GET, "devices", None).await["items"][0].clone();
            if wanted(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("waited in vain until {what}: {last:#}");
    }
}

fn container(device: &Value) -> Value {
    json!({
        "apiVersion": "skerry.io/v1", "kind": "App", "metadata": {"name": "web"},
        "spec": {
            "device": device["metadata"]["name"], "type": "container",
            "image": {"datastore": "demo", "reference": format!("hello@sha256:{}", "a".repeat(64))},
            "resources": {"cpus": 1, "memoryMiB": 64},
            "env": {"GREETING": "hello"},
            "ports": [{"device": 8080, "app": 80, "protocol": "tcp"}]
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_controller_enrols_attests_configures_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), 0).await;
    let port = controller.port;
    let pki =
        |name: &str| std::fs::read_to_string(directory.path().join("pki").join(name)).unwrap();
    let root = pki("root.pem");
    let password = std::fs::read_to_string(directory.path().join("admin-password")).unwrap();
    let operator = Operator::log_in(port, &root, password.trim()).await;
    let mut device =
        Device::with_bundle(port, &root, &pki("onboard.pem"), &pki("onboard.key.pem")).with_tpm();
    device.journal(
        "{\"__CURSOR\":\"s=x;i=1\",\"__REALTIME_TIMESTAMP\":\"1795204800000000\",\"SYSLOG_IDENTIFIER\":\"kernel\",\
         \"MESSAGE\":\"it boots\"}\n",
    );
    let mut running = device.start();
    running.line("skerry: attested").await;
    running.line("skerry: config applied").await;
    let seen = operator
        .device("it is online with the config it should have", |device| {
            let config = &device["status"]["config"];
            device["status"]["online"] == true
                && config["applied"] == config["wanted"]
                && config["wanted"] != ""
        })
        .await;
    let attestation = &seen["status"]["attestation"];
    // The machine that runs the test has no event log of this TPM to send.
    assert_eq!(attestation["conclusion"], "unproven", "{attestation:#}");
    assert_ne!(attestation["level"], "none", "{attestation:#}");
    assert_eq!(seen["status"]["imageVersion"], "1.2.3");
    operator
        .device("its size is told", |device| {
            device["status"]["memory"]["processes"][0]["name"] == "pillar"
        })
        .await;

    // Told over the link: the budget from operator to device is a second.
    let datastore = json!({
        "apiVersion": "skerry.io/v1", "kind": "Datastore", "metadata": {"name": "demo"},
        "spec": {"type": "registry", "url": "docker://localhost:1"}
    });
    operator
        .ask(Method::PUT, "datastores/demo", Some(datastore))
        .await;
    let asked = Instant::now();
    operator
        .ask(Method::PUT, "apps/web", Some(container(&seen)))
        .await;
    let desired = running.desires(|desired| !desired.apps.is_empty()).await;
    let took = asked.elapsed();
    println!("from operator to device: {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let app = desired.apps.values().next().unwrap();
    assert_eq!(
        (app.name.as_str(), app.memory_mib, app.env.as_slice()),
        ("web", 64, &["GREETING=hello".to_owned()][..])
    );
    assert_eq!(app.interfaces[0].port_maps.len(), 1);

    // Its log is there.
    let path = format!("devices/{}/log", seen["metadata"]["name"].as_str().unwrap());
    let mut log = Value::Null;
    for _ in 0..200 {
        log = operator.ask(Method::GET, &path, None).await;
        if log.to_string().contains("it boots") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(log.to_string().contains("it boots"), "{log}");

    // Without its controller the device starts from what it knows; when the controller is back, all goes on.
    controller.stop().await;
    running.cut().await;
    let mut running = device.start();
    running.desires(|desired| !desired.apps.is_empty()).await;
    running.line("skerry: trouble: controller localhost").await;
    let controller = Controller::start(directory.path(), port).await;
    running.line("skerry: attested").await;
    operator.ask(Method::DELETE, "apps/web", None).await;
    running.desires(|desired| desired.apps.is_empty()).await;
    running.cut().await;
    controller.stop().await;
}
