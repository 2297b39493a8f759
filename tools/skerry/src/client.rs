//! The operator API, as this program uses it: objects as JSON values, streams of lines, WebSockets.
//!
//! Every error names what was tried and at which controller, and becomes one of the exit codes.

use std::error::Error as StdError;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use operator_api::{API_PREFIX, Problem, TokenRequest, TokenResponse};
use reqwest::header::{
    CONNECTION, HeaderValue, IF_MATCH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::context::Access;
use crate::failure::Failure;
use crate::output::harmless;

/// Longest time to get a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that an answer may take, beside streams.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Longest line of a stream, in bytes. An object may be large; a line without end is an attack.
const MAX_LINE: usize = 4 << 20;

/// A connection to one controller.
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: Option<String>,
}

/// What a `PUT` did.
#[derive(Debug)]
pub struct Put {
    /// Whether the object is new.
    pub created: bool,
    /// The object as it is now.
    pub object: Value,
}

impl Client {
    /// Prepares a client. Nothing is sent yet.
    pub fn new(access: Access) -> Result<Self, Failure> {
        crate::use_ring();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("skerry/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // WebSockets need HTTP/1.1, and a command line has no use for more.
            .http1_only()
            // A token must not follow a redirection to somewhere else.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = &access.ca {
            let roots = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| {
                Failure::usage(format!(
                    "the root certificates are not PEM: {}",
                    chain(&error)
                ))
            })?;
            builder = builder.tls_certs_only(roots);
        }
        let http = builder
            .build()
            .map_err(|error| Failure::error(format!("preparing TLS: {}", chain(&error))))?;
        Ok(Self {
            http,
            server: access.server,
            token: access.token,
        })
    }

    /// The controller's address.
    pub fn server(&self) -> &str {
        &self.server
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{API_PREFIX}/{path}", self.server));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// `what` is what is being done, for the error: "get apps".
    async fn send(&self, request: RequestBuilder, what: &str) -> Result<Response, Failure> {
        let advice = match self.token {
            Some(_) => "log in again",
            None => "log in first",
        };
        self.send_advised(request, what, Some(advice)).await
    }

    /// `advice` is what helps if the controller does not know who asks.
    async fn send_advised(
        &self,
        request: RequestBuilder,
        what: &str,
        advice: Option<&str>,
    ) -> Result<Response, Failure> {
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(what, error))?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = whole(response).await.unwrap_or_default();
        Err(self.problem(what, status, &body, advice))
    }

    async fn json(&self, request: RequestBuilder, what: &str) -> Result<Value, Failure> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT), what).await?;
        self.read(response, what).await
    }

    async fn read(&self, response: Response, what: &str) -> Result<Value, Failure> {
        let body = whole(response)
            .await
            .map_err(|error| self.broken(what, &error))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|error| self.broken(what, &error.to_string()))
    }

    /// `GET` of an object or a collection.
    pub async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
        what: &str,
    ) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, path).query(query), what)
            .await
    }

    /// `GET` of an object that may be absent.
    pub async fn find(&self, path: &str, what: &str) -> Result<Option<Value>, Failure> {
        match self.get(path, &[], what).await {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.exit() == crate::failure::Exit::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// `PUT` of an object; `version` is the resource version that it must still have.
    pub async fn put(
        &self,
        path: &str,
        object: &Value,
        version: Option<&str>,
        what: &str,
    ) -> Result<Put, Failure> {
        let mut request = self
            .request(Method::PUT, path)
            .json(object)
            .timeout(ANSWER_TIMEOUT);
        if let Some(version) = version {
            let tag = HeaderValue::from_str(&format!("\"{version}\"")).map_err(|_| {
                Failure::usage(format!("{what}: `{version}` is no resource version"))
            })?;
            request = request.header(IF_MATCH, tag);
        }
        let response = self.send(request, what).await?;
        let created = response.status() == StatusCode::CREATED;
        let body = whole(response)
            .await
            .map_err(|error| self.broken(what, &error))?;
        let object =
            serde_json::from_slice(&body).map_err(|error| self.broken(what, &error.to_string()))?;
        Ok(Put { created, object })
    }

    /// `POST` of a request that changes something.
    pub async fn post(&self, path: &str, body: &Value, what: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, path).json(body), what)
            .await
    }

    /// Asks for a token. To be told to log in would not help whose password was wrong.
    pub async fn log_in(&self, login: &TokenRequest, what: &str) -> Result<TokenResponse, Failure> {
        let request = self
            .request(Method::POST, "tokens")
            .json(login)
            .timeout(ANSWER_TIMEOUT);
        let response = self.send_advised(request, what, None).await?;
        serde_json::from_value(self.read(response, what).await?)
            .map_err(|error| self.broken(what, &error.to_string()))
    }

    /// `DELETE` of an object.
    pub async fn delete(&self, path: &str, what: &str) -> Result<(), Failure> {
        self.json(self.request(Method::DELETE, path), what)
            .await
            .map(drop)
    }

    /// `GET` of something that comes line by line, without end perhaps.
    pub async fn lines(
        &self,
        path: &str,
        query: &[(&str, String)],
        what: &str,
    ) -> Result<Lines, Failure> {
        let response = self
            .send(self.request(Method::GET, path).query(query), what)
            .await?;
        Ok(Lines::new(response.bytes_stream(), what))
    }

    /// Opens a WebSocket (RFC 6455 section 4.1) over the same TLS settings and with the same token.
    pub async fn web_socket(
        &self,
        path: &str,
        what: &str,
    ) -> Result<WebSocketStream<reqwest::Upgraded>, Failure> {
        let key = generate_key();
        let request = self
            .request(Method::GET, path)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let response = self.send(request, what).await?;
        let accepted = response
            .headers()
            .get(SEC_WEBSOCKET_ACCEPT)
            .map(HeaderValue::as_bytes)
            == Some(derive_accept_key(key.as_bytes()).as_bytes());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !accepted {
            return Err(self.broken(
                what,
                &format!("{} instead of a WebSocket", response.status()),
            ));
        }
        let stream = response
            .upgrade()
            .await
            .map_err(|error| self.broken(what, &chain(&error)))?;
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    fn unreachable(&self, what: &str, error: reqwest::Error) -> Failure {
        // The message names the server and the operation; the URL would say both again.
        let error = error.without_url();
        let reason = chain(&error);
        let hint = if reason.contains("UnknownIssuer") || reason.contains("certificate") {
            "; is it the right controller? Its root certificate is given by `skerry login --ca FILE` or SKERRY_CA"
        } else if error.is_connect() {
            "; is the controller running, and is the address right?"
        } else {
            ""
        };
        let message = format!("{what}: cannot talk to {}: {reason}{hint}", self.server);
        if error.is_timeout() {
            Failure::timed_out(message)
        } else {
            Failure::error(message)
        }
    }

    fn broken(&self, what: &str, reason: &str) -> Failure {
        Failure::error(format!(
            "{what}: {} gave no proper answer: {reason}",
            self.server
        ))
    }

    fn problem(
        &self,
        what: &str,
        status: StatusCode,
        body: &[u8],
        advice: Option<&str>,
    ) -> Failure {
        let said = said(body).unwrap_or_else(|| format!("{} answered {status}", self.server));
        let message = format!("{what}: {said}");
        match status {
            StatusCode::NOT_FOUND => Failure::not_found(message),
            StatusCode::UNAUTHORIZED => Failure::refused(match advice {
                Some(advice) => format!("{message}\n{advice}: skerry login {}", self.server),
                None => message,
            }),
            StatusCode::FORBIDDEN => Failure::refused(message),
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => {
                Failure::timed_out(message)
            }
            _ => Failure::error(message),
        }
    }
}

