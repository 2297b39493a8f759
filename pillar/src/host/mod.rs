//! The hands on the system: [`files`] and folders, the image's [`program`]s, and the [`units`] of systemd in which
//! whatever outlives the agent runs.
//!
//! Nothing here knows what the device should be; reconcilers decide, this does.

pub mod files;
pub mod program;
pub mod units;
