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
    /// EVE's onboarding certificate, PEM, the same on every image; only if devices may enrol that way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onboard_certificate: Option<String>,
    /// Its key, PKCS#8 PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onboard_key: Option<String>,
    /// Floor of the device's clock.
    #[schema(value_type = String, format = DateTime)]
    pub built_at: Timestamp,
    /// How devices become the owner's.
    pub enrolment: ImageEnrolment,
}

/// How a device becomes its owner's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageEnrolment {
    /// What it tries, in turn.
    pub order: Vec<EnrolmentWay>,
    /// Whom it takes orders from.
    pub owner: ImageOwner,
    /// What it seals its requests to: uncompressed point on P-256, 130 hexadecimal digits.
    pub controller_key: String,
}

/// A way to become a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EnrolmentWay {
    /// By the machine's own keys.
    ZeroTouch,
    /// By the onboarding key that all images share.
    Eve,
}

/// The owner's root keys, by their hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageOwner {
    /// Counts roots, from 1.
    pub epoch: u64,
    /// `sha256:` and hex digits of the present root.
    pub root: String,
    /// `sha256:` and hex digits of the root that may follow.
    pub next: String,
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
