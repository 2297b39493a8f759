//! What is not an object: logging in, the image bundle, log lines.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST tokens`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

/// Answer to [`TokenRequest`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenResponse {
    /// To be sent as `Authorization: Bearer`.
    pub token: String,
    /// Whose token it is.
    pub user: String,
    /// After this time it no longer works.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}

/// What an installer image needs to know of its controller; nothing in it is a secret of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBundle {
    /// `host:port`, also with port 443, as EVE's `/config/server`.
    pub server: String,
    /// Root of the controller's signing and encryption certificates, PEM.
    pub root_certificate: String,
    /// Roots for the TLS connection, PEM, one or more.
    pub tls_root_certificates: String,
    /// EVE's onboarding certificate, PEM, the same on every image.
    pub onboard_certificate: String,
    /// Its key, PKCS#8 PEM.
    pub onboard_key: String,
    /// Floor of the device's clock.
    #[schema(value_type = String, format = DateTime)]
    pub built_at: Timestamp,
}

/// One line of a log, as `format=json` gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// When it was written, by the device's clock.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// Which program wrote it; empty if unknown.
    #[serde(default)]
    pub source: String,
    /// `info`, `warning`, `err` and so on; empty if unknown.
    #[serde(default)]
    pub severity: String,
    /// The line, without its end.
    pub content: String,
}
