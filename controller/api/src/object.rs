//! What all kinds have in common: one trait to write generic code against, lists, watch events, and the shape itself.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::meta::{ListMeta, ObjectMeta};
use crate::problem::FieldError;

/// An object of the operator API.
pub trait Object:
    Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// What the operator wants.
    type Spec: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// What the controller knows.
    type Status: Clone
        + fmt::Debug
        + Default
        + PartialEq
        + Serialize
        + DeserializeOwned
        + Send
        + Sync;

    /// What its uid is the id of.
    type Id: Copy + fmt::Debug + fmt::Display + From<Uuid> + Into<Uuid> + Send + Sync;

    /// Value of `kind`.
    const KIND: &'static str;
    /// Last path segment of its collection.
    const COLLECTION: &'static str;

    /// A new object as an operator would write it.
    fn new(name: impl Into<String>, spec: Self::Spec) -> Self;
    /// The `apiVersion` and `kind` that the object claims.
    fn type_meta(&self) -> (&str, &str);
    /// The metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// The metadata, to change.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
    /// Its uid as the id that it is; nothing before the controller has given it one.
    fn id(&self) -> Option<Self::Id> {
        self.metadata().uid.map(Into::into)
    }
    /// The spec.
    fn spec(&self) -> &Self::Spec;
    /// The spec, to change.
    fn spec_mut(&mut self) -> &mut Self::Spec;
    /// The status.
    fn status(&self) -> &Self::Status;
    /// The status, to change.
    fn status_mut(&mut self) -> &mut Self::Status;

    /// Checks the spec by itself and adds what is wrong to `errors`, with fields beginning with `spec.`.
    fn validate_spec(spec: &Self::Spec, errors: &mut Vec<FieldError>);

    /// Checks everything that can be said about this object alone.
    ///
    /// # Errors
    /// All that is wrong, each with the field's path.
    fn validate(&self) -> Result<(), Invalid> {
        let mut errors = Vec::new();
        let (api_version, kind) = self.type_meta();
        if api_version != crate::API_VERSION {
            errors.push(FieldError::new(
                "apiVersion",
                format!("`{api_version}` must be `{}`", crate::API_VERSION),
            ));
        }
        if kind != Self::KIND {
            errors.push(FieldError::new(
                "kind",
                format!("`{kind}` must be `{}`", Self::KIND),
            ));
        }
        self.metadata().validate(&mut errors);
        Self::validate_spec(self.spec(), &mut errors);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Invalid(errors))
        }
    }
}

/// Everything that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<FieldError>);

impl fmt::Display for Invalid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(out, "{separator}{}: {}", error.field, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// All objects of a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// Always [`crate::API_VERSION`].
    pub api_version: String,
    /// The items' kind and `List`.
    pub kind: String,
    /// Which state of the store the list shows.
    pub metadata: ListMeta,
    /// The objects, by name.
    pub items: Vec<T>,
}

impl<T: Object> List<T> {
    /// A list of `items` as of `resource_version`.
    pub fn new(items: Vec<T>, resource_version: String) -> Self {
        Self {
            api_version: crate::API_VERSION.to_owned(),
            kind: format!("{}List", T::KIND),
            metadata: ListMeta { resource_version },
            items,
        }
    }
}

/// One line of a watch (`GET collection?watch=true`): first every object there is, as `ADDED`, then each change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchEvent<T> {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: WatchEventType,
    /// The object after it happened; with `DELETED` its last state.
    pub object: T,
}

/// What a [`WatchEvent`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum WatchEventType {
    /// Made, or there when the watch began.
    Added,
    /// Spec, status or metadata changed.
    Modified,
    /// Gone.
    Deleted,
}

/// Writes the struct of one kind and its [`Object`] implementation; the kinds differ in their spec and status only.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $collection:literal, $id:ty, $spec:ty, $status:ty, $validate:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            /// Always `skerry.io/v1`.
            pub api_version: String,
            /// What sort of object it is: the name of this type.
            pub kind: String,
            /// Name, labels and what the controller keeps.
            pub metadata: crate::meta::ObjectMeta,
            /// What the operator wants.
            pub spec: $spec,
            /// What the controller knows. Ignored when an operator sends it.
            #[serde(default)]
            pub status: $status,
        }

        impl crate::object::Object for $name {
            type Spec = $spec;
            type Status = $status;
            type Id = $id;
            const KIND: &'static str = stringify!($name);
            const COLLECTION: &'static str = $collection;

            fn new(name: impl Into<String>, spec: $spec) -> Self {
                Self {
                    api_version: crate::API_VERSION.to_owned(),
                    kind: Self::KIND.to_owned(),
                    metadata: crate::meta::ObjectMeta::named(name),
                    spec,
                    status: <$status>::default(),
                }
            }
            fn type_meta(&self) -> (&str, &str) {
                (&self.api_version, &self.kind)
            }
            fn metadata(&self) -> &crate::meta::ObjectMeta {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut crate::meta::ObjectMeta {
                &mut self.metadata
            }
            fn spec(&self) -> &$spec {
                &self.spec
            }
            fn spec_mut(&mut self) -> &mut $spec {
                &mut self.spec
            }
            fn status(&self) -> &$status {
                &self.status
            }
            fn status_mut(&mut self) -> &mut $status {
                &mut self.status
            }
            fn validate_spec(spec: &$spec, errors: &mut Vec<crate::problem::FieldError>) {
                $validate(spec, errors);
            }
        }
    };
}
pub(crate) use object;
