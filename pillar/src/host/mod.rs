//! The hands on the system: [`files`] and folders, the image's [`program`]s, the [`units`] of systemd in which whatever
//! outlives the agent runs, and the firmware's [`event_log`].
//!
//! Nothing here knows what the device should be; reconcilers decide, this does.

pub mod event_log;
pub mod files;
pub mod program;
pub mod units;
