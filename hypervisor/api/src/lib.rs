//! The contract between a virtual machine monitor (`skerry-vmm`) and whoever starts it.
//!
//! Two halves: [`config`] is the JSON file that describes one machine before it starts; [`control`] is what is said over
//! the monitor's unix socket while it runs, and [`report`] is the file of last words that it leaves behind. [`mac`] reads and
//! writes hardware addresses for both ends. The crate
//! holds data types and one small blocking client, nothing that touches KVM: the agent links it without linking a monitor.

pub mod config;
pub mod control;
pub mod mac;
pub mod report;
