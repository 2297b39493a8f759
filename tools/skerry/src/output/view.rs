//! What a table shows of an object: columns of each kind, read from the operator API's own types.

use jiff::Timestamp;
use operator_api::{
    App, AppPhase, AppType, Attestation, AttestationPolicy, Boot, BootOccasion, BootReference,
    Condition, Datastore, DatastoreType, Device, EnrolmentRule, Isolation, MachineMatch, Manifest,
    Object, TpmMaker, TrustedKey, VerdictOutcome, WaitingMachine,
};
use serde_json::Value;

use super::{age, first_line, size_kib};
use crate::terminal::Paint;

/// A column's title.
pub struct Title {
    /// As it is shown.
    pub text: &'static str,
    /// Only with `-o wide`.
    pub wide: bool,
}

/// An object as far as tables and `skerry wait` are concerned.
#[derive(Debug)]
pub struct View {
    /// A cell for each title.
    pub cells: Vec<String>,
    /// Where it stands; empty for kinds without phases.
    pub phase: String,
    /// What is wrong, in words; empty if nothing is.
    pub message: String,
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

/// A column of the table of `T`.
pub struct Column<T> {
    title: &'static str,
    wide: bool,
    cell: fn(&T, Timestamp) -> String,
}

const fn column<T>(title: &'static str, cell: fn(&T, Timestamp) -> String) -> Column<T> {
    Column {
        title,
        wide: false,
        cell,
    }
}

const fn wide<T>(title: &'static str, cell: fn(&T, Timestamp) -> String) -> Column<T> {
    Column {
        title,
        wide: true,
        cell,
    }
}

/// A kind with a table.
pub trait Viewed: Object {
    /// Its columns.
    fn columns() -> Vec<Column<Self>>;
    /// Where the object stands; empty for kinds without phases.
    fn phase(&self) -> String;
    /// What is wrong, in words.
    fn message(&self) -> &str {
        ""
    }
    /// Aspects with reasons.
    fn conditions(&self) -> &[Condition];
}

/// Titles of a kind's table.
pub fn titles<T: Viewed>() -> Vec<Title> {
    let title = |column: Column<T>| Title {
        text: column.title,
        wide: column.wide,
    };
    T::columns().into_iter().map(title).collect()
}

/// Reads an object as the controller gave it.
pub fn view<T: Viewed>(object: &Value, now: Timestamp) -> Result<View, serde_json::Error> {
    let object: T = serde_json::from_value(object.clone())?;
    Ok(View {
        cells: T::columns()
            .iter()
            .map(|column| (column.cell)(&object, now))
            .collect(),
        phase: object.phase(),
        message: object.message().to_owned(),
        conditions: object.conditions().to_vec(),
    })
}

/// How long ago something was; empty if it was never.
fn ago(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map(|then| age(then, now)).unwrap_or_default()
}

fn name<T: Object>(object: &T, _: Timestamp) -> String {
    object.metadata().name.clone()
}

fn made<T: Object>(object: &T, now: Timestamp) -> String {
    ago(object.metadata().creation_timestamp, now)
}

impl Viewed for Device {
    fn columns() -> Vec<Column<Self>> {
        vec![
            column("NAME", name),
            column("PHASE", |device, _| device.phase()),
            column("TRUST", |device, _| trust(device)),
            column("ADDRESS", |device, _| address(device)),
            column("VERSION", |device, _| device.status.image_version.clone()),
            column("SEEN", |device, now| ago(device.status.last_seen, now)),
            column("AGE", made),
            wide("MODEL", |device, _| {
                device.status.hardware.product_name.clone()
            }),
            wide("SERIAL", |device, _| device.status.hardware.serial.clone()),
            wide("MEMORY", |device, _| memory(device)),
            wide("CONFIG", |device, _| config(device).to_owned()),
            wide("UID", |device, _| {
                device
                    .metadata
                    .uid
                    .map(|uid| uid.to_string())
                    .unwrap_or_default()
            }),
        ]
    }

    fn phase(&self) -> String {
        self.status.phase.to_string()
    }

    fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }
}

/// What its attestation came to, and how strong the proof of identity is: `trusted, bronze`.
fn trust(device: &Device) -> String {
    attested(&device.status.attestation)
}

