//! Time servers: what keeps the clock between the controller's signed times, once there was one.
//!
//! ```text
//!            a signed time was heard, servers are known              the controller had to set the clock
//!   Off ------------------------------------------> Following -----------------------------------> Doubted
//!    ^                                                |   ^                                           |
//!    '---------------- no servers any more -----------'   '-------------- an hour later --------------'
//! ```
//!
//! NTP answers are signed by nobody (RFC 5905 without its extensions), so they come last: the floor and a signed time bound the clock
//! before any server is asked, and a signed time that is more than half a minute off afterwards wins. Then the servers are not asked for
//! an hour, and the trouble is told. systemd-timesyncd does the work; servers are those of the config or, if it names none, those of the
//! uplinks' leases. Nobody else is asked: the image names no server of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::InForce;
use crate::host::program::ProgramError;
use crate::host::units::{self, UnitSpec, Units};
use crate::status::{Status, Subject, Topic};
use crate::uplink::Uplink;

const UNIT: &str = "skerry-time.service";
const PROGRAM: &str = "/usr/lib/systemd/systemd-timesyncd";
/// The user that the image has for it.
const USER: &str = "systemd-timesync";
/// How often it is looked what has changed.
const LOOK: Duration = Duration::from_secs(2);
/// How long servers are not asked that said another time than the controller.
const DOUBT: Duration = Duration::from_secs(3600);
/// How long they may take to answer before it is told: timesyncd goes through all of them, 10 s each.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the program has its files; a directory in tests.
#[derive(Clone, Debug)]
pub struct Files {
    /// The settings that it is given.
    pub settings: PathBuf,
    /// There while the clock goes by a server.
    pub synchronized: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            settings: "/run/systemd/timesyncd.conf.d/10-skerry.conf".into(),
            synchronized: "/run/systemd/timesync/synchronized".into(),
        }
    }
}

