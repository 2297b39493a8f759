//! Compiles the schema in `proto/` with protox, so that no `protoc` is needed to build.

use std::error::Error;
use std::path::PathBuf;

/// Every package of the schema; the files lie flat, one a package.
const PACKAGES: [&str; 13] = [
    "attest",
    "auth",
    "certs",
    "common",
    "config",
    "enrolment",
    "flowlog",
    "hardwarehealth",
    "info",
    "logs",
    "metrics",
    "register",
    "uuid",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files: Vec<PathBuf> = PACKAGES
        .iter()
        .map(|package| PathBuf::from(format!("proto/{package}.proto")))
        .collect();
    let descriptors = protox::compile(&files, ["proto"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
