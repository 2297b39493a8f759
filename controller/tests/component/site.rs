//! A controller with a data directory of its own, and an operator who is logged in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use controller::fleet::Settings;
use controller::setup::{self, Controller};
use controller::{doors, server};
use operator_api::{
    API_PREFIX, App, Datastore, Device, EnrolmentWay, ImageBundle, List, Object, Problem,
    TokenRequest, TokenResponse,
};
use reqwest::{Method, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub struct Site {
    directory: TempDir,
    controller: Controller,
    pub address: SocketAddr,
    pub http: reqwest::Client,
    pub tls: Arc<rustls::ClientConfig>,
    pub token: String,
    pub bundle: ImageBundle,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
    tending: JoinHandle<()>,
}

impl Site {
    pub async fn start() -> Self {
        Self::start_tuned(|_| ()).await
    }

    /// With other settings than the usual ones.
    pub async fn start_tuned(tune: impl FnOnce(&mut Settings)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), None, tune).await
    }

    async fn start_in(
        directory: TempDir,
        token: Option<String>,
        tune: impl FnOnce(&mut Settings),
    ) -> Self {
        let names = ["localhost".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let listener = server::listen("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let controller = setup::open_tuned(directory.path(), &names, address, tune)
            .await
            .unwrap();
        let bundle = controller
            .fleet
            .image_bundle(&[EnrolmentWay::ZeroTouch, EnrolmentWay::Eve]);
        let tls = client_config(&bundle, &[&rustls::version::TLS13, &rustls::version::TLS12]);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let router = doors::router(controller.fleet.clone());
        let served = tokio::spawn(server::serve(
            listener,
            controller.tls.clone(),
            router,
            server::Limits::default(),
            async {
                let _ = stopped.await;
            },
        ));
        let fleet = controller.fleet.clone();
        let tending = tokio::spawn(async move { fleet.tend().await });
        let mut site = Self {
            directory,
            controller,
            address,
            http,
            tls,
            token: String::new(),
            bundle,
            stop,
            served,
            tending,
        };
        site.token = match token {
            Some(token) => token,
            None => {
                let password =
                    std::fs::read_to_string(site.directory.path().join("admin-password")).unwrap();
                site.log_in("admin", password.trim()).await.unwrap().token
            }
        };
        site
    }

    /// Stops it as a signal would, and starts it again over the same data.
    pub async fn restart(self) -> Self {
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
        self.tending.abort();
        self.controller.fleet.flush().await.unwrap();
        self.controller.store.close().await;
        Self::start_in(self.directory, Some(self.token), |_| ()).await
    }

    /// Where everything of it is kept.
    pub fn data(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub fn fleet(&self) -> &controller::fleet::Fleet {
        &self.controller.fleet
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        let mut reader = self.controller.store.read().await.unwrap();
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}")))
            .fetch_one(&mut *reader)
            .await
            .unwrap()
    }

    /// Holds up whoever wants to write, until it is dropped.
    pub async fn hold_writes(&self) -> controller::store::Writer {
        self.controller.store.write().await.unwrap()
    }

    /// Does to the store what no request can.
    pub async fn sql(&self, statement: &str) {
        let mut writer = self.controller.store.write().await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(statement.to_owned()))
            .execute(&mut *writer)
            .await
            .unwrap();
        writer.commit().await.unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    pub async fn log_in(&self, user: &str, password: &str) -> Result<TokenResponse, Problem> {
        let body = serde_json::to_vec(&TokenRequest {
            user: user.to_owned(),
            password: password.to_owned(),
        })
        .unwrap();
        let response = self
            .http
            .post(self.url(&format!("{API_PREFIX}/tokens")))
            .body(body)
            .send()
            .await
            .unwrap();
        if response.status() == StatusCode::CREATED {
            Ok(response.json().await.unwrap())
        } else {
            Err(response.json().await.unwrap())
        }
    }

    /// A request of the operator, below the API's prefix.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        let mut request = self
            .http
            .request(method, self.url(&format!("{API_PREFIX}/{path}")))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    pub async fn put(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response = self.ask(Method::PUT, path, Some(body)).await;
        (response.status(), response.json().await.unwrap())
    }

    pub async fn get<T: Object + DeserializeOwned>(&self, name: &str) -> T {
        let response = self
            .ask(Method::GET, &format!("{}/{name}", T::COLLECTION), None)
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{name}");
        response.json().await.unwrap()
    }

    pub async fn list<T: Object + DeserializeOwned>(&self) -> Vec<T> {
        let response = self.ask(Method::GET, T::COLLECTION, None).await;
        assert_eq!(response.status(), StatusCode::OK);
        let list: List<T> = response.json().await.unwrap();
        assert_eq!(list.kind, format!("{}List", T::KIND));
        list.items
    }

    /// A datastore `demo` and a container `name` on a device.
    pub async fn deploy(&self, name: &str, device: &str, port: u16) -> App {
        let (status, body) = self.put("datastores/demo", &datastore()).await;
        assert!(status.is_success(), "{body}");
        let (status, body) = self
            .put(&format!("apps/{name}"), &container(name, device, port))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        serde_json::from_value(body).unwrap()
    }

    /// Waits until `look` gives something.
    pub async fn eventually<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut(&Self) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = look(self).await {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: it did not come to pass within 10 s"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn device(&self, name: &str) -> Device {
        self.get(name).await
    }

    pub async fn datastores(&self) -> Vec<Datastore> {
        self.list().await
    }
}

pub fn client_config(
    bundle: &ImageBundle,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(bundle.tls_root_certificates.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

pub fn datastore() -> Value {
    json!({
        "apiVersion": "skerry.io/v1", "kind": "Datastore", "metadata": {"name": "demo"},
        "spec": {"type": "registry", "url": "docker://192.0.2.1:5000"}
    })
}

pub fn container(name: &str, device: &str, port: u16) -> Value {
    json!({
        "apiVersion": "skerry.io/v1", "kind": "App", "metadata": {"name": name},
        "spec": {
            "device": device, "type": "container",
            "image": {"datastore": "demo", "reference": format!("hello@sha256:{}", "ab".repeat(32))},
            "env": {"GREETING": "hello"},
            "ports": [{"device": port, "app": 80}]
        }
    })
}
