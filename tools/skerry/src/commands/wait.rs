//! `skerry wait`: until an object is in a given state.
//!
//! It asks twice a second rather than watching, so that it survives a controller that restarts meanwhile: while there is
//! time left, a controller that cannot be reached is only not an answer yet.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::cli::Wait;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::kinds::{Kind, Selection, select};
use crate::output::view::View;
use crate::terminal::say;

/// Time between two questions.
const INTERVAL: Duration = Duration::from_millis(500);

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// A condition has a status.
    Condition {
        /// Its type.
        kind: String,
        /// The status.
        status: String,
    },
    /// The phase is this one.
    Phase(String),
    /// The object is gone.
    Delete,
}

impl Goal {
    /// Reads `condition=TYPE`, `condition=TYPE=STATUS`, `phase=PHASE` or `delete`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, '=');
        match (
            parts.next(),
            parts.next().filter(|part| !part.is_empty()),
            parts.next(),
        ) {
            (Some("delete"), None, None) if text == "delete" => Ok(Self::Delete),
            (Some("phase"), Some(phase), None) => Ok(Self::Phase(phase.to_owned())),
            (Some("condition"), Some(kind), status) => Ok(Self::Condition {
                kind: kind.to_owned(),
                status: status.unwrap_or("True").to_owned(),
            }),
            _ => Err(format!(
                "`{text}`: write condition=TYPE, condition=TYPE=False, phase=PHASE or delete"
            )),
        }
    }

    /// Whether the object, which may be absent, is there. Words are compared without regard to case.
    fn met(&self, object: Option<&View>) -> bool {
        match (self, object) {
            (Self::Delete, object) => object.is_none(),
            (_, None) => false,
            (Self::Phase(phase), Some(object)) => object.phase.eq_ignore_ascii_case(phase),
            (Self::Condition { kind, status }, Some(object)) => {
                object.conditions.iter().any(|condition| {
                    condition.kind.eq_ignore_ascii_case(kind)
                        && condition.status.to_string().eq_ignore_ascii_case(status)
                })
            }
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Condition { kind, status } => write!(f, "condition {kind} is {status}"),
            Self::Phase(phase) => write!(f, "phase is {phase}"),
            Self::Delete => f.write_str("it is deleted"),
        }
    }
}

pub fn run(args: Wait, context: Option<&str>) -> Result<(), Failure> {
    let selections = select(&args.what)?;
    if let Some(Selection { kind, .. }) = selections
        .iter()
        .find(|selection| selection.names.is_empty())
    {
        return Err(Failure::usage(format!(
            "which {}? Write its name",
            kind.singular()
        )));
    }
    let client = super::client(context)?;
    // Bounded where the option is read, so that there is such an instant.
    let deadline = Instant::now() + args.timeout;
    crate::runtime(async {
        for Selection { kind, names } in &selections {
            for name in names {
                wait(&client, kind, name, &args, deadline).await?;
                say(format!("{}/{name}: {}", kind.singular(), args.goal))?;
            }
        }
        Ok(())
    })
}

async fn wait(
    client: &Client,
    kind: &Kind,
    name: &str,
    args: &Wait,
    deadline: Instant,
) -> Result<(), Failure> {
    let what = format!("wait for {} {name}", kind.singular());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let seen =
            match tokio::time::timeout(left.max(INTERVAL), client.find(&kind.path(name), &what))
                .await
            {
                Ok(Ok(object)) => {
                    let object = object
                        .map(|object| kind.view(&object, Timestamp::now()))
                        .transpose()?;
                    if args.goal.met(object.as_ref()) {
                        return Ok(());
                    }
                    object
                        .as_ref()
                        .map_or_else(|| "it does not exist".to_owned(), standing)
                }
                Ok(Err(failure)) if matches!(failure.exit(), Exit::Refused | Exit::Usage) => {
                    return Err(failure);
                }
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => "the controller gave no answer".to_owned(),
            };
        if Instant::now() + INTERVAL >= deadline {
            let seconds = args.timeout.as_secs_f64();
            return Err(Failure::timed_out(format!(
                "{what} until {}: not within {seconds} s; last: {seen}",
                args.goal
            )));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Where an object stands, in a few words.
fn standing(object: &View) -> String {
    let mut parts = Vec::new();
    if !object.phase.is_empty() {
        parts.push(format!("phase {}", object.phase));
    }
    for condition in &object.conditions {
        parts.push(format!(
            "{} {} ({})",
            condition.kind, condition.status, condition.reason
        ));
    }
    if !object.message.is_empty() {
        parts.push(object.message.clone());
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use operator_api::{Condition, ConditionStatus};

    use super::*;

    #[test]
    fn goals_are_read() {
        let condition = |kind: &str, status: &str| Goal::Condition {
            kind: kind.into(),
            status: status.into(),
        };
        assert_eq!(
            Goal::parse("condition=Ready"),
            Ok(condition("Ready", "True"))
        );
        assert_eq!(
            Goal::parse("condition=Ready=False"),
            Ok(condition("Ready", "False"))
        );
        assert_eq!(
            Goal::parse("phase=Running"),
            Ok(Goal::Phase("Running".into()))
        );
        assert_eq!(Goal::parse("delete"), Ok(Goal::Delete));
        for bad in [
            "",
            "phase",
            "phase=",
            "condition=",
            "delete=x",
            "delete=",
            "ready",
            "phase=a=b",
        ] {
            assert!(Goal::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn goals_are_met_or_not() {
        let app = View {
            cells: Vec::new(),
            phase: "Running".to_owned(),
            message: "disk full".to_owned(),
            conditions: vec![Condition {
                kind: "Ready".to_owned(),
                status: ConditionStatus::False,
                reason: "Starting".to_owned(),
                message: String::new(),
                last_transition_time: Timestamp::UNIX_EPOCH,
            }],
        };
        for (goal, now, gone) in [
            ("phase=running", true, false),
            ("phase=Failed", false, false),
            ("condition=Ready=False", true, false),
            ("condition=Ready", false, false),
            ("condition=Other", false, false),
            ("delete", false, true),
        ] {
            let goal = Goal::parse(goal).unwrap();
            assert_eq!(
                (goal.met(Some(&app)), goal.met(None)),
                (now, gone),
                "{goal}"
            );
        }
        assert_eq!(
            standing(&app),
            "phase Running, Ready False (Starting), disk full"
        );
    }
}
