//! Messages of the EVE device API v2, one module a package, generated from `proto/*.proto`.
//!
//! The comments that matter (meaning, units, traps) stand in the `.proto` files and appear on the generated items.
//! Fields keep EVE's names in Rust's spelling. An enum field is an `i32` on the struct, because a peer may send a number
//! that this build does not know; the generated getter (`message.field()`) gives the enum, falling back to its zero.

#![allow(missing_docs, deprecated, clippy::all, clippy::pedantic)]

macro_rules! package {
    ($($(#[$doc:meta])* $name:ident => $file:literal;)*) => {$(
        $(#[$doc])*
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    )*};
}

package! {
    /// Remote attestation and key escrow.
    attest => "org.lfedge.eve.attest.rs";
    /// The signed container. Use [`crate::envelope`] rather than these types.
    auth => "org.lfedge.eve.auth.rs";
    /// Certificates that the two ends show each other.
    certs => "org.lfedge.eve.certs.rs";
    /// Types that several packages share.
    common => "org.lfedge.eve.common.rs";
    /// What a device shall be and run.
    config => "org.lfedge.eve.config.rs";
    /// Network flows of applications.
    flowlog => "org.lfedge.eve.flowlog.rs";
    /// State of memory modules and the like.
    hardwarehealth => "org.lfedge.eve.hardwarehealth.rs";
    /// What a device and the things on it are.
    info => "org.lfedge.eve.info.rs";
    /// Log bundles.
    logs => "org.lfedge.eve.logs.rs";
    /// Figures: counters and gauges.
    metrics => "org.lfedge.eve.metrics.rs";
    /// First contact with an onboarding certificate.
    register => "org.lfedge.eve.register.rs";
    /// How a device learns its id.
    uuid => "org.lfedge.eve.uuid.rs";
}

/// Point in time on the wire: seconds and nanoseconds since the Unix epoch.
pub use prost_types::Timestamp;
