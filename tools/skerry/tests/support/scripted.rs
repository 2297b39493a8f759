//! A controller that says what a test tells it to: HTTP/1.1 on the loopback address, one connection a request, and
//! WebSockets. It shows what the program sends and how it takes answers that a real controller gives only in trouble.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio_tungstenite::tungstenite;

/// What the program sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method, a space, path with query, without the API's prefix.
    pub line: String,
    /// Head as it came, in lower case.
    pub head: String,
    pub body: Value,
}

/// An answer.
pub enum Answer {
    /// Status and JSON body.
    Json(u16, Value),
    /// Status 200 and lines, each sent by itself; then the connection ends.
    Lines(Vec<String>),
    /// Becomes a WebSocket that this function serves.
    Socket(fn(tungstenite::WebSocket<TcpStream>)),
}

pub struct Scripted {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Scripted {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream.unwrap(), &log, answer.as_ref()));
            }
        });
        Self { port, seen }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Everything that was asked, in order.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or_default() == 0 {
            return;
        }
    }
    let field = |name: &str| {
        let lower = head.to_ascii_lowercase();
        let value = lower
            .lines()
            .find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()));
        value.unwrap_or_default()
    };
    let mut body = vec![0; field("content-length:").parse().unwrap_or_default()];
    reader.read_exact(&mut body).unwrap();
    let request = Request {
        line: head
            .lines()
            .next()
            .unwrap()
            .trim_end_matches(" HTTP/1.1")
            .replace("/apis/skerry.io/v1/", ""),
        head: head.to_ascii_lowercase(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    log.lock().unwrap().push(request.clone());
    let mut out = stream;
    match answer(&request) {
        Answer::Json(status, body) => {
            let body = if body.is_null() {
                String::new()
            } else {
                body.to_string()
            };
            let kind = if status < 400 {
                "application/json"
            } else {
                "application/problem+json"
            };
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close",
                body.len()
            );
            out.write_all(format!("{head}\r\n\r\n{body}").as_bytes())
                .unwrap();
        }
        Answer::Lines(lines) => {
            out.write_all(b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n")
                .unwrap();
            for line in lines {
                // A reader that has seen enough may be gone.
                if out.write_all(format!("{line}\n").as_bytes()).is_err() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        Answer::Socket(talk) => {
            let key = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase()
                        .starts_with("sec-websocket-key:")
                        .then(|| line[18..].trim())
                })
                .unwrap();
            let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
            let upgrade = "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept:";
            out.write_all(format!("{upgrade} {accept}\r\n\r\n").as_bytes())
                .unwrap();
            talk(tungstenite::WebSocket::from_raw_socket(
                out,
                tungstenite::protocol::Role::Server,
                None,
            ));
        }
    }
}
