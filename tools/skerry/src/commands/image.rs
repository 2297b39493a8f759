//! `skerry image build`: parts and bundle become the image of an installer stick.

use imaging::{Bundle, build_stick};

use crate::cli::{EnrolmentWay, ImageBuild};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::terminal::{note, say};

pub fn build(args: ImageBuild, context: Option<&str>) -> Result<(), Failure> {
    if !args.parts.join("parts.json").is_file() {
        return Err(Failure::not_found(format!(
            "there is no parts.json in {}: it is made by `cargo xtask image`",
            args.parts.display()
        )));
    }
    let (json, source) = match &args.bundle {
        Some(path) => (
            std::fs::read(path).map_err(Failure::io("read the bundle", path))?,
            path.display().to_string(),
        ),
        None => fetch(context, args.enrolment)?,
    };
    let bundle =
        Bundle::parse(&json).map_err(|error| Failure::error(format!("{source}: {error}")))?;
    note(format!(
        "devices from this stick will look for their controller at {}",
        bundle.server
    ));

    let mut progress: Option<Progress> = None;
    let stick = build_stick(&args.parts, &bundle, &args.output, |done, total| {
        progress
            .get_or_insert_with(|| Progress::begin("writing the stick's image", total))
            .reach(done);
    })
    .map_err(Failure::error)?;
    if let Some(progress) = progress {
        progress.end("written");
    }
    say(format!(
        "{} ({} MiB)",
        args.output.display(),
        stick.size >> 20
    ))
}

/// The controller's bundle as it gives it, and where it came from.
fn fetch(context: Option<&str>, enrolment: EnrolmentWay) -> Result<(Vec<u8>, String), Failure> {
    let client = super::client(context)?;
    let ways = match enrolment {
        EnrolmentWay::ZeroTouch => "zeroTouch",
        EnrolmentWay::Eve => "eve",
        EnrolmentWay::Both => "zeroTouch,eve",
    };
    let query = [("enrolment", ways.to_owned())];
    let bundle = crate::runtime(client.get("imagebundle", &query, "get the image bundle"))?;
    Ok((bundle.to_string().into_bytes(), client.server().to_owned()))
}
