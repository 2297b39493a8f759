//! `HOST:PORT`: how a controller or a registry is called, read and written in one way everywhere.
//!
//! | written | read as |
//! |---|---|
//! | `controller.example:8443`, `192.0.2.1:443`, `[2001:db8::1]:8443` | host and port |
//! | `controller.example`, `192.0.2.1`, `[2001:db8::1]`, `2001:db8::1` | a host, where the reader has a port for it |
//!
//! An [`Authority`] is always written with its port, also 443: whoever reads it needs to know no default.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use thiserror::Error;

/// Longest host name and longest part of it, in bytes (RFC 1035, section 2.3.4; without the final dot).
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;

/// A text that names no host, or not with a port.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not HOST:PORT: {reason}")]
pub struct AuthorityError {
    /// Its beginning.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A host with a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    /// Reads `HOST:PORT`, or `HOST` with `port`.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn or_port(text: &str, port: u16) -> Result<Self, AuthorityError> {
        let (host, own) = split(text).map_err(fault(text))?;
        Self::of(text, host, own.unwrap_or(port))
    }

    fn of(text: &str, host: &str, port: u16) -> Result<Self, AuthorityError> {
        if port == 0 {
            return Err(fault(text)("a port is from 1 to 65535"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// The host: a DNS name or an IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    /// Reads `HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = split(text).map_err(fault(text))?;
        let port = port.ok_or_else(|| fault(text)("it names no port"))?;
        Self::of(text, host, port)
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A colon is in IPv6 addresses only.
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

fn fault(text: &str) -> impl Fn(&'static str) -> AuthorityError {
    move |reason| AuthorityError {
        text: text.chars().take(80).collect(),
        reason,
    }
}

/// Host without brackets, and the port if there is one.
fn split(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text, None));
    }
    let (host, port) = match text.rsplit_once(':') {
        // A colon inside brackets is the address's.
        Some((host, port)) if !text.ends_with(']') => (host, Some(read_port(port)?)),
        _ => (text, None),
    };
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.strip_suffix(']').ok_or("a bracket is not closed")?;
        if address.parse::<Ipv6Addr>().is_err() {
            return Err("in brackets stands an IPv6 address");
        }
        return Ok((address, port));
    }
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if host.is_empty() || host.len() > MAX_HOST || !host.split('.').all(label) {
        return Err(
            "a host is a DNS name, an IPv4 address, or an IPv6 address, with a port in brackets",
        );
    }
    Ok((host, port))
}

fn read_port(text: &str) -> Result<u16, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err("a port is from 1 to 65535"),
    }
}
