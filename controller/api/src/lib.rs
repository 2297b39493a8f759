//! The operator's objects: what the controller's operator API and the command line exchange.
//!
//! Objects look like Kubernetes objects (`apiVersion`, `kind`, `metadata`, `spec`, `status`), so that people and tools feel at home
//! and so that the kinds can become custom resources one day. The operator writes `spec`; the controller writes `status` and most of
//! `metadata`. This crate knows shapes and the rules that hold for one object alone; rules between objects are the controller's.
//!
//! | kind | collection | who makes it |
//! |---|---|---|
//! | [`Device`] | `devices` | enrolment; an operator labels, renames and deletes it |
//! | [`App`] | `apps` | operator |
//! | [`Datastore`] | `datastores` | operator |
//! | [`Manifest`], [`EnrolmentRule`] | `manifests`, `enrolmentrules` | operator: who enrols without a person |
//! | [`WaitingMachine`] | `waiting` | machines that wait for a person |
//! | [`TrustedKey`], [`TpmMaker`] | `trustedkeys`, `tpmmakers` | operator: whose signatures and certificates count |
//! | [`AttestationPolicy`], [`BootReference`] | `attestationpolicies`, `bootreferences` | operator: what may be booted |
//! | [`Boot`] | `boots` | attestation |

mod app;
mod datastore;
mod device;
mod enrolment;
mod meta;
mod object;
pub mod openapi;
mod problem;
mod session;
mod trust;

pub use app::{
    App, AppPhase, AppSpec, AppStatus, AppType, DiskFormat, ImageSource, Isolation, PortMap,
    Protocol, Resources,
};
pub use datastore::{
    Credentials, Datastore, DatastoreSpec, DatastoreStatus, DatastoreType, RegistryUrl,
    RegistryUrlError,
};
pub use device::{
    Alarm, Attestation, AttestationConclusion, AttestationLevel, ConfigStatus, Device, DevicePhase,
    DeviceSpec, DeviceStatus, Hardware, Interface, MemoryStatus, ProcessMemory, ReportedError,
    Verdict, VerdictOutcome,
};
pub use enrolment::{
    EnrolmentRule, EnrolmentRuleSpec, EnrolmentRuleStatus, MAX_MANIFEST_TEXT, MachineFacts,
    MachineMatch, Manifest, ManifestFormat, ManifestSpec, ManifestStatus, RuleEffect, TrustedKey,
    TrustedKeySpec, TrustedKeyStatus, WaitingDecided, WaitingDecision, WaitingDecisionRequest,
    WaitingMachine, WaitingMachineSpec, WaitingMachineStatus, WaitingVerb, fits,
};
pub use meta::{Condition, ConditionStatus, ListMeta, ObjectMeta, is_dns_label, is_label};
pub use object::{Invalid, List, Object, WatchEvent, WatchEventType};
pub use problem::{FieldError, Problem};
pub use protocol::image::{ImageReference, MAX_MANIFEST};
pub use session::{
    EnrolmentWay, ImageBundle, ImageEnrolment, ImageOwner, LogEntry, TokenRequest, TokenResponse,
};
pub use trust::{
    AcceptFirmwareRequest, AcceptedFirmware, AcceptedReferences, AttestationPolicy,
    AttestationPolicySpec, AttestationPolicyStatus, Boot, BootOccasion, BootReference,
    BootReferenceSpec, BootReferenceStatus, BootSpec, BootStatus, FirmwareValues, ImageVersions,
    Makes, PolicyAction, PolicyMachines, RevocationListStatus, TpmMaker, TpmMakerSpec,
    TpmMakerStatus,
};

/// The `apiVersion` of every object here.
pub const API_VERSION: &str = "skerry.io/v1";

/// Path below which the operator API lives on a controller.
pub const API_PREFIX: &str = "/apis/skerry.io/v1";

/// Media type of an error body, see [`Problem`] (RFC 9457, section 3).
pub const PROBLEM_JSON: &str = "application/problem+json";
