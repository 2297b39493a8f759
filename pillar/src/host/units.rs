//! Where programs that outlive the agent run: transient units of systemd.
//!
//! A unit goes on when the agent is restarted or updated, and is found again by its name. The agent speaks to systemd with
//! the programs `systemd-run` and `systemctl`; as root they use the manager's private socket, so that no D-Bus daemon is
//! needed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use protocol::ids::AppId;

use super::program::{Program, ProgramError};

/// Begin of the names of the apps' units.
pub const APP_UNITS: &str = "skerry-app-";

/// Begin of the names of the units that serve DHCP and DNS, one a bridge.
pub const NET_UNITS: &str = "skerry-net-";

/// The unit in which an app runs.
#[must_use]
pub fn app_unit(app: AppId) -> String {
    format!("{APP_UNITS}{app}.service")
}

/// The app whose unit this is.
#[must_use]
pub fn app_of(unit: &str) -> Option<AppId> {
    let id = unit.strip_prefix(APP_UNITS)?.strip_suffix(".service")?;
    id.parse().ok()
}

/// The unit that serves a bridge.
#[must_use]
pub fn net_unit(bridge: &str) -> String {
    format!("{NET_UNITS}{bridge}.service")
}

/// Kills all of a unit's processes and waits until they are gone, five seconds at most. Gives what became of it.
///
/// # Errors
/// When it cannot be killed or looked at.
pub async fn kill(units: &dyn Units, name: &str) -> Result<UnitState, ProgramError> {
    let state = units.look(name).await?;
    if !matches!(state, UnitState::Running { .. }) {
        return Ok(state);
    }
    units.signal(name, libc::SIGKILL, true).await?;
    for _ in 0..50 {
        match units.look(name).await? {
            UnitState::Running { .. } => tokio::time::sleep(Duration::from_millis(100)).await,
            state => return Ok(state),
        }
    }
    units.look(name).await
}

/// A program that is to run as a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSpec {
    /// Name with suffix, `skerry-app-....service`.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// The program, absolute.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Properties of the unit (systemd.exec, systemd.resource-control), in order.
    pub properties: Vec<(String, String)>,
}

/// What became of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// There is none, or it ended well and was forgotten.
    Gone,
    /// It runs.
    Running {
        /// Its main process; 0 if that has ended and others are still there.
        pid: u32,
    },
    /// It ended and is remembered until it is forgotten.
    Ended {
        /// How, in words.
        how: String,
    },
}

/// Starts, finds and ends units.
pub trait Units: Send + Sync + 'static {
    /// Starts a unit; returns when its program runs.
    fn start(&self, unit: UnitSpec) -> BoxFuture<'_, Result<(), ProgramError>>;
    /// Looks what became of a unit.
    fn look<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<UnitState, ProgramError>>;
    /// Sends a signal: to the main process, or to all of the unit's processes.
    fn signal<'a>(
        &'a self,
        name: &'a str,
        signal: i32,
        all: bool,
    ) -> BoxFuture<'a, Result<(), ProgramError>>;
    /// Forgets a unit that ended, so that its name can be used again.
    fn forget<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ProgramError>>;
    /// Names of the units that begin so, running or remembered.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, ProgramError>>;
}

/// The real thing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Systemd;

