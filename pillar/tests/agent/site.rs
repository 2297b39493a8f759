//! A controller that does what a test tells it, over real TLS on loopback: the way to answers that a sound controller
//! never gives.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use onboarding::attest::verifier::{self, ReceivedCertificate, Request as Attest};
use onboarding::attest::{QuoteAnswer, Versions};
use prost::Message as _;
use protocol::enrolment::seal::Flight;
use protocol::envelope::{self, Certificate, Envelope, MAX_REQUEST};
use protocol::eve::attest::ZAttestReq;
use protocol::eve::config::{ConfigRequest, ConfigResponse, EdgeDevConfig, UuiDandVersion};
use protocol::eve::info::ZInfoMsg;
use protocol::eve::metrics::ZMetricMsg;
use protocol::eve::register::ZRegisterMsg;
use protocol::eve::uuid::UuidResponse;
use protocol::ids::{AppId, DeviceId, SessionId};
use protocol::keys::CertHash;
use protocol::link::{Nonce, Proof, ServerMessage};
use protocol::logs::Bundle;
use protocol::paths;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::door::Door;
use crate::pki::{Root, Signing};

/// Certificates that are valid today.
pub const NOW: (i32, i32) = (2020, 2090);

/// What goes wrong with a request, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives.
    Request,
    /// It is dealt with, and the answer never arrives.
    Answer,
}

/// What a network puts in the controller's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Portal {
    /// A way to somewhere else.
    Redirect,
    /// A page for people.
    Page,
}

/// How the next config requests are answered.
#[derive(Clone, Debug)]
pub enum Answer {
    Good,
    BadSignature,
    StrangeSigner,
    OtherDevice,
    NotAConfig,
    NotAnEnvelope,
}

pub struct State {
    pub signing: Signing,
    pub stranger: Signing,
    pub device: DeviceId,
    /// The device's certificate, DER, once it has registered.
    pub registered: Option<Vec<u8>>,
    pub attestation_certificate: Option<Vec<u8>>,
    /// The certificate of the device's key for secrets.
    pub ecdh: Option<ReceivedCertificate>,
    pub nonce: Option<Vec<u8>>,
    pub token: Option<Vec<u8>>,
    pub refuse_quotes: bool,
    /// What the 403 to a config request says.
    pub refusal: &'static str,
    pub quotes: Vec<(bool, Versions)>,
    pub config: EdgeDevConfig,
    pub hash: String,
    pub answer: Answer,
    pub down: bool,
    pub infos: Vec<ZInfoMsg>,
    pub metrics: Vec<ZMetricMsg>,
    pub logs: Vec<(String, Bundle)>,
    pub log_status: VecDeque<u16>,
    pub seen: Vec<String>,
    pub headers: HashMap<String, String>,
    pub not_modified: u32,
    pub proofs: u32,
    pub date: Option<String>,
    pub root: Arc<Root>,
    /// The zero-touch door; none: this controller has no such paths.
    pub door: Option<Door>,
    /// Validity of the certificates that are granted.
    pub granted_years: (i32, i32),
    /// Faults by path, each of which happens once.
    pub faults: Vec<(&'static str, Fault)>,
    pub portal: Option<Portal>,
    /// Heads and bodies as they went over, both ways, without TLS: what an inspecting proxy sees.
    pub wire: Vec<u8>,
    /// Names that device messages came under.
    pub senders: Vec<CertHash>,
}

/// A running controller. Cheap to clone.
#[derive(Clone)]
pub struct Site {
    pub root: Arc<Root>,
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    push: broadcast::Sender<ServerMessage>,
    consoles: broadcast::Sender<SessionId>,
    console_in: Arc<Mutex<mpsc::UnboundedSender<Vec<u8>>>>,
    console_out: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>>,
    console_from_test: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>>,
    console_to_test: mpsc::UnboundedSender<Vec<u8>>,
}

impl Site {
    pub async fn start() -> Self {
        Self::start_valid(NOW).await
    }

