//! The agent on the device: what it should be, what it is, and the next step.
//!
//! ```text
//! config --> desired --> reconcilers --> observed --> report
//!            |            network, content, volume, workload
//!            checkpoint (last good config, so that a device starts without its controller)
//! ```
//!
//! [`domain`] holds the types that travel along this road; wire messages are translated into them once, at the edge.

pub mod agent;
pub mod attest;
pub mod backoff;
pub mod bless;
pub mod bundle;
pub mod chain;
pub mod clock;
pub mod config;
pub mod conn;
pub mod console;
pub mod context;
pub mod domain;
pub mod durable;
pub mod enrol;
pub mod follow;
pub mod host;
pub mod link;
pub mod logs;
pub mod notify;
pub mod paths;
pub mod peer;
pub mod power;
pub mod reconcile;
pub mod report;
pub mod status;
pub mod supervise;
pub mod tls;
pub mod uplink;
pub mod websocket;
