//! A data directory, from nothing to a fleet.
//!
//! | in the directory | what |
//! |---|---|
//! | `controller.db` | the store |
//! | `pki/` | keys and certificates |
//! | `admin-password` | password of the first user, readable by its owner only; may be deleted |
//! | `server` | the controller's name as devices call it, `host:port` |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use thiserror::Error;

use crate::fleet::{Fleet, Settings, users};
use crate::pki::{Pki, PkiError, write_secret};
use crate::store::{Store, StoreError};

/// Why a data directory cannot be used.
#[derive(Debug, Error)]
pub enum SetupError {
    /// Keys or certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A name of the controller.
    #[error(
        "the name {name:?} is not HOST or HOST:PORT; an IPv6 address with a port stands in brackets"
    )]
    Name {
        /// As it was given.
        name: String,
    },
    /// The name's file.
    #[error("reading {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// A name of the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// Port, if one was given.
    pub port: Option<u16>,
}

impl std::str::FromStr for Name {
    type Err = SetupError;

    fn from_str(text: &str) -> Result<Self, SetupError> {
        let fault = || SetupError::Name {
            name: text.to_owned(),
        };
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Ok(Self {
                host: text.to_owned(),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| fault())?))
            }
            _ => (text, None),
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let address = rest.strip_suffix(']').ok_or_else(fault)?;
                address.parse::<std::net::Ipv6Addr>().map_err(|_| fault())?;
                address
            }
            None => host,
        };
        let fits = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte));
        if fits && port != Some(0) {
            Ok(Self {
                host: host.to_owned(),
                port,
            })
        } else {
            Err(fault())
        }
    }
}

impl Name {
    /// As devices call it: with the port that the controller listens on if none was given and it is not HTTPS's own.
    fn server(&self, listen: SocketAddr) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match self.port.unwrap_or(listen.port()) {
            443 => host,
            port => format!("{host}:{port}"),
        }
    }
}

/// A controller that is ready to serve.
pub struct Controller {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// The store, to be closed at the end.
    pub store: Store,
    /// TLS configuration of the server.
    pub tls: Arc<rustls::ServerConfig>,
    /// Password of the first user, if this start made it.
    pub password: Option<String>,
}

/// Makes what is missing in `directory` and takes up what is there. `names` may be left out once they have been given.
///
/// # Errors
/// [`SetupError`].
pub async fn open(
    directory: &Path,
    names: &[Name],
    listen: SocketAddr,
) -> Result<Controller, SetupError> {
    let hosts: Vec<String> = names.iter().map(|name| name.host.clone()).collect();
    let pki = Pki::open(&directory.join("pki"), &hosts, Timestamp::now())?;
    let server = server_name(&directory.join("server"), names, listen)?;
    let tls = pki.tls_config()?;
    let store = Store::open(&directory.join("controller.db")).await?;
    let password = users::ensure_admin(&store).await?;
    if let Some(password) = &password {
        write_secret(&directory.join("admin-password"), &format!("{password}\n"))?;
    }
    let fleet = Fleet::open(store.clone(), pki, Settings::new(server)).await?;
    Ok(Controller {
        fleet,
        store,
        tls,
        password,
    })
}

fn server_name(path: &Path, names: &[Name], listen: SocketAddr) -> Result<String, SetupError> {
    match names.first() {
        Some(name) => {
            let server = name.server(listen);
            write_secret(path, &format!("{server}\n"))?;
            Ok(server)
        }
        None => std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .map_err(|source| SetupError::Read {
                path: path.to_owned(),
                source,
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let listen: SocketAddr = "0.0.0.0:8443".parse().unwrap();
        for (text, host, server) in [
            (
                "controller.example",
                "controller.example",
                "controller.example:8443",
            ),
            (
                "controller.example:443",
                "controller.example",
                "controller.example",
            ),
            ("10.0.2.2:1234", "10.0.2.2", "10.0.2.2:1234"),
            ("fe80::1", "fe80::1", "[fe80::1]:8443"),
            ("[::1]:99", "::1", "[::1]:99"),
            ("[::1]", "::1", "[::1]:8443"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(
                (name.host.as_str(), name.server(listen).as_str()),
                (host, server),
                "{text}"
            );
        }
        for text in [
            "",
            ":1",
            "x:",
            "x:0",
            "x:99999",
            "https://x",
            "[x]:1",
            "[::1",
            "a b",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