impl Units for Systemd {
    fn start(&self, unit: UnitSpec) -> BoxFuture<'_, Result<(), ProgramError>> {
        Box::pin(async move {
            Program::new("systemd-run")
                .args(run_arguments(&unit))
                .run()
                .await?;
            Ok(())
        })
    }

    fn look<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<UnitState, ProgramError>> {
        Box::pin(async move {
            let said = Program::new("systemctl")
                .args([
                    "show",
                    "--property=LoadState,ActiveState,MainPID,Result,ExecMainCode,ExecMainStatus",
                    "--",
                ])
                .arg(name)
                .run()
                .await?;
            Ok(read_show(&said))
        })
    }

    fn signal<'a>(
        &'a self,
        name: &'a str,
        signal: i32,
        all: bool,
    ) -> BoxFuture<'a, Result<(), ProgramError>> {
        Box::pin(async move {
            let whom = if all {
                "--kill-whom=all"
            } else {
                "--kill-whom=main"
            };
            let signal = format!("--signal={signal}");
            Program::new("systemctl")
                .args(["kill", whom, &signal, "--", name])
                .run()
                .await?;
            Ok(())
        })
    }

    fn forget<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ProgramError>> {
        Box::pin(async move {
            match Program::new("systemctl")
                .args(["reset-failed", "--", name])
                .run()
                .await
            {
                // It was forgotten already.
                Err(ProgramError::Failed { message, .. }) if message.contains("not loaded") => {
                    Ok(())
                }
                result => result.map(drop),
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, ProgramError>> {
        Box::pin(async move {
            let pattern = format!("{prefix}*");
            let said = Program::new("systemctl")
                .args([
                    "list-units",
                    "--all",
                    "--plain",
                    "--no-legend",
                    "--no-pager",
                    "--full",
                    "--",
                    &pattern,
                ])
                .run()
                .await?;
            Ok(said
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .filter(|name| name.starts_with(prefix))
                .map(str::to_owned)
                .collect())
        })
    }
}

/// The arguments of `systemd-run` for a unit.
fn run_arguments(unit: &UnitSpec) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec![
        // `exec`: the call waits until the program was really started, and fails if it cannot be.
        "--service-type=exec".into(),
        "--quiet".into(),
        "--no-ask-password".into(),
        format!("--unit={}", unit.name).into(),
        format!("--description={}", unit.description).into(),
    ];
    for (name, value) in &unit.properties {
        args.push("--property".into());
        args.push(format!("{name}={value}").into());
    }
    args.push("--".into());
    args.push(unit.program.clone().into());
    args.extend(unit.args.iter().cloned());
    args
}

/// Reads what `systemctl show` says.
fn read_show(text: &str) -> UnitState {
    let get = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    let pid: u32 = get("MainPID").parse().unwrap_or(0);
    match get("ActiveState") {
        "active" | "activating" | "reloading" | "deactivating" => UnitState::Running { pid },
        "failed" => {
            // CLD_EXITED is 1, CLD_KILLED 2, CLD_DUMPED 3 (siginfo.h).
            let status = get("ExecMainStatus");
            let how = match get("ExecMainCode") {
                "1" => format!("it ended with status {status}"),
                "2" | "3" => format!("signal {status} ended it"),
                _ => "it could not be started".to_owned(),
            };
            let how = match get("Result") {
                "oom-kill" => format!("{how}: it ran out of the memory it may use"),
                _ => how,
            };
            UnitState::Ended { how }
        }
        _ => UnitState::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_becomes_arguments() {
        let unit = UnitSpec {
            name: "x.service".into(),
            description: "an x".into(),
            program: "/bin/x".into(),
            args: vec!["--flag".into()],
            properties: vec![("MemoryMax".into(), "1M".into())],
        };
        let args: Vec<String> = run_arguments(&unit)
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect();
        assert_eq!(
            args,
            [
                "--service-type=exec",
                "--quiet",
                "--no-ask-password",
                "--unit=x.service",
                "--description=an x",
                "--property",
                "MemoryMax=1M",
                "--",
                "/bin/x",
                "--flag"
            ]
        );
    }

    #[test]
    fn states_are_read() {
        let show = |active: &str, pid: u32, result: &str, code: u32, status: u32| {
            read_show(&format!(
                "LoadState=loaded\nActiveState={active}\nMainPID={pid}\nResult={result}\nExecMainCode={code}\nExecMainStatus={status}\n"
            ))
        };
        let ended = |how: &str| UnitState::Ended { how: how.into() };
        assert_eq!(
            show("active", 42, "success", 0, 0),
            UnitState::Running { pid: 42 }
        );
        assert_eq!(
            show("deactivating", 0, "success", 1, 0),
            UnitState::Running { pid: 0 }
        );
        assert_eq!(show("inactive", 0, "success", 1, 0), UnitState::Gone);
        assert_eq!(
            show("failed", 0, "exit-code", 1, 3),
            ended("it ended with status 3")
        );
        assert_eq!(
            show("failed", 0, "signal", 2, 9),
            ended("signal 9 ended it")
        );
        assert_eq!(
            show("failed", 0, "oom-kill", 2, 9),
            ended("signal 9 ended it: it ran out of the memory it may use")
        );
        assert_eq!(read_show(""), UnitState::Gone);
    }
}
