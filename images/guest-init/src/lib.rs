//! PID 1 in a container's microVM: makes of an image, a scratch disk and a spec what a container expects to find, starts
//! its process, and tells the agent how it fares.
//!
//! ```text
//! boot -> root (EROFS + overlay) -> switch root -> mounts, names, network, volumes -> start -> Started
//!  |             |                       |                        |                    |
//!  +-------------+------- failure -------+------------------------+--------------------+--> Failed -> power off
//!
//!                                        process ends  -> Exited -> sync -> power off
//!       Stop{signal, grace}, power button -> signal -> grace passes -> SIGKILL -> Exited -> sync -> power off
//! ```
//!
//! Preparing is a list of steps ([`root`], [`mounts`], [`net`], [`files`]) that runs once, in order, in one thread. From the
//! start of the process on, [`machine`] decides and [`run`] does. The connection to the agent ([`control`]) comes and goes
//! without either of them caring.

pub mod console;
pub mod control;
mod error;
pub mod files;
pub mod machine;
pub mod mounts;
pub mod net;
pub mod process;
pub mod root;
pub mod run;
pub mod spec;

pub use error::Error;