/// The first address of an interface that leads outside, or else of any.
fn address(device: &Device) -> String {
    let mut interfaces: Vec<_> = device.status.interfaces.iter().collect();
    interfaces.sort_by_key(|interface| !interface.uplink);
    interfaces
        .iter()
        .find_map(|interface| interface.addresses.first())
        .cloned()
        .unwrap_or_default()
}

fn memory(device: &Device) -> String {
    let Some(memory) = &device.status.memory else {
        return String::new();
    };
    format!(
        "{} of {}",
        size_kib(memory.total_kib.saturating_sub(memory.available_kib)),
        size_kib(memory.total_kib)
    )
}

fn config(device: &Device) -> &'static str {
    let config = &device.status.config;
    match (config.wanted.is_empty(), config.wanted == config.applied) {
        (true, _) => "",
        (false, true) => "applied",
        (false, false) => "pending",
    }
}

impl Viewed for App {
    fn columns() -> Vec<Column<Self>> {
        vec![
            column("NAME", name),
            column("DEVICE", |app, _| app.spec.device.clone()),
            column("TYPE", |app, _| kind(app).to_owned()),
            column("PHASE", |app, _| progress(app)),
            column("RESTARTS", |app, _| app.status.restarts.to_string()),
            column("PORTS", |app, _| ports(app)),
            column("AGE", made),
            wide("ADDRESSES", |app, _| app.status.addresses.join(",")),
            wide("MEMORY", |app, _| {
                app.status.memory_used_kib.map(size_kib).unwrap_or_default()
            }),
            wide("IMAGE", |app, _| app.spec.image.reference.clone()),
            wide("MESSAGE", |app, _| first_line(&app.status.message)),
        ]
    }

    fn phase(&self) -> String {
        self.status.phase.to_string()
    }

    fn message(&self) -> &str {
        &self.status.message
    }

    fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }
}

fn kind(app: &App) -> &'static str {
    match (app.spec.kind, app.spec.effective_isolation()) {
        (AppType::Container, Isolation::Microvm) => "container/microvm",
        (AppType::Container, Isolation::Native) => "container/native",
        (AppType::Vm, _) => "vm",
    }
}

fn progress(app: &App) -> String {
    match (app.status.phase, app.status.progress_percent) {
        (phase @ AppPhase::Fetching, Some(percent)) => format!("{phase} {percent}%"),
        (phase, _) => phase.to_string(),
    }
}

fn ports(app: &App) -> String {
    let one =
        |port: &operator_api::PortMap| format!("{}->{}/{}", port.device, port.app, port.protocol);
    app.spec.ports.iter().map(one).collect::<Vec<_>>().join(",")
}

impl Viewed for Datastore {
    fn columns() -> Vec<Column<Self>> {
        vec![
            column("NAME", name),
            column("TYPE", |datastore, _| {
                match datastore.spec.kind {
                    DatastoreType::Registry => "registry",
                }
                .to_owned()
            }),
            column("URL", |datastore, _| datastore.spec.url.clone()),
            column("AGE", made),
        ]
    }

    fn phase(&self) -> String {
        String::new()
    }

    fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }
}

impl Viewed for WaitingMachine {
    fn columns() -> Vec<Column<Self>> {
        vec![
            column("NAME", name),
            column("PHASE", |machine, _| machine.phase()),
            column("WORDS", |machine, _| machine.status.words.clone()),
            column("LEVEL", |machine, _| machine.status.level.to_string()),
            column("MODEL", |machine, _| {
                machine.status.hardware.product.clone()
            }),
            column("SERIAL", |machine, _| {
                machine.status.hardware.serial.clone()
            }),
            column("SEEN", |machine, now| ago(machine.status.last_seen, now)),
            column("RESEMBLES", |machine, _| machine.status.resembles.join(",")),
            wide("AGE", |machine, now| ago(machine.status.first_seen, now)),
            wide("MAKER", |machine, _| {
                machine.status.hardware.manufacturer.clone()
            }),
            wide("REASON", |machine, _| machine.status.reason.clone()),
            wide("ID", |machine, _| machine.status.machine_id.clone()),
        ]
    }

    fn phase(&self) -> String {
        self.status.decision.to_string()
    }

