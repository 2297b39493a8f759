//! `skerry rename`: a device's name is chosen by the controller when it enrols; people choose better ones. The controller
//! renames on a `PUT` to the old name with the new one in the metadata.

use operator_api::Device;

use crate::cli::Rename;
use crate::failure::Failure;
use crate::kinds::select;
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
        let object = client.get(&kind.path(&old), &[], &what).await?;
        let mut device: Device = serde_json::from_value(object).map_err(|error| {
            Failure::error(format!(
                "{what}: {} gave no device: {error}",
                client.server()
            ))
        })?;
        let version = device.metadata.resource_version.clone();
        device.metadata.name.clone_from(&args.name);
        let body = serde_json::to_value(&device).map_err(Failure::error)?;
        let version = Some(version.as_str()).filter(|version| !version.is_empty());
        client.put(&kind.path(&old), &body, version, &what).await?;
        say(format!("device/{old} is now device/{}", args.name))
    })
}
