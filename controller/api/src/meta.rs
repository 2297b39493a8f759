//! What every object carries beside its spec and status.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::problem::FieldError;

/// Longest key or value of a label, in bytes (Kubernetes: 63 for a value and for the name part of a key).
const MAX_LABEL: usize = 63;
/// Longest prefix of a label key, in bytes.
const MAX_PREFIX: usize = 253;
/// Total size of all annotations, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Names an object and carries what the controller keeps about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectMeta {
    /// Unique among the objects of its kind: lower-case letters, digits and `-`, at most 63 (RFC 1123 label).
    pub name: String,
    /// Set by the controller at creation, never reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uuid>,
    /// For selecting.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For notes and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Counts changes of the spec, from 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// Changes with every write of metadata or spec (not of status); opaque. Given with `PUT` it must be the stored one, or the write
    /// is refused with 409.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// When the object was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub creation_timestamp: Option<Timestamp>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ObjectMeta {
    /// Metadata with a name and nothing else, as an operator writes it.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    pub(crate) fn validate(&self, errors: &mut Vec<FieldError>) {
        if !is_dns_label(&self.name) {
            errors.push(FieldError::new(
                "metadata.name",
                format!("`{}` must be 1 to 63 lower-case letters, digits or `-`, beginning and ending with a letter or digit", self.name),
            ));
        }
        validate_labels("metadata.labels", &self.labels, errors);
        let size: usize = self
            .annotations
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if size > MAX_ANNOTATIONS {
            errors.push(FieldError::new(
                "metadata.annotations",
                format!("{size} bytes; at most {MAX_ANNOTATIONS} fit"),
            ));
        }
    }
}

/// Checks labels that stand at `place` of an object.
pub(crate) fn validate_labels(
    place: &str,
    labels: &BTreeMap<String, String>,
    errors: &mut Vec<FieldError>,
) {
    for (key, value) in labels {
        let (prefix, name) = key
            .split_once('/')
            .map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        let prefix_fits = prefix
            .is_none_or(|prefix| prefix.len() <= MAX_PREFIX && prefix.split('.').all(is_dns_label));
        if !prefix_fits || !is_label_text(name) {
            errors.push(FieldError::new(
                format!("{place}[{key}]"),
                "a key is up to 63 letters, digits, `-`, `_` or `.`, after an optional DNS name and `/`",
            ));
        }
        if !value.is_empty() && !is_label_text(value) {
            errors.push(FieldError::new(
                format!("{place}[{key}]"),
                format!("value `{value}` must be up to 63 letters, digits, `-`, `_` or `.`, beginning and ending with a letter or digit"),
            ));
        }
    }
}

/// Says whether `text` is a DNS label (RFC 1123, section 2.1; lower case as Kubernetes has it).
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= MAX_LABEL
        && text.bytes().all(|byte| inner(byte) || byte == b'-')
        && text.bytes().next().is_some_and(inner)
        && text.bytes().next_back().is_some_and(inner)
}

/// Says whether a label may have this key and value.
#[must_use]
pub fn is_label(key: &str, value: &str) -> bool {
    let mut errors = Vec::new();
    let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    validate_labels("", &labels, &mut errors);
    errors.is_empty()
}

fn is_label_text(text: &str) -> bool {
    text.len() <= MAX_LABEL
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text
            .bytes()
            .next_back()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// Metadata of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListMeta {
    /// The store's state that the list shows; opaque.
    pub resource_version: String,
}

/// One aspect of an object's state, with the reason for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect, in CamelCase, such as `Online`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One CamelCase word for programs.
    pub reason: String,
    /// A sentence for people; may be empty.
    #[serde(default)]
    pub message: String,
    /// When `status` last changed.
    #[schema(value_type = String, format = DateTime)]
    pub last_transition_time: Timestamp,
}

/// Whether a [`Condition`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows at the moment.
    Unknown,
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        let long = "a".repeat(64);
        for (name, fits) in [
            ("box-1", true),
            ("1", true),
            (&long[1..], true),
            (&long, false),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("Box", false),
            ("a.b", false),
            ("a/b", false),
            ("ä", false),
        ] {
            assert_eq!(is_dns_label(name), fits, "{name}");
        }
    }

    #[test]
    fn bad_labels_are_named() {
        let mut meta = ObjectMeta::named("x");
        for (key, value) in [
            ("site", "Hall 3"),
            ("example.com/line", "a_b.c"),
            ("/x", ""),
            ("bad key", "v"),
        ] {
            meta.labels.insert(key.into(), value.into());
        }
        let mut errors = Vec::new();
        meta.validate(&mut errors);
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "metadata.labels[/x]",
                "metadata.labels[bad key]",
                "metadata.labels[site]"
            ]
        );
    }
}
