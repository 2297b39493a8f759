//! Why nobody answers, in words for whoever stands before the box: no name server, a cable to nowhere, a proxy that opens TLS, a portal.
//!
//! Who sits between device and controller cannot read or forge what matters (that is sealed and signed by itself), but can keep it from
//! passing, and the person on site is the one who can do something about it.

use std::error::Error as StdError;
use std::io;

use rustls::CertificateError;

use crate::chain::chain;

/// What the hop between us and the controller is guilty of, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The name has no address.
    Name,
    /// Nobody listens there.
    Refused,
    /// Nobody answers there.
    Silence,
    /// There is no way there.
    Route,
    /// Somebody shows a certificate that does not lead to the image's roots.
    Issuer,
    /// Somebody shows a certificate for another name.
    OtherName,
    /// Dates of a certificate.
    Dates,
    /// Something answers that is not TLS.
    NotTls,
    /// None of these.
    Other,
}

impl Cause {
    fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::Name => {
                "the network's name servers do not know it; check that the network gives out a name server, and the controller's name"
            }
            Self::Refused => "nothing listens there; check that the controller runs",
            Self::Silence => "a firewall may drop it; check that the network lets this machine out",
            Self::Route => "the network has no way there; check cable and router",
            Self::Issuer => {
                "something in between opens TLS (an inspecting proxy, a captive portal), or the controller changed its roots; have the proxy let this connection through, or put its root into the image"
            }
            Self::OtherName => {
                "what answers there is somebody else, as a captive portal is; check the network and the controller's name"
            }
            Self::Dates => "the certificate's dates do not fit; the controller's has to be renewed",
            Self::NotTls => {
                "what answers there does not speak TLS; a captive portal or a proxy may be in between"
            }
            Self::Other => return None,
        })
    }
}

/// The reason in words, with advice where there is some.
#[must_use]
pub fn why(error: reqwest::Error) -> String {
    let cause = cause(&error, error.is_timeout());
    // The outermost layer only says that sending failed.
    let reason = error.source().map_or_else(|| chain(&error), chain);
    match cause.advice() {
        Some(advice) => format!("{reason}; {advice}"),
        None => reason,
    }
}

/// Whether an answer is a captive portal's: it leads elsewhere (we follow nobody, RFC 9110 section 15.4), or says so itself (RFC 6585
/// section 6), or is a page for people where the controller never has one.
#[must_use]
pub fn is_portal(status: u16, content_type: Option<&str>) -> bool {
    let page = content_type.is_some_and(|kind| kind.trim_start().starts_with("text/html"));
    match status {
        301 | 302 | 303 | 307 | 308 | 511 => true,
        200..=299 => page,
        _ => false,
    }
}

fn cause(error: &(dyn StdError + 'static), timeout: bool) -> Cause {
    found(error).unwrap_or(if timeout {
        Cause::Silence
    } else {
        Cause::Other
    })
}

/// The first layer that tells something. An `io::Error` hides what it wraps from `source`, and may wrap another.
fn found(error: &(dyn StdError + 'static)) -> Option<Cause> {
    let mut next = Some(error);
    while let Some(layer) = next {
        if let Some(error) = layer.downcast_ref::<rustls::Error>() {
            return Some(of_tls(error));
        }
        if let Some(error) = layer.downcast_ref::<io::Error>() {
            let known = match error.kind() {
                io::ErrorKind::ConnectionRefused => Some(Cause::Refused),
                io::ErrorKind::TimedOut => Some(Cause::Silence),
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    Some(Cause::Route)
                }
                _ => None,
            };
            let wrapped = error
                .get_ref()
                .map(|inner| inner as &(dyn StdError + 'static));
            if let Some(cause) = known.or_else(|| found(wrapped?)) {
                return Some(cause);
            }
        }
        // hyper-util's error has no kind of its own for this (client::legacy::connect::http).
        if layer.to_string().starts_with("dns error") {
            return Some(Cause::Name);
        }
        next = layer.source();
    }
    None
}

fn of_tls(error: &rustls::Error) -> Cause {
    match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer => Cause::Issuer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Cause::OtherName
            }
            CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. } => Cause::Dates,
            // Another authority of the same name, or a certificate that no authority of ours would make.
            _ => Cause::Issuer,
        },
        rustls::Error::InvalidMessage(_) => Cause::NotTls,
        _ => Cause::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_are_told_from_controllers() {
        for (status, kind, portal) in [
            (302, None, true),
            (511, Some("text/html"), true),
            (200, Some("text/html; charset=utf-8"), true),
            (200, Some("application/x-proto-binary"), false),
            (200, None, false),
            (404, Some("text/html"), false),
            (304, None, false),
            (503, Some("text/html"), false),
        ] {
            assert_eq!(is_portal(status, kind), portal, "{status} {kind:?}");
        }
    }

    #[test]
    fn causes_are_found_below_other_errors() {
        let tls = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let name = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let forged = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        let letters = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        for (error, wanted) in [
            (tls(unknown), Cause::Issuer),
            (tls(name), Cause::OtherName),
            (io::Error::other(tls(forged)), Cause::Issuer),
            (tls(letters), Cause::NotTls),
            (io::ErrorKind::ConnectionRefused.into(), Cause::Refused),
            (io::ErrorKind::NetworkUnreachable.into(), Cause::Route),
            (io::Error::other("dns error: nobody"), Cause::Name),
            (io::Error::other("else"), Cause::Other),
        ] {
            assert_eq!(cause(&error, false), wanted, "{error}");
        }
        assert_eq!(cause(&io::Error::other("else"), true), Cause::Silence);
    }
}
