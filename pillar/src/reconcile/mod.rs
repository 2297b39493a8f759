//! The reconcilers.

pub mod content;
pub mod delay;
pub mod files;
pub mod ground;
pub mod ledger;
pub mod network;
pub mod program;
pub mod units;
pub mod volume;
