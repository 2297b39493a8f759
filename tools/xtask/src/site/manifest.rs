//! The objects that demo, tests and benches apply, as a user would write them.

use anyhow::{Context, Result};

use super::Registry;

/// The site's registry, under the name `demo`.
pub fn datastore(registry: &Registry) -> Result<String> {
    let root = std::fs::read_to_string(registry.root())
        .with_context(|| format!("reading {}", registry.root().display()))?;
    let indented: String = root.lines().map(|line| format!("    {line}\n")).collect();
    Ok(format!(
        "apiVersion: skerry.io/v1\nkind: Datastore\nmetadata:\n  name: demo\nspec:\n  type: registry\n  url: docker://{address}\n  \
         caCertificates: |\n{indented}",
        address = registry.address_from_box(),
    ))
}

/// A container that answers HTTP on port 80, and is reached at `port` of the device.
pub fn container(name: &str, device: &str, reference: &str, isolation: &str, port: u16) -> String {
    format!(
        "apiVersion: skerry.io/v1
kind: App
metadata:
  name: {name}
spec:
  device: {device}
  type: container
  isolation: {isolation}
  image:
    datastore: demo
    reference: {reference}
  resources: {{ cpus: 1, memoryMiB: 96 }}
  env:
    GREETING: hello from {name}
  ports:
    - {{ device: {port}, app: 80, protocol: tcp }}
"
    )
}

/// A Debian machine that answers HTTP on port 80, and is reached at `port` of the device.
pub fn machine(name: &str, device: &str, reference: &str, format: &str, port: u16) -> String {
    format!(
        "apiVersion: skerry.io/v1
kind: App
metadata:
  name: {name}
spec:
  device: {device}
  type: vm
  image:
    datastore: demo
    reference: {reference}
    format: {format}
  resources: {{ cpus: 2, memoryMiB: 384 }}
  kernelArgs: root=/dev/vda rw console=ttyS0
  ports:
    - {{ device: {port}, app: 80, protocol: tcp }}
"
    )
}

/// A rule that lets in every machine of a maker, without a person.
pub fn admission(name: &str, manufacturer: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1
kind: EnrolmentRule
metadata:
  name: {name}
spec:
  effect: admit
  match:
    manufacturer: {manufacturer}
"
    )
}

/// A policy for a maker's machines: they boot what this release key has signed, with firmware that was accepted.
pub fn policy(name: &str, manufacturer: &str, release_key: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1
kind: AttestationPolicy
metadata:
  name: {name}
spec:
  machines:
    manufacturer: {manufacturer}
  references:
    releaseKeys: [\"{release_key}\"]
  requireSecureBoot: false
"
    )
}

/// A maker of TPMs whose certificates are trusted.
pub fn tpm_maker(name: &str, certificates: &str) -> String {
    let indented: String = certificates
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    format!(
        "apiVersion: skerry.io/v1\nkind: TpmMaker\nmetadata:\n  name: {name}\nspec:\n  certificates: |\n{indented}"
    )
}
