//! How device and controller speak: EVE API messages, signed envelope, encrypted blocks. No I/O.
//!
//! Everything that passes between a device and its controller is described here once, for both ends:
//!
//! - [`eve`]: the messages of the EVE device API v2, generated from the schema in `proto/`;
//! - [`paths`]: the URL paths that they are sent to;
//! - [`envelope`]: the signed container around every message;
//! - [`enrolment`]: our own way of enrolling, which needs no shared secret;
//! - [`keys`]: what signs and what checks them;
//! - [`certs`]: the controller's certificates, and how a device decides to trust them;
//! - [`cipher`]: encrypted blocks inside messages;
//! - [`registration`]: how a device applies;
//! - [`authority`]: how a controller or a registry is called;
//! - [`image`]: how an image is called;
//! - [`digest`]: SHA-256 as a value;
//! - [`items`]: names of what EVE's messages have no field for;
//! - [`logs`]: the gzip bundles in which logs travel;
//! - [`link`]: our own push channel beside the EVE API;
//! - [`ids`]: ids as types.
//!
//! The crate opens no file and no socket and reads no clock: bytes, keys and the time come in as values, so that the
//! device, the controller, the load generator and the fuzzers all run the same code.

pub mod authority;
pub mod certs;
pub mod cipher;
pub mod digest;
pub mod enrolment;
pub mod envelope;
pub mod eve;
pub mod ids;
pub mod image;
pub mod items;
pub mod keys;
pub mod link;
pub mod logs;
pub mod paths;
pub mod registration;
