//! The agent on the device: what it should be, what it is, and the next step.
//!
//! ```text
//! config --> desired --> reconcilers --> observed --> report
//!            |            network, content, volume, workload
//!            checkpoint (last good config, so that a device starts without its controller)
//! ```
//!
//! Wire messages are translated into the agent's own types once, at the edge. A module knows those of the rows above its own,
//! and of its own row where the last column says so; nobody knows one further down.
//!
//! | row | module | what for | knows |
//! |---|---|---|---|
//! | ground | [`domain`] | the types that travel along this road: what is wanted, what is | |
//! | | [`paths`] | where things lie on the device | |
//! | | [`backoff`], [`chain`] | delays between tries; errors with all their sources | |
//! | | [`generations`] | small files in two generations, checked when they are read | |
//! | | [`host`] | the hands on the system: files, programs, systemd units | |
//! | | [`peer`], [`notify`] | sockets of those who are not trusted; word to systemd | |
//! | senses | [`status`] | what the person at the box is told, and the board of troubles | |
//! | | [`uplink`] | which interfaces lead out | `status` |
//! | | [`clock`] | what time it is, and whether that is believed | `status` |
//! | | [`power`] | the power button | `status` |
//! | | [`supervise`] | keeps tasks going | `status` |
//! | | [`tls`] | which roots and which time TLS goes by | `clock` |
//! | controller | [`bundle`] | which controller, whom to trust | |
//! | | [`conn`] | signed requests and answers | `bundle` |
//! | | [`grant`] | what zero-touch enrolment leaves on the disk | |
//! | | [`refusal`] | that the controller refuses what was booted, kept over power cuts | `status` |
//! | | [`websocket`] | WebSockets over the same TLS | `conn` |
//! | | [`config`] | configs: checked, kept, translated | `conn` |
//! | reconcilers | [`reconcile`] | makes the device what it should be; knows no controller | |
//! | tasks | [`context`] | what the tasks share | |
//! | | [`enrol`], [`attest`] | how the device comes by its id, in the ways that its image names, and proves what it booted | `context` |
//! | | [`allowance`] | what of a config may run while the boot is refused | `context` |
//! | | [`follow`] | asks for the config and puts it in force | `context` |
//! | | [`console`], [`link`] | consoles, and the push channel that opens them | `context`; link knows console |
//! | | [`report`], [`logs`] | info, metrics and logs to the controller | `context` |
//! | | [`bless`] | a boot that works counts as good | `context` |
//! | all | [`agent`] | starts all of them, from start to end | |
//!
//! The reconcilers know nothing of the tasks and these nothing of them: wishes, states and troubles pass between them as values
//! of [`domain`] in channels that the program (`main.rs`) lays.

pub mod agent;
pub mod allowance;
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
pub mod enrol;
pub mod follow;
pub mod generations;
pub mod grant;
pub mod host;
pub mod link;
pub mod logs;
pub mod notify;
pub mod paths;
pub mod peer;
pub mod power;
pub mod reconcile;
pub mod refusal;
pub mod report;
pub mod status;
pub mod supervise;
pub mod time_servers;
pub mod tls;
pub mod uplink;
pub mod websocket;