    fn message(&self) -> &str {
        &self.status.reason
    }

    fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }
}

/// A kind without phases, by its columns.
macro_rules! plain {
    ($kind:ty, $columns:expr) => {
        impl Viewed for $kind {
            fn columns() -> Vec<Column<Self>> {
                $columns
            }

            fn phase(&self) -> String {
                String::new()
            }

            fn conditions(&self) -> &[Condition] {
                &self.status.conditions
            }
        }
    };
}

plain!(
    Manifest,
    vec![
        column("NAME", name),
        column("MACHINES", |manifest, _| manifest
            .status
            .machines
            .to_string()),
        column("ENROLLED", |manifest, _| manifest
            .status
            .enrolled
            .to_string()),
        column("SIGNED BY", |manifest, _| manifest.status.signed_by.clone()),
        column("AGE", made),
        wide("DIGEST", |manifest, _| manifest.status.digest.clone()),
    ]
);
plain!(
    EnrolmentRule,
    vec![
        column("NAME", name),
        column("PRIORITY", |rule, _| rule.spec.priority.to_string()),
        column("EFFECT", |rule, _| rule.spec.effect.to_string()),
        column("MATCH", |rule, _| terms(&rule.spec.matching)),
        column("UNTIL", |rule, _| rule
            .spec
            .until
            .map(|until| until.to_string())
            .unwrap_or_default()),
        column("AGE", made),
    ]
);
plain!(TrustedKey, vec![column("NAME", name), column("AGE", made)]);
plain!(
    TpmMaker,
    vec![
        column("NAME", name),
        column("MAKES", |maker, _| maker.spec.makes.to_string()),
        column("CERTIFICATES", |maker, _| maker
            .spec
            .certificates
            .matches("-----BEGIN CERTIFICATE-----")
            .count()
            .to_string()),
        column("REVOKED", |maker, _| maker
            .status
            .revocation_lists
            .iter()
            .map(|list| u64::from(list.revoked))
            .sum::<u64>()
            .to_string()),
        column("AGE", made),
    ]
);
plain!(
    AttestationPolicy,
    vec![
        column("NAME", name),
        column("MAKER", |policy, _| any(&policy.spec.machines.manufacturer)),
        column("MODEL", |policy, _| any(&policy.spec.machines.product)),
        column("SECURE BOOT", |policy, _| {
            if policy.spec.require_secure_boot {
                "required".to_owned()
            } else {
                String::new()
            }
        }),
        column("FIRMWARES", |policy, _| policy
            .spec
            .firmware
            .len()
            .to_string()),
        column("MAX AGE", |policy, _| format!(
            "{}m",
            policy.spec.max_age_minutes
        )),
        column("AGE", made),
    ]
);
plain!(
    BootReference,
    vec![
        column("NAME", name),
        column("VERSION", |reference, _| reference
            .status
            .image_version
            .clone()),
        column("VARIANT", |reference, _| reference.status.variant.clone()),
        column("AGE", made),
        wide("KEY", |reference, _| reference.status.release_key.clone()),
    ]
);
plain!(
    Boot,
    vec![
        column("NAME", name),
        column("OCCASION", |boot, _| match boot.status.occasion {
            BootOccasion::Enrolment => "enrolment".to_owned(),
            BootOccasion::Attestation => "attestation".to_owned(),
        }),
        column("TRUST", |boot, _| attested(&boot.status.attestation)),
        column("FAILED", |boot, _| failed(&boot.status.attestation)),
        column("RESETS", |boot, _| boot
            .status
            .reset_count
            .map(|count| count.to_string())
            .unwrap_or_default()),
        column("SEEN", |boot, now| ago(boot.status.attestation.time, now)),
        wide("DIFFERENCES", |boot, _| boot
            .status
            .attestation
            .differences
            .len()
            .to_string()),
        wide("FIRMWARE", |boot, _| boot
            .status
            .firmware
            .as_ref()
            .map(|firmware| firmware.version.clone())
            .unwrap_or_default()),
    ]
);

/// A pattern; what is left out fits everything.
fn any(pattern: &Option<String>) -> String {
    pattern.clone().unwrap_or_else(|| "*".to_owned())
}