/// What a problem document says, for a terminal; none if it is no such document.
pub fn said(body: &[u8]) -> Option<String> {
    let problem: Problem = serde_json::from_slice(body).ok()?;
    let mut said = if problem.detail.is_empty() {
        problem.title
    } else {
        problem.detail
    };
    for error in &problem.errors {
        said += &format!("\n  {}: {}", error.field, error.message);
    }
    let lines: Vec<String> = said.lines().map(harmless).collect();
    Some(lines.join("\n"))
}

/// A body that comes line by line.
pub struct Lines {
    body: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    rest: Vec<u8>,
    what: String,
}

impl Lines {
    /// The lines of a body that comes in pieces; `what` is what is being done, for errors.
    pub fn new(
        body: impl Stream<Item = reqwest::Result<bytes::Bytes>> + Send + 'static,
        what: &str,
    ) -> Self {
        Self {
            body: body.boxed(),
            rest: Vec::new(),
            what: what.to_owned(),
        }
    }

    /// The next line without its end; none when the body is over.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let tail = self.rest.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.rest, tail);
                line.pop();
                return Ok(Some(line));
            }
            if self.rest.len() > MAX_LINE {
                return Err(Failure::error(format!(
                    "{}: a line is longer than {MAX_LINE} bytes",
                    self.what
                )));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.rest.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    return Err(Failure::error(format!(
                        "{}: the connection broke: {}",
                        self.what,
                        chain(&error)
                    )));
                }
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.rest))),
            }
        }
    }
}

async fn whole(response: Response) -> Result<Vec<u8>, String> {
    let mut body = response.bytes_stream();
    let mut out = Vec::new();
    while let Some(piece) = body.next().await {
        out.extend_from_slice(&piece.map_err(|error| chain(&error))?);
        if out.len() > MAX_ANSWER {
            return Err(format!("more than {MAX_ANSWER} bytes"));
        }
    }
    Ok(out)
}

/// An error with all its causes: the first alone often says no more than "error sending request". The URL stands in the
/// message already, so it is left out where it only repeats.
pub fn chain(error: &dyn StdError) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        cause = error.source();
    }
    out
}
