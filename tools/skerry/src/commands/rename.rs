//! `skerry rename`: a device's name is chosen by the controller when it enrols; people choose better ones. The controller
//! renames on a `PUT` to the old name with the new one in the metadata.

use serde_json::Value;

use crate::cli::Rename;
use crate::failure::Failure;
use crate::kinds::{select, text};
use crate::terminal::say;

pub fn run(args: Rename, context: Option<&str>) -> Result<(), Failure> {
    let (kind, old) = match select(&[format!(
        "device/{}",
        args.device.trim_start_matches("device/")
    )])?
    .pop()
    {
        Some(selection) => (
            selection.kind,
            selection.names.into_iter().next().unwrap_or_default(),
        ),
        None => return Err(Failure::usage("which device?")),
    };
    let client = super::client(context)?;
    let what = format!("rename device {old} to {}", args.name);
    crate::runtime(async {
        let mut object = client.get(&kind.path(&old), &[], &what).await?;
        let version = text(&object, "/metadata/resourceVersion");
        match object.pointer_mut("/metadata/name") {
            Some(name) => *name = Value::String(args.name.clone()),
            None => {
                return Err(Failure::error(format!(
                    "{what}: {} gave no device",
                    client.server()
                )));
            }
        }
        client
            .put(
                &kind.path(&old),
                &object,
                Some(&version).filter(|v| !v.is_empty()).map(String::as_str),
                &what,
            )
            .await?;
        say(format!("device/{old} is now device/{}", args.name))
    })
}
