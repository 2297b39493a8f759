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
use protocol::authority::{Authority, AuthorityError};
use thiserror::Error;

use crate::fleet::{Fleet, Settings, users};
use crate::pki::{Pki, PkiError, write_secret};
use crate::store::{Store, StoreError};

/// HTTPS's own port.
const HTTPS: u16 = 443;

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
    #[error("the controller's name: {0}")]
    Name(#[from] AuthorityError),
    /// The name's file.
    #[error("reading {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// A name of the controller as it was given: `HOST:PORT`, or `HOST` for the port that it listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl std::str::FromStr for Name {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        // Which port stands in for a missing one is known later; everything else is checked at once.
        Authority::or_port(text, HTTPS).map(|_| Self(text.to_owned()))
    }
}

impl Name {
    /// As devices call it.
    fn authority(&self, listen: SocketAddr) -> Result<Authority, AuthorityError> {
        Authority::or_port(&self.0, listen.port())
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
    /// Where the first user's password lies, if this start made the user.
    pub new_password: Option<PathBuf>,
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
    let names = names
        .iter()
        .map(|name| name.authority(listen))
        .collect::<Result<Vec<_>, _>>()?;
    let hosts: Vec<String> = names.iter().map(|name| name.host().to_owned()).collect();
    let pki = Pki::open(&directory.join("pki"), &hosts, Timestamp::now())?;
    let server = server_name(&directory.join("server"), names.first())?;
    let tls = pki.tls_config()?;
    let store = Store::open(&directory.join("controller.db")).await?;
    let file = directory.join("admin-password");
    let keep = |password: &str| -> Result<(), SetupError> {
        Ok(write_secret(&file, &format!("{password}\n"))?)
    };
    let is_new = users::ensure_admin(&store, keep).await?;
    let fleet = Fleet::open(store.clone(), pki, Settings::new(server)).await?;
    Ok(Controller {
        fleet,
        store,
        tls,
        new_password: is_new.then_some(file),
    })
}

/// The first name, written down for starts without one; or what was written down.
fn server_name(path: &Path, name: Option<&Authority>) -> Result<Authority, SetupError> {
    match name {
        Some(name) => {
            write_secret(path, &format!("{name}\n"))?;
            Ok(name.clone())
        }
        None => {
            let text = std::fs::read_to_string(path).map_err(|source| SetupError::Read {
                path: path.to_owned(),
                source,
            })?;
            Ok(Authority::or_port(text.trim(), HTTPS)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let listen: SocketAddr = "0.0.0.0:8443".parse().unwrap();
        for (text, server) in [
            ("controller.example", "controller.example:8443"),
            ("controller.example:443", "controller.example:443"),
            ("10.0.2.2:1234", "10.0.2.2:1234"),
            ("fe80::1", "[fe80::1]:8443"),
            ("[::1]:99", "[::1]:99"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.authority(listen).unwrap().to_string(), server);
        }
        for text in ["", ":1", "x:0", "https://x", "[x]:1"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_first_start_that_cannot_keep_the_password_makes_no_user_and_the_next_one_does() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["localhost:1".parse().unwrap()];
        let listen: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let file = directory.path().join("admin-password");
        // What no file can be written over, not even by root.
        std::fs::create_dir_all(file.join("in the way")).unwrap();
        let refused = open(directory.path(), &names, listen).await.err();
        assert!(matches!(refused, Some(SetupError::Pki(_))), "{refused:?}");

        std::fs::remove_dir_all(&file).unwrap();
        let second = open(directory.path(), &names, listen).await.unwrap();
        assert_eq!(second.new_password.as_ref(), Some(&file));
        let password = std::fs::read_to_string(&file).unwrap();
        let request = operator_api::TokenRequest {
            user: users::ADMIN.to_owned(),
            password: password.trim().to_owned(),
        };
        second.fleet.log_in(request).await.unwrap();
        second.store.close().await;

        let third = open(directory.path(), &names, listen).await.unwrap();
        assert_eq!(third.new_password, None);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), password);
    }

    #[test]
    fn a_name_that_was_given_once_holds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server");
        assert!(matches!(
            server_name(&path, None),
            Err(SetupError::Read { .. })
        ));
        let name: Authority = "controller.example:443".parse().unwrap();
        assert_eq!(server_name(&path, Some(&name)).unwrap(), name);
        assert_eq!(server_name(&path, None).unwrap(), name);
        std::fs::write(&path, "controller.example:x\n").unwrap();
        assert!(matches!(server_name(&path, None), Err(SetupError::Name(_))));
    }
}
