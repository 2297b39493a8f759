//! `skerry content push`: what devices run, put into a registry.

use crate::cli::{DiskFormat, Push};
use crate::content::artifact::Machine;
use crate::content::registry::{Access, Target};
use crate::content::{Plan, artifact, layout};
use crate::context::{read_password, read_roots};
use crate::failure::Failure;
use crate::terminal::say;

pub fn push(args: Push) -> Result<(), Failure> {
    let target = Target::parse(&args.target)?;
    let access = Access {
        roots: args.ca.as_deref().map(read_roots).transpose()?,
        plain_http: args.plain_http,
        login: match (&args.user, &args.password_file) {
            (Some(user), Some(file)) => Some((user.clone(), read_password(file)?)),
            _ => None,
        },
    };
    let plan = plan(args)?;
    let digest = crate::runtime(crate::content::registry::push(&target, &access, &plan))?;
    say(format!("{}@{digest}", target.repository()))
}

fn plan(args: Push) -> Result<Plan, Failure> {
    match (args.oci_layout, args.disk, args.format) {
        (Some(dir), None, None) => layout::plan(&dir),
        (None, Some(disk), Some(format)) => artifact::plan(&Machine {
            disk,
            format: match format {
                DiskFormat::Raw => operator_api::DiskFormat::Raw,
                DiskFormat::Qcow2 => operator_api::DiskFormat::Qcow2,
            },
            kernel: args.kernel,
            initrds: args.initrd,
        }),
        _ => Err(Failure::usage(
            "give either --disk FILE with --format, or --oci-layout DIR",
        )),
    }
}