    /// With certificates that are valid in the years given.
    pub async fn start_valid(years: (i32, i32)) -> Self {
        let root = Arc::new(Root::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = TlsAcceptor::from(root.tls(years));
        let (console_in, console_from_test) = mpsc::unbounded_channel();
        let (console_to_test, console_out) = mpsc::unbounded_channel();
        let state = State {
            signing: root.signing(years),
            stranger: Root::new().signing(NOW),
            device: DeviceId::random(),
            registered: None,
            attestation_certificate: None,
            ecdh: None,
            nonce: None,
            token: None,
            refuse_quotes: false,
            refusal: "",
            quotes: Vec::new(),
            config: EdgeDevConfig::default(),
            hash: "first".into(),
            answer: Answer::Good,
            down: false,
            infos: Vec::new(),
            metrics: Vec::new(),
            logs: Vec::new(),
            log_status: VecDeque::new(),
            seen: Vec::new(),
            headers: HashMap::new(),
            not_modified: 0,
            proofs: 0,
            date: None,
            root: root.clone(),
            door: None,
            granted_years: (2020, 2090),
            faults: Vec::new(),
            portal: None,
            wire: Vec::new(),
            senders: Vec::new(),
        };
        let site = Self {
            root,
            address,
            state: Arc::new(Mutex::new(state)),
            push: broadcast::channel(16).0,
            consoles: broadcast::channel(16).0,
            console_in: Arc::new(Mutex::new(console_in)),
            console_out: Arc::new(tokio::sync::Mutex::new(console_out)),
            console_from_test: Arc::new(tokio::sync::Mutex::new(console_from_test)),
            console_to_test,
        };
        let serving = site.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if serving.with(|state| state.down) {
                    continue;
                }
                let (site, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(tcp).await else {
                        return;
                    };
                    let service = service_fn(move |request| site.clone().answer(request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        site
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Gives the device a new config and tells it so over the link.
    pub fn configure(&self, hash: &str, config: EdgeDevConfig) {
        self.with(|state| {
            state.config = config;
            state.hash = hash.into();
            state.answer = Answer::Good;
        });
        let _ = self.push.send(ServerMessage::ConfigChanged);
    }

    /// Answers like this from now on and has the device ask.
    pub fn answer_with(&self, answer: Answer) {
        self.with(|state| state.answer = answer);
        let _ = self.push.send(ServerMessage::ConfigChanged);
    }

    pub fn open_console(&self, app: AppId) -> SessionId {
        let session = SessionId::random();
        self.push
            .send(ServerMessage::OpenConsole { session, app })
            .unwrap();
        session
    }

    pub fn type_on_console(&self, bytes: &[u8]) {
        self.console_in
            .lock()
            .unwrap()
            .send(bytes.to_vec())
            .unwrap();
    }

    pub async fn read_console(&self) -> Vec<u8> {
        self.console_out.lock().await.recv().await.unwrap()
    }

    /// Waits until something is the case, for as long as a slow machine may need.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        for _ in 0..1500 {
            if let Some(found) = self.with(&mut look) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "waited in vain until {what}; requests: {:?}",
            self.with(|state| state.seen.clone())
        );
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, io::Error> {
        let path = request.uri().path().to_owned();
        let fault = self.with(|state| {
            let place = state.faults.iter().position(|(at, _)| *at == path)?;
            Some(state.faults.remove(place).1)
        });
        let lost = || Err(io::Error::other("lost on its way"));
        if fault == Some(Fault::Request) {
            return lost();
        }
        if let Some(portal) = self.with(|state| state.portal) {
            return Ok(portal.response());
        }
        let response = self.dispatch(request).await;
        if fault == Some(Fault::Answer) {
            return lost();
        }
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        self.with(|state| {
            state.wire.extend(format!("{head:?}\n").into_bytes());
            state.wire.extend(&body);
        });
        let mut response = Response::from_parts(head, Full::new(body));
        if let Some(date) = self.with(|state| state.date.clone()) {
            response.headers_mut().insert("date", date.parse().unwrap());
        }
        Ok(response)
    }

    async fn dispatch(&self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        if self.with(|state| state.down) {
            return status(503);
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        self.with(|state| {
            state.seen.push(format!("{method} {path}"));
            let head = format!("{method} {path} {:?}\n", request.headers());
            state.wire.extend(head.into_bytes());
            for (name, value) in request.headers() {
                state.headers.insert(
                    format!("{path} {name}"),
                    value.to_str().unwrap_or("").to_owned(),
                );
            }
        });
        if let Some(key) = request.headers().get("sec-websocket-key").cloned() {
            let upgrade = hyper::upgrade::on(&mut request);
            let site = self.clone();
            tokio::spawn(async move {
                let stream = TokioIo::new(upgrade.await.unwrap());
                let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
                match path.strip_prefix("/api/skerry/v1/console/") {
                    Some(_) => site.console(socket).await,
                    None => site.link(socket).await,
                }
            });
            return Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-accept", derive_accept_key(key.as_bytes()))
                .body(Full::default())
                .unwrap();
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        self.with(|state| {
            state.wire.extend(&body);
            state.handle(&method, &path, &body)
        })
    }

    async fn link(&self, mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) {
        let nonce = Nonce::random().unwrap();
        let hello = ServerMessage::Hello { nonce }.to_text().unwrap();
        socket.send(Message::Text(hello.into())).await.unwrap();
        let Some(Ok(Message::Binary(proof))) = socket.next().await else {
            return;
        };
        let known = self.with(|state| {
            let envelope = Proof::parse(&proof).unwrap();
            let Some(registered) = &state.registered else {
                return false;
            };
            let certificate = Certificate::of_device_der(registered).unwrap();
            Proof::check(envelope, &certificate, state.device, nonce).unwrap();
            state.proofs += 1;
            true
        });
        if !known {
            return;
        }
        let mut push = self.push.subscribe();
        loop {
            tokio::select! {
                message = push.recv() => {
                    if socket.send(Message::Text(message.unwrap().to_text().unwrap().into())).await.is_err() {
                        return;
                    }
                }
                message = socket.next() => {
                    if !matches!(message, Some(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }

    async fn console(&self, mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) {
        let _ = self.consoles.send(SessionId::random());
        let mut typed = self.console_from_test.lock().await;
        loop {
            tokio::select! {
                bytes = typed.recv() => socket.send(Message::Binary(bytes.unwrap().into())).await.unwrap(),
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => self.console_to_test.send(bytes.to_vec()).unwrap(),
                    Some(Ok(Message::Close(_))) | None | Some(Err(_)) => return,
                    Some(Ok(_)) => {}
                }
            }
        }
    }
}

impl State {
    fn handle(&mut self, method: &Method, path: &str, body: &[u8]) -> Response<Full<Bytes>> {
        if (method, path) == (&Method::GET, paths::CERTS) {
            return self.signed(self.signing.set.encode_to_vec());
        }
        match path {
            paths::ENROL_HELLO => return self.enrol(Flight::Hello, body),
            paths::ENROL_EVIDENCE => return self.enrol(Flight::Evidence, body),
            _ => {}
        }
        let Ok(envelope) = Envelope::parse(body, MAX_REQUEST) else {
            return status(400);
        };
        if path == paths::REGISTER {
            return self.register(envelope);
        }
        let Some(der) = &self.registered else {
            return status(400);
        };
        let certificate = Certificate::of_device_der(der).unwrap();
        self.senders.push(*envelope.sender());
        let Ok(payload) = envelope.open(&certificate) else {
            return status(401);
        };
        if path == paths::UUID {
            let reply = UuidResponse {
                uuid: self.device.to_string(),
                ..UuidResponse::default()
            };
            return self.signed(reply.encode_to_vec());
        }
        let device = self.device;
        if path == paths::config(device) {
            return self.config(&payload);
        }
        if path == paths::attest(device) {
            return self.attest(&payload);
        }
        if path == paths::info(device) {
            self.infos.push(ZInfoMsg::decode(&*payload).unwrap());
            return status(201);
        }
        if path == paths::metrics(device) {
            self.metrics.push(ZMetricMsg::decode(&*payload).unwrap());
            return status(201);
        }
        if path.ends_with("/newlogs") {
            if let Some(code) = self.log_status.pop_front() {
                return status(code);
            }
            self.logs
                .push((path.to_owned(), Bundle::decode(&payload).unwrap()));
            return status(201);
        }
        status(404)
    }

    fn enrol(&mut self, flight: Flight, body: &[u8]) -> Response<Full<Bytes>> {
        let (root, years) = (self.root.clone(), self.granted_years);
        let Some(door) = &mut self.door else {
            return status(404);
        };
        let certify = |point: &protocol::cipher::Point| root.certify(&point.to_sec1(), years);
        match door.answer(flight, body, certify) {
            None => status(400),
            Some((answer, made)) => {
                if let Some(made) = made {
                    self.device = made.device;
                    self.registered = Some(made.certificate);
                    self.token = Some(made.token);
                }
                reply_with(answer, 200)
            }
        }
    }

    fn register(&mut self, envelope: Envelope) -> Response<Full<Bytes>> {
        let onboarding = Certificate::of_device_pem(envelope.sender_cert_pem().unwrap()).unwrap();
        let message = ZRegisterMsg::decode(&*envelope.open(&onboarding).unwrap()).unwrap();
        let registration = onboarding::registration::read(&message).unwrap();
        let repeat = self.registered.as_ref() == Some(&registration.device_certificate_der);
        self.registered = Some(registration.device_certificate_der);
        status(if repeat { 200 } else { 201 })
    }

    fn attest(&mut self, payload: &[u8]) -> Response<Full<Bytes>> {
        let request = verifier::read(&ZAttestReq::decode(payload).unwrap()).unwrap();
        let reply = match request {
            Attest::Certificates(certificates) => {
                certificates
                    .check(self.registered.as_ref().unwrap())
                    .unwrap();
                self.attestation_certificate =
                    certificates.attestation.map(|certificate| certificate.der);
                self.ecdh = certificates.ecdh;
                verifier::certs_answer()
            }
            Attest::Nonce => {
                let nonce = verifier::nonce().unwrap();
                self.nonce = Some(nonce.to_vec());
                verifier::nonce_answer(&nonce)
            }
            Attest::Quote(submission) => {
                let report = verifier::verify(
                    &submission,
                    self.attestation_certificate.as_deref(),
                    self.nonce.take().as_deref(),
                );
                self.quotes.push((
                    report.failures().next().is_none(),
                    submission.versions.clone(),
                ));
                if self.refuse_quotes {
                    verifier::quote_answer(&QuoteAnswer::Refused)
                } else {
                    let token = verifier::integrity_token().unwrap().to_vec();
                    self.token = Some(token.clone());
                    verifier::quote_answer(&QuoteAnswer::Granted {
                        integrity_token: token,
                        keys: Vec::new(),
                    })
                }
            }
            Attest::StoreKeys { .. } => return status(400),
        };
        self.signed_with(reply.encode_to_vec(), 201)
    }

    fn config(&mut self, payload: &[u8]) -> Response<Full<Bytes>> {
        let request = ConfigRequest::decode(payload).unwrap();
        if self.token.as_deref() != Some(&request.integrity_token) {
            return Response::builder()
                .status(403)
                .body(Full::new(self.refusal.into()))
                .unwrap();
        }
        let mut config = self.config.clone();
        let id = match self.answer {
            Answer::OtherDevice => DeviceId::random(),
            _ => self.device,
        };
        config.id = Some(UuiDandVersion {
            uuid: id.to_string(),
            version: "1".into(),
        });
        let mut reply = ConfigResponse {
            config: Some(config),
            config_hash: self.hash.clone(),
        };
        match self.answer {
            Answer::Good if request.config_hash == self.hash => {
                self.not_modified += 1;
                status(304)
            }
            Answer::Good => self.signed(reply.encode_to_vec()),
            Answer::OtherDevice => {
                reply.config_hash = "other".into();
                self.signed(reply.encode_to_vec())
            }
            Answer::BadSignature => {
                let hash = CertHash::of_pem_text(self.signing.pem.as_bytes());
                let payload = reply.encode_to_vec();
                let bytes = envelope::seal(payload, &hash, None, &self.stranger.signer).unwrap();
                reply_with(bytes, 200)
            }
            Answer::StrangeSigner => {
                let hash = CertHash::of_pem_text(self.stranger.pem.as_bytes());
                let payload = reply.encode_to_vec();
                reply_with(
                    envelope::seal(payload, &hash, None, &self.stranger.signer).unwrap(),
                    200,
                )
            }
            Answer::NotAConfig => self.signed(b"\xff\xff\xff garbage".to_vec()),
            Answer::NotAnEnvelope => {
                reply_with(b"<html>sign in to the network</html>".to_vec(), 200)
            }
        }
    }

    fn signed(&self, payload: Vec<u8>) -> Response<Full<Bytes>> {
        self.signed_with(payload, 200)
    }

    fn signed_with(&self, payload: Vec<u8>, code: u16) -> Response<Full<Bytes>> {
        let hash = CertHash::of_pem_text(self.signing.pem.as_bytes());
        reply_with(
            envelope::seal(payload, &hash, None, &self.signing.signer).unwrap(),
            code,
        )
    }
}

impl Portal {
    fn response(self) -> Response<Full<Bytes>> {
        let page = Full::new("<html>sign in to the network</html>".into());
        match self {
            Self::Redirect => Response::builder()
                .status(302)
                .header("location", "https://portal.example/")
                .body(page),
            Self::Page => Response::builder()
                .status(200)
                .header("content-type", "text/html")
                .body(page),
        }
        .unwrap()
    }
}

fn reply_with(bytes: Vec<u8>, code: u16) -> Response<Full<Bytes>> {
    Response::builder()
        .status(code)
        .header("content-type", paths::CONTENT_TYPE)
        .body(Full::new(bytes.into()))
        .unwrap()
}

fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder()
        .status(code)
        .body(Full::default())
        .unwrap()
}