/// Why the program that asks could not be started or ended.
#[derive(Debug, Error)]
pub enum TimeServersError {
    /// Its unit could not.
    #[error(transparent)]
    Unit(#[from] ProgramError),
    /// Its settings could not be written.
    #[error("writing the settings of time servers to {path}: {reason}")]
    Settings {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// What is to be seen at a moment.
#[derive(Clone, Debug)]
struct Seen {
    /// Whether a signed time was heard.
    signed: bool,
    /// How often the controller had to set a good clock.
    corrections: u64,
    /// Servers that are to be asked.
    servers: Vec<String>,
    now: Instant,
}

/// Where this stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// No server is asked.
    Off,
    /// These are.
    Following {
        servers: Vec<String>,
        corrections: u64,
        since: Instant,
    },
    /// They said another time than the controller.
    Doubted {
        servers: Vec<String>,
        until: Instant,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Nothing.
    Leave,
    /// Ask the servers of the new state, and no others.
    Ask,
    /// Ask nobody.
    Stop,
}

/// The next state.
fn next(state: &State, seen: &Seen) -> (State, Act) {
    if !seen.signed {
        // What an earlier agent has started goes on: it had heard a signed time.
        return (State::Off, Act::Leave);
    }
    if seen.servers.is_empty() {
        let act = if *state == State::Off {
            Act::Leave
        } else {
            Act::Stop
        };
        return (State::Off, act);
    }
    let follow = || State::Following {
        servers: seen.servers.clone(),
        corrections: seen.corrections,
        since: seen.now,
    };
    match state {
        State::Following {
            servers,
            corrections,
            ..
        } if *servers == seen.servers => {
            if *corrections == seen.corrections {
                return (state.clone(), Act::Leave);
            }
            let doubted = State::Doubted {
                servers: servers.clone(),
                until: seen.now + DOUBT,
            };
            (doubted, Act::Stop)
        }
        State::Doubted { servers, until } if *servers == seen.servers && seen.now < *until => {
            (state.clone(), Act::Leave)
        }
        _ => (follow(), Act::Ask),
    }
}

/// Keeps the clock for as long as the agent lives.
///
/// # Errors
/// [`TimeServersError`]; whoever calls tries again.
pub async fn run(
    files: Files,
    clock: Clock,
    config: watch::Receiver<Arc<InForce>>,
    uplinks: watch::Receiver<Vec<Uplink>>,
    units: Arc<dyn Units>,
    status: Status,
) -> Result<(), TimeServersError> {
    let mut state = State::Off;
    let mut first = true;
    loop {
        if matches!(state, State::Following { .. }) {
            // What NTP says is bounded by the last signed time also while nobody answers.
            clock.hold();
        }
        let seen = Seen {
            signed: clock.has_heard(),
            corrections: clock.corrections(),
            servers: servers(&config.borrow().settings.time_servers, &uplinks.borrow()),
            now: Instant::now(),
        };
        let (new, act) = next(&state, &seen);
        match act {
            // An earlier agent's servers may be nobody's any more.
            Act::Leave if first && seen.signed && new == State::Off => stop(&*units).await?,
            Act::Leave => {}
            Act::Stop => stop(&*units).await?,
            Act::Ask => {
                stop(&*units).await?;
                ask(&files, &*units, &seen.servers).await?;
            }
        }
        first &= !seen.signed;
        state = new;
        tell(&state, &files, &status);
        tokio::time::sleep(LOOK).await;
    }
}

/// The config's servers, or those of the leases.
fn servers(configured: &[String], uplinks: &[Uplink]) -> Vec<String> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let mut servers: Vec<String> = Vec::new();
    for server in uplinks.iter().flat_map(|uplink| &uplink.ntp) {
        let server = server.to_string();
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

fn tell(state: &State, files: &Files, status: &Status) {
    match state {
        State::Off => status.clear(Topic::ClockServers),
        State::Following { servers, since, .. } => {
            if files.synchronized.exists() {
                status.clear(Topic::ClockServers);
                let servers = servers.join(", ");
                status.say(Subject::Clock, &format!("the clock goes by {servers}"));
            } else if since.elapsed() > PATIENCE {
                let message = format!(
                    "no time server answers ({}); the clock goes by the controller's answers",
                    servers.join(", ")
                );
                status.raise(Topic::ClockServers, &message);
            }
        }
        State::Doubted { servers, .. } => {
            let message = format!(
                "the time servers ({}) say another time than the controller's answers; they are not asked for {} minutes",
                servers.join(", "),
                DOUBT.as_secs() / 60
            );
            status.raise(Topic::ClockServers, &message);
        }
    }
}

async fn stop(units: &dyn Units) -> Result<(), ProgramError> {
    match units::kill(units, UNIT).await? {
        units::UnitState::Gone => Ok(()),
        _ => units.forget(UNIT).await,
    }
}

async fn ask(files: &Files, units: &dyn Units, servers: &[String]) -> Result<(), TimeServersError> {
    let failed = |reason: String| TimeServersError::Settings {
        path: files.settings.clone(),
        reason,
    };
    if let Some(folder) = files.settings.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    }
    // It need not outlive a restart.
    durable::write_volatile(&files.settings, settings(servers).as_bytes(), 0o644)
        .map_err(|error| failed(error.to_string()))?;
    let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    units
        .start(UnitSpec {
            name: UNIT.to_owned(),
            description: "Clock by time servers".to_owned(),
            program: PROGRAM.into(),
            args: Vec::new(),
            properties: vec![
                property("User", USER),
                property("AmbientCapabilities", "CAP_SYS_TIME"),
                property("CapabilityBoundingSet", "CAP_SYS_TIME"),
                property("RuntimeDirectory", "systemd/timesync"),
                property("StateDirectory", "systemd/timesync"),
                property("NoNewPrivileges", "yes"),
                property("ProtectSystem", "strict"),
                property("ProtectProc", "invisible"),
                property("PrivateDevices", "yes"),
                property("PrivateTmp", "yes"),
                property("MemoryDenyWriteExecute", "yes"),
                property("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
                property("RestrictNamespaces", "yes"),
                property("SystemCallFilter", "@system-service @clock"),
                property("SystemCallErrorNumber", "EPERM"),
                property("MemoryMax", "16M"),
                property("Restart", "on-failure"),
                property("RestartSec", "5"),
            ],
        })
        .await?;
    Ok(())
}

/// timesyncd.conf(5). An empty list of fallbacks: Debian's are not asked by machines that nobody told so.
fn settings(servers: &[String]) -> String {
    format!("[Time]\nNTP={}\nFallbackNTP=\n", servers.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(signed: bool, corrections: u64, servers: &[&str], now: Instant) -> Seen {
        Seen {
            signed,
            corrections,
            servers: servers.iter().map(|&server| server.to_owned()).collect(),
            now,
        }
    }

    #[test]
    fn nobody_is_asked_before_a_signed_time() {
        let now = Instant::now();
        let (state, act) = next(&State::Off, &seen(false, 0, &["192.0.2.1"], now));
        assert_eq!((&state, act), (&State::Off, Act::Leave));
        let (state, act) = next(&state, &seen(true, 0, &["192.0.2.1"], now));
        assert!(matches!(state, State::Following { .. }));
        assert_eq!(act, Act::Ask);
        let (again, act) = next(&state, &seen(true, 0, &["192.0.2.1"], now));
        assert_eq!((again, act), (state.clone(), Act::Leave));
        let (other, act) = next(&state, &seen(true, 0, &["192.0.2.2"], now));
        assert!(matches!(other, State::Following { .. }));
        assert_eq!(act, Act::Ask);
        assert_eq!(
            next(&state, &seen(true, 0, &[], now)),
            (State::Off, Act::Stop)
        );
    }

    #[test]
    fn servers_that_contradict_the_controller_are_left_alone_for_an_hour() {
        let now = Instant::now();
        let (following, _) = next(&State::Off, &seen(true, 3, &["192.0.2.1"], now));
        let (doubted, act) = next(&following, &seen(true, 4, &["192.0.2.1"], now));
        assert!(matches!(doubted, State::Doubted { .. }));
        assert_eq!(act, Act::Stop);
        let soon = now + DOUBT - Duration::from_secs(1);
        assert_eq!(
            next(&doubted, &seen(true, 5, &["192.0.2.1"], soon)),
            (doubted.clone(), Act::Leave)
        );
        let (state, act) = next(&doubted, &seen(true, 5, &["192.0.2.1"], now + DOUBT));
        assert!(matches!(state, State::Following { .. }));
        assert_eq!(act, Act::Ask);
        // Others are tried at once.
        let (state, act) = next(&doubted, &seen(true, 5, &["192.0.2.9"], soon));
        assert!(matches!(state, State::Following { .. }));
        assert_eq!(act, Act::Ask);
    }

    #[test]
    fn the_configs_servers_come_before_the_networks() {
        let uplink = Uplink {
            ntp: vec!["192.0.2.1".parse().unwrap(), "192.0.2.1".parse().unwrap()],
            ..Uplink::default()
        };
        let uplinks = [uplink.clone(), uplink];
        assert_eq!(servers(&[], &uplinks), ["192.0.2.1"]);
        assert_eq!(
            servers(&["ntp.example.com".to_owned()], &uplinks),
            ["ntp.example.com"]
        );
        assert_eq!(
            settings(&["a".to_owned(), "b".to_owned()]),
            "[Time]\nNTP=a b\nFallbackNTP=\n"
        );
    }
}
