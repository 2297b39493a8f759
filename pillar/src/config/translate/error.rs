//! Why an object of a config was left out. Each is told at that object, to the operator who wrote the config.

use std::net::Ipv4Addr;

use hypervisor_api::config::{
    MAX_COMMAND_LINE, MAX_DEVICES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB,
};
use protocol::authority::AuthorityError;
use protocol::cipher::CipherError;
use protocol::digest::DigestError;
use protocol::ids::{IdError, VolumeId};
use protocol::image::RepositoryError;
use thiserror::Error;
use uuid::Uuid;

use crate::domain::desired::MAX_DISKS;

/// A block of secrets that could not be opened.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The block itself, or its context.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// The controller's certificates were not fetched so far.
    #[error("the controller's certificates are not known yet")]
    NoCertificates,
    /// It names another certificate of the controller than those that were fetched.
    #[error("it is made with a key exchange certificate that the controller does not show")]
    UnknownCertificate,
    /// The device's own keys could not be opened.
    #[error("this device's keys are not available")]
    NoKeys,
}

/// Why an object was left out.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// A part of it is at fault.
    #[error("{part}: {source}")]
    In {
        /// Which.
        part: String,
        /// Why.
        source: Box<ObjectError>,
    },
    /// An id is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// An id was there before.
    #[error("two objects of the config have this id")]
    Twice,
    /// It builds on something that the config has not.
    #[error("{what} {id} is not in the config")]
    Missing {
        /// What.
        what: &'static str,
        /// Its id.
        id: Uuid,
    },
    /// It builds on something that was left out.
    #[error("{what} {id} cannot be used: {why}")]
    LeftOut {
        /// What.
        what: &'static str,
        /// Its id.
        id: Uuid,
        /// The fault of it.
        why: String,
    },
    /// Its secrets cannot be opened.
    #[error("{what}: {source}")]
    Secret {
        /// Which.
        what: &'static str,
        /// Why.
        source: SecretError,
    },

    /// A datastore of another kind.
    #[error("datastores of kind {0} are not supported; only container registries are")]
    DatastoreKind(&'static str),
    /// A datastore without a usable address.
    #[error("a registry's address is docker://HOST or docker://HOST:PORT: {0}")]
    Registry(#[from] AuthorityError),
    /// A further root of a datastore.
    #[error("a further certificate authority of the datastore is not PEM")]
    CertificateAuthority,
    /// An image of another format.
    #[error("images in format {0} are not supported; use CONTAINER, RAW or QCOW2")]
    ImageFormat(&'static str),
    /// An image by tag only.
    #[error("{0:?} has no digest; use repository@sha256:...")]
    NoDigest(String),
    /// An image's digest is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// An image's repository is none.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A volume from nothing.
    #[error("it says not from what it is to be made")]
    NoOrigin,
    /// A volume that is not downloaded.
    #[error("volumes of origin {0} are not supported; only downloaded ones are")]
    Origin(&'static str),
    /// A volume's size.
    #[error("its size is negative")]
    NegativeSize,

    /// A network instance of another kind.
    #[error("network instances of kind {0} are not supported; only local ones are")]
    NetworkKind(&'static str),
    /// A network instance without addresses.
    #[error("it has no subnet")]
    NoSubnet,
    /// A network instance's subnet.
    #[error("{0:?} is not a subnet; expected an IPv4 network such as 10.1.0.0/24")]
    Subnet(String),
    /// Not an address.
    #[error("{what} {text:?} is not an IPv4 address")]
    Address {
        /// What of.
        what: &'static str,
        /// What stands there.
        text: String,
    },
    /// An address of another subnet.
    #[error("{what} {address} is not a host of {subnet}")]
    OtherSubnet {
        /// What of.
        what: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// The network instance's.
        subnet: String,
    },
    /// A range that begins after its end.
    #[error("first address {first} comes after last address {last}")]
    Range {
        /// Its first address.
        first: Ipv4Addr,
        /// Its last.
        last: Ipv4Addr,
    },

    /// An app without resources.
    #[error("it has no resources")]
    NoResources,
    /// An app that wants hardware.
    #[error("handing devices to apps is not supported")]
    Adapters,
    /// An app without volumes.
    #[error("it has no volume to start from{}", if *.drives { "; EVE's old drives are not supported, use volumes" } else { "" })]
    NoVolume {
        /// It has drives.
        drives: bool,
    },
    /// An app with hardly any memory.
    #[error("{0} KiB of memory are too few; it needs {MIN_MEMORY_MIB} MiB at least")]
    LittleMemory(u32),
    /// An app with more memory than a monitor gives.
    #[error("{0} MiB of memory are too many; up to {MAX_MEMORY_MIB} are possible")]
    MuchMemory(u32),
    /// An app with more vCPUs than a monitor gives.
    #[error("{0} vCPUs are too many; up to {MAX_VCPUS} are possible")]
    Vcpus(u32),
    /// A machine that is to be a native container.
    #[error("a machine image cannot run without a virtual machine (NOHYPER)")]
    NativeMachine,
    /// A kernel command line that a monitor refuses.
    #[error(
        "its kernel command line has {0} bytes; up to {MAX_COMMAND_LINE} without a zero byte are possible"
    )]
    CommandLine(usize),
    /// More devices than a monitor has.
    #[error(
        "{volumes} volumes and {interfaces} interfaces are too many: with what every machine has they are {devices} \
         devices, {disks} of them disks, and there is room for {MAX_DEVICES}, {MAX_DISKS} of them disks"
    )]
    Devices {
        /// Its volumes.
        volumes: usize,
        /// Its interfaces.
        interfaces: usize,
        /// The devices that this comes to.
        devices: usize,
        /// The disks among them.
        disks: usize,
    },
    /// A volume of another generation.
    #[error("it wants generation {wanted} of volume {volume}, and the config has {found}")]
    Generation {
        /// The volume.
        volume: VolumeId,
        /// What the app wants.
        wanted: i64,
        /// What there is.
        found: i64,
    },
    /// A first volume that is empty.
    #[error("its first volume has no content")]
    NoContent,
    /// An interface in a VLAN.
    #[error("VLANs are not supported")]
    Vlan,
    /// An interface's MAC address.
    #[error("{0:?} is not a hardware address")]
    Mac(String),
    /// An interface's IP address.
    #[error("{0:?} is not an IPv4 address")]
    InterfaceAddress(String),
    /// A rule that would close something.
    #[error("access rules other than port maps and \"everything\" are not supported")]
    AccessRule,
    /// A port map with more to it.
    #[error("a port map can have the matches protocol and lport and no further action")]
    PortMap,
    /// A port map's protocol.
    #[error("a port map for protocol {0:?}; expected tcp or udp")]
    PortProtocol(String),
    /// A port map's port.
    #[error("a port map has no usable {0}")]
    Port(&'static str),
    /// A port that another app has.
    #[error("port {port} of the device is given to app {owner} already")]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        owner: String,
    },
    /// A port that it wants for two of its own.
    #[error("it wants port {0} of the device twice")]
    PortTwice(u16),
    /// User data in no base64.
    #[error("its user data is not base64")]
    UserDataBase64,
    /// User data that is not UTF-8.
    #[error("its user data is not text")]
    UserDataText,
    /// A line of the environment. The line itself may be a secret.
    #[error("line {0} of its environment is not NAME=value")]
    Environment(usize),
}

impl ObjectError {
    /// For `map_err`: says which part it is about.
    pub(super) fn within(part: impl Into<String>) -> impl FnOnce(Self) -> Self {
        let part = part.into();
        move |source| Self::In {
            part,
            source: Box::new(source),
        }
    }
}
