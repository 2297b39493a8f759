//! Contexts: which controllers there are, how to trust them, and the tokens for them.
//!
//! They are kept in one YAML file that only its owner can read, written whole and renamed into place. What the
//! environment says goes before it. A token is only ever sent to the server that it was given for: naming another server
//! by `SKERRY_SERVER` leaves the context's token and roots out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Name of the context that `login` writes if none is named.
const DEFAULT: &str = "default";

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Name of the context that is used if none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_context: Option<String>,
    /// All contexts, by name.
    pub contexts: BTreeMap<String, Context>,
}

/// One controller and who we are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// `https://host:port`.
    pub server: String,
    /// Roots to trust for it, PEM; the system's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
    /// Who we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// When the token ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// What a command needs to talk to a controller.
#[derive(Debug, PartialEq, Eq)]
pub struct Access {
    /// `https://host:port`, without a slash at the end.
    pub server: String,
    /// Roots to trust, PEM; the system's if absent.
    pub ca: Option<String>,
    /// The bearer token, if there is one.
    pub token: Option<String>,
}

/// What the environment says.
#[derive(Debug, Default)]
pub struct Environment {
    server: Option<String>,
    token: Option<String>,
    ca: Option<String>,
}

impl Environment {
    /// Reads `SKERRY_SERVER`, `SKERRY_TOKEN`, and the file that `SKERRY_CA` names.
    pub fn read() -> Result<Self, Failure> {
        let text = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let ca = text("SKERRY_CA")
            .map(|path| read_roots(Path::new(&path)))
            .transpose()?;
        Ok(Self {
            server: text("SKERRY_SERVER"),
            token: text("SKERRY_TOKEN"),
            ca,
        })
    }
}

/// Reads a file of root certificates.
pub fn read_roots(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path).map_err(Failure::io("read the root certificates", path))?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(Failure::usage(format!(
            "{} holds no PEM certificate",
            path.display()
        )));
    }
    Ok(text)
}

/// Reads a password: the first line of a file.
pub fn read_password(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path).map_err(Failure::io("read the password from", path))?;
    first_line(&text)
        .ok_or_else(|| Failure::usage(format!("the first line of {} is empty", path.display())))
}

/// The first line of a text, without its end; none if it is empty.
pub fn first_line(text: &str) -> Option<String> {
    text.lines()
        .next()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
}

impl Config {
    /// `SKERRY_CONFIG`, or `skerry/config.yaml` in the user's configuration folder (XDG Base Directory Specification).
    pub fn path() -> Result<PathBuf, Failure> {
        let set = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        set("SKERRY_CONFIG")
            .or_else(|| set("XDG_CONFIG_HOME").map(|dir| dir.join("skerry/config.yaml")))
            .or_else(|| set("HOME").map(|home| home.join(".config/skerry/config.yaml")))
            .ok_or_else(|| {
                Failure::usage(
                    "neither SKERRY_CONFIG nor HOME is set: where are the contexts kept?",
                )
            })
    }

    /// Reads the file; an absent one is empty.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        match fs::read_to_string(path) {
            Ok(text) => serde_yaml_ng::from_str(&text).map_err(Failure::content(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::io("read", path)(error)),
        }
    }

    /// Writes the file: whole, then renamed into place; readable by its owner only.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_yaml_ng::to_string(self).map_err(Failure::content(path))?;
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(Failure::io("make", dir))?;
        }
        // Two commands may log in at the same time.
        let part = durable::with_suffix(path, &format!(".{}.part", std::process::id()));
        durable::write_by_way_of(&part, path, text.as_bytes(), 0o600)
            .map_err(|error| Failure::io("write", path)(error.source))
    }

    /// Keeps a context under `name` (or the default name) and makes it the current one. Gives the name.
    pub fn put(&mut self, name: Option<&str>, context: Context) -> String {
        let name = name.unwrap_or(DEFAULT).to_owned();
        self.contexts.insert(name.clone(), context);
        self.current_context = Some(name.clone());
        name
    }

    /// What to talk to, and how: the named or current context, with what the environment says before it.
    pub fn access(&self, name: Option<&str>, environment: Environment) -> Result<Access, Failure> {
        let context = match name.or(self.current_context.as_deref()) {
            Some(name) => Some(
                self.contexts
                    .get(name)
                    .ok_or_else(|| self.no_context(name))?,
            ),
            None => None,
        };
        let named = environment
            .server
            .map(|server| normalise(&server))
            .transpose()?;
        let context = context.filter(|context| {
            named
                .as_ref()
                .is_none_or(|server| *server == context.server)
        });
        let server = named.or_else(|| context.map(|context| context.server.clone())).ok_or_else(|| {
            Failure::usage("no controller is known: log in with `skerry login https://HOST:PORT`, or set SKERRY_SERVER")
        })?;
        Ok(Access {
            server,
            ca: environment
                .ca
                .or_else(|| context.and_then(|context| context.ca_certificates.clone())),
            token: environment
                .token
                .or_else(|| context.and_then(|context| context.token.clone())),
        })
    }

    /// Says which contexts there are instead.
    pub fn no_context(&self, name: &str) -> Failure {
        let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        Failure::not_found(format!(
            "there is no context `{name}` (known: {known}); `skerry login --context {name}` makes it"
        ))
    }
}