/// What a rule asks, in one line.
fn terms(matching: &MachineMatch) -> String {
    let mut terms: Vec<String> = [
        ("manufacturer", &matching.manufacturer),
        ("product", &matching.product),
        ("serial", &matching.serial),
        ("endorsementIssuer", &matching.endorsement_issuer),
    ]
    .into_iter()
    .filter_map(|(key, pattern)| Some(format!("{key}={}", pattern.as_ref()?)))
    .collect();
    terms.extend(
        matching
            .certified
            .map(|certified| format!("certified={certified}")),
    );
    terms.extend(
        matching
            .machine_certified
            .map(|certified| format!("machineCertified={certified}")),
    );
    terms.join(",")
}

fn attested(attestation: &Attestation) -> String {
    format!("{}, {}", attestation.conclusion, attestation.level)
}

/// The checks that failed.
fn failed(attestation: &Attestation) -> String {
    let failed: Vec<&str> = attestation
        .verdicts
        .iter()
        .filter(|verdict| verdict.outcome == VerdictOutcome::Failed)
        .map(|verdict| verdict.check.as_str())
        .collect();
    failed.join(",")
}

/// Colour of a cell in the column PHASE.
pub fn phase_paint(cell: &str) -> Paint {
    match cell.split(' ').next().unwrap_or_default() {
        "Online" | "Running" | "Approved" => Paint::Green,
        "Offline" | "Refused" | "Revoked" | "Denied" | "Failed" => Paint::Red,
        "Stopped" | "" => Paint::Plain,
        _ => Paint::Yellow,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cells<T: Viewed>(object: &Value) -> Vec<String> {
        let view = view::<T>(object, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(view.cells.len(), titles::<T>().len());
        view.cells
    }

    #[test]
    fn a_device_is_shown() {
        let device = json!({
            "apiVersion": "skerry.io/v1", "kind": "Device",
            "metadata": {"name": "box-1", "creationTimestamp": "1969-12-31T23:00:00Z"}, "spec": {},
            "status": {
                "phase": "Online", "attestation": {"conclusion": "unproven", "level": "bronze"}, "imageVersion": "0.1.0",
                "interfaces": [{"addresses": ["10.0.0.1"]}, {"uplink": true, "addresses": ["192.0.2.7"]}],
                "memory": {"totalKiB": 2_097_152, "availableKiB": 1_966_080},
                "config": {"wanted": "a", "applied": "b"}, "newerThanThisProgram": 1
            }
        });
        let shown = cells::<Device>(&device);
        assert_eq!(
            shown[..7],
            [
                "box-1",
                "Online",
                "unproven, bronze",
                "192.0.2.7",
                "0.1.0",
                "",
                "60m"
            ]
            .map(str::to_owned)
        );
        assert_eq!(
            shown[9..11],
            ["128Mi of 2.0Gi".to_owned(), "pending".to_owned()]
        );
    }

    #[test]
    fn an_app_is_shown() {
        let app = json!({
            "apiVersion": "skerry.io/v1", "kind": "App", "metadata": {"name": "web"},
            "spec": {
                "device": "box-1", "type": "container", "image": {"datastore": "demo", "reference": "x"},
                "ports": [{"device": 8080, "app": 80}, {"device": 53, "app": 53, "protocol": "udp"}]
            },
            "status": {"phase": "Fetching", "progressPercent": 40, "restarts": 0, "message": "one\ntwo"}
        });
        let shown = cells::<App>(&app);
        assert_eq!(
            shown[..6],
            [
                "web",
                "box-1",
                "container/microvm",
                "Fetching 40%",
                "0",
                "8080->80/tcp,53->53/udp"
            ]
            .map(str::to_owned)
        );
        assert_eq!(shown[10], "one");
        assert_eq!(phase_paint(&shown[3]), Paint::Yellow);
        let view = view::<App>(&app, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(
            (view.phase.as_str(), view.message.as_str()),
            ("Fetching", "one\ntwo")
        );
    }

    #[test]
    fn what_is_no_object_of_the_kind_is_not_shown() {
        let wrong = json!({"kind": "App", "metadata": {"name": "x"}, "status": {"phase": 7}});
        for object in [&wrong, &json!("text"), &Value::Null] {
            assert!(view::<App>(object, Timestamp::UNIX_EPOCH).is_err());
        }
    }
}
