//! Ids as types, so that an app's id cannot be passed for a device's. Both ends use these; text and bare UUIDs are found at
//! the edges only: on the wire, in paths, in a store's columns and file names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// A text that should have been an id and is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not the id of {what}: it must be a UUID such as 3f2504e0-4f89-41d3-9a0c-0305e82c3301"
)]
pub struct IdError {
    /// What kind of thing was to be named, with its article.
    pub what: &'static str,
    /// The text as it came, cut to 64 characters.
    pub text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random id (UUID version 4).
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self.0.as_hyphenated(), f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| IdError { what: $what, text: text.chars().take(64).collect() })
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id!(
    /// A device, as its controller named it.
    DeviceId, "a device"
);
id!(
    /// An application instance.
    AppId, "an application"
);
id!(
    /// A volume. Its generation counter is not part of it.
    VolumeId, "a volume"
);
id!(
    /// A content tree: an image, or an artifact with several parts.
    ContentId, "a content tree"
);
id!(
    /// A datastore, such as a registry.
    DatastoreId, "a datastore"
);
id!(
    /// A network instance: an application network on a device.
    NetworkInstanceId, "a network instance"
);
id!(
    /// A policy for the attestation of devices.
    PolicyId, "an attestation policy"
);
id!(
    /// A rule of enrolment.
    RuleId, "an enrolment rule"
);
id!(
    /// A list of machines that enrol without a person.
    ManifestId, "a manifest"
);
id!(
    /// A key whose signatures the operator trusts.
    TrustedKeyId, "a trusted key"
);
id!(
    /// A maker of TPMs whose roots the operator trusts.
    TpmMakerId, "a maker of TPMs"
);
id!(
    /// The values that one image's boot comes to.
    BootReferenceId, "a boot reference"
);
id!(
    /// A console session of the push channel: random, single-use, short-lived.
    SessionId, "a session"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_the_hyphenated_one() {
        let id: DeviceId = "3F2504E0-4F89-41D3-9A0C-0305E82C3301".parse().unwrap();
        assert_eq!(id.to_string(), "3f2504e0-4f89-41d3-9a0c-0305e82c3301");
        assert_eq!(
            serde_json::to_string(&id).unwrap(),
            "\"3f2504e0-4f89-41d3-9a0c-0305e82c3301\""
        );
    }

    #[test]
    fn garbage_is_refused_with_what_was_wanted() {
        let error = "x".repeat(500).parse::<AppId>().unwrap_err();
        assert_eq!(error.text.len(), 64);
        assert!(error.to_string().contains("an application"));
    }
}
