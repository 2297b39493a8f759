//! Ids of what a config is made of. They follow from the ids of the operator's objects, so that the same objects always give the
//! same config, and a report about a volume finds its app without a table.

use operator_api::{App, DiskFormat};
use protocol::ids::{AppId, ContentId, DatastoreId, DeviceId, NetworkInstanceId, VolumeId};
use uuid::Uuid;

/// The content tree of an image: one for all apps of a device that use it.
#[must_use]
pub fn content(datastore: DatastoreId, app: &App) -> ContentId {
    let format = match (app.spec.kind, app.spec.image.format.unwrap_or_default()) {
        (operator_api::AppType::Container, _) => "container",
        (operator_api::AppType::Vm, DiskFormat::Raw) => "raw",
        (operator_api::AppType::Vm, DiskFormat::Qcow2) => "qcow2",
    };
    let name = format!("content/{format}/{}", app.spec.image.reference);
    ContentId(Uuid::new_v5(&datastore.0, name.as_bytes()))
}

/// The volume that an app starts from. Another image makes another volume.
#[must_use]
pub fn volume(app: AppId, content: ContentId) -> VolumeId {
    let name = format!("volume/{content}");
    VolumeId(Uuid::new_v5(&app.0, name.as_bytes()))
}

/// The network instance that a device's apps are on.
#[must_use]
pub fn network(device: DeviceId) -> NetworkInstanceId {
    NetworkInstanceId(Uuid::new_v5(&device.0, b"network/default"))
}
