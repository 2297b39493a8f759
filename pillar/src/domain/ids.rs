//! Ids as types, so that a volume's id cannot be handed to who wants an app's.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

id!(
    /// A device, as its controller names it.
    DeviceId
);
id!(
    /// A place to download from.
    DatastoreId
);
id!(
    /// A content tree: an image, as it is downloaded.
    ContentId
);
id!(
    /// A volume: storage that an app sees.
    VolumeId
);
id!(
    /// A network instance: a virtual switch or router.
    NetworkId
);
id!(
    /// An app instance: one VM or container.
    AppId
);
