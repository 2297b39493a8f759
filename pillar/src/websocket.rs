//! WebSockets to the controller, over the agent's own TLS: for the link and for consoles.

use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, protocol::WebSocketConfig};

use crate::chain::chain;
use crate::conn::Connection;

/// A WebSocket over TLS to the controller.
pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

const DIAL: Duration = Duration::from_secs(15);

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller cannot be reached.
    #[error("{operation} {url}: {reason}")]
    Connect {
        /// Which step.
        operation: &'static str,
        /// Where to.
        url: String,
        /// Why not.
        reason: String,
    },
    /// It answered with something else.
    #[error("{url} answered {status} instead of opening a WebSocket")]
    NoUpgrade {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// It took too long.
    #[error("{operation} {url}: no answer in time")]
    Timeout {
        /// Which step.
        operation: &'static str,
        /// Where to.
        url: String,
    },
}

/// Opens a WebSocket to a path of the controller.
///
/// # Errors
/// [`Error`]; nothing takes longer than 15 s a step.
pub async fn connect(conn: &Connection, path: &str) -> Result<Socket, Error> {
    let server = conn.server();
    let url = format!("wss://{server}{path}");
    let failed = |operation, reason| Error::Connect {
        operation,
        url: url.clone(),
        reason,
    };
    let late = |operation| Error::Timeout {
        operation,
        url: url.clone(),
    };
    let tcp = timeout(DIAL, TcpStream::connect((server.host(), server.port())))
        .await
        .map_err(|_| late("connecting to"))?
        .map_err(|error| failed("connecting to", error.to_string()))?;
    // Console keys are single bytes.
    tcp.set_nodelay(true)
        .map_err(|error| failed("connecting to", error.to_string()))?;
    let name = ServerName::try_from(server.host().to_owned())
        .map_err(|error| failed("naming", error.to_string()))?;
    let tls = timeout(DIAL, TlsConnector::from(conn.tls()).connect(name, tcp))
        .await
        .map_err(|_| late("TLS to"))?
        .map_err(|error| failed("TLS to", error.to_string()))?;
    let mut limits = WebSocketConfig::default();
    limits.read_buffer_size = 4 * 1024;
    limits.write_buffer_size = 0;
    limits.max_write_buffer_size = 256 * 1024;
    limits.max_message_size = Some(64 * 1024);
    limits.max_frame_size = Some(64 * 1024);
    let upgrade = tokio_tungstenite::client_async_with_config(&url, tls, Some(limits));
    match timeout(DIAL, upgrade).await.map_err(|_| late("opening"))? {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(Error::NoUpgrade {
            url: url.clone(),
            status: response.status().as_u16(),
        }),
        Err(error) => Err(failed("opening", chain(&error))),
    }
}