/// `https://host[:port]` without anything behind it. A bare `host:port` gets `https`. Plain `http`, which shows tokens to
/// everybody on the way, is for the machine itself only.
pub fn normalise(server: &str) -> Result<String, Failure> {
    let with_scheme = if server.contains("://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    let fault =
        |reason: &str| Failure::usage(format!("`{server}` is no controller's address: {reason}"));
    let url = reqwest::Url::parse(&with_scheme).map_err(|error| fault(&error.to_string()))?;
    let host = url.host_str().ok_or_else(|| fault("it names no host"))?;
    let local = host == "localhost" || host == "[::1]" || host.starts_with("127.");
    match url.scheme() {
        "https" => {}
        "http" if local => {}
        "http" => {
            return Err(fault(
                "http would show your token to everybody on the way; write https",
            ));
        }
        _ => return Err(fault("write https://HOST:PORT")),
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty() {
        return Err(fault("write https://HOST:PORT and nothing behind it"));
    }
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    Ok(format!("{}://{host}{port}", url.scheme()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::failure::Exit;

    fn context(server: &str) -> Context {
        Context {
            server: server.into(),
            ca_certificates: Some("roots".into()),
            user: Some("admin".into()),
            token: Some("secret".into()),
            expires: None,
        }
    }

    #[test]
    fn addresses_are_normalised() {
        for (text, server) in [
            ("controller:8443", "https://controller:8443"),
            ("https://controller", "https://controller"),
            ("https://controller:8443/", "https://controller:8443"),
            ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
            ("http://127.0.0.1:80", "http://127.0.0.1"),
            ("http://localhost:8080", "http://localhost:8080"),
        ] {
            assert_eq!(normalise(text).unwrap(), server, "{text}");
        }
        for text in [
            "http://controller",
            "ftp://x",
            "https://x/path",
            "https://x?y",
            "https://a@b",
            "",
            "https://",
        ] {
            assert_eq!(normalise(text).unwrap_err().exit(), Exit::Usage, "{text}");
        }
    }

    #[test]
    fn the_file_comes_back_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/config.yaml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
        let mut config = Config::default();
        assert_eq!(config.put(None, context("https://one")), "default");
        config.put(Some("plant"), context("https://two"));
        config.save(&path).unwrap();
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        assert_eq!(config.current_context.as_deref(), Some("plant"));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::metadata(path.parent().unwrap())
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o700
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_environment_goes_first_but_takes_no_token_along() {
        let mut config = Config::default();
        config.put(None, context("https://one"));
        let access = |environment| config.access(None, environment).unwrap();
        let from_file = access(Environment::default());
        assert_eq!(
            (from_file.server.as_str(), from_file.token.as_deref()),
            ("https://one", Some("secret"))
        );
        let same = access(Environment {
            server: Some("one".into()),
            ..Default::default()
        });
        assert_eq!(same, from_file);
        let other = access(Environment {
            server: Some("https://two".into()),
            ..Default::default()
        });
        assert_eq!(
            other,
            Access {
                server: "https://two".into(),
                ca: None,
                token: None
            }
        );
        let own = access(Environment {
            token: Some("mine".into()),
            ..Default::default()
        });
        assert_eq!(own.token.as_deref(), Some("mine"));
    }

    #[test]
    fn absent_contexts_are_named() {
        let mut config = Config::default();
        let none = config.access(None, Environment::default()).unwrap_err();
        assert_eq!(none.exit(), Exit::Usage);
        config.put(Some("plant"), context("https://one"));
        let failure = config
            .access(Some("other"), Environment::default())
            .unwrap_err();
        assert_eq!(failure.exit(), Exit::NotFound);
        assert!(failure.to_string().contains("plant"), "{failure}");
    }
}
