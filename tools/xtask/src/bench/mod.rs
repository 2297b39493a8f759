//! Benches: figures against budgets, as a table and as JSON.
//!
//! A figure is a size, an amount of memory, or a ratio against a peer that ran in the same run; a slow day moves both sides
//! of a ratio alike.

mod boot;
mod enrol;
mod footprint;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::files::empty;
use crate::leftovers;
use crate::nesting;
use crate::progress::print;
use crate::site::Built;

/// Where benches keep their things.
const FOLDER: &str = "target/bench";

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured, with its unit.
    pub name: String,
    /// The figure.
    pub measured: f64,
    /// What it must keep to. A time has the peer's time in the same run as its budget, so that a slow day moves both.
    pub budget: f64,
    /// On which side of the budget it must be.
    pub bound: Bound,
}

/// On which side of its budget a figure must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    AtMost,
    AtLeast,
}

impl Row {
    /// A figure that is good when it is small.
    pub fn new(name: impl Into<String>, measured: f64, budget: f64) -> Row {
        Row {
            name: name.into(),
            measured,
            budget,
            bound: Bound::AtMost,
        }
    }

    /// A figure that is good when it is large.
    pub fn at_least(name: impl Into<String>, measured: f64, budget: f64) -> Row {
        Row {
            bound: Bound::AtLeast,
            ..Row::new(name, measured, budget)
        }
    }

    fn verdict(&self) -> &'static str {
        match self.bound {
            Bound::AtMost if self.measured > self.budget => "over",
            // On the wrong side of its budget, as much as the other.
            Bound::AtLeast if self.measured < self.budget => "over",
            _ => "ok",
        }
    }
}

struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Built, &Path) -> Result<Vec<Row>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "footprint",
        about: "sizes of images; memory of the box, the agent and a monitor",
        run: footprint::run,
    },
    Bench {
        name: "boot",
        about: "power-on to enrolled, against the demo's minimal Debian 12 to its login",
        run: boot::run,
    },
    Bench {
        name: "enrol",
        about: "zero-touch enrolments and quotes a second, memory for each, and the time of one box",
        run: enrol::run,
    },
];

/// Names every bench, one a line.
pub fn list() {
    for bench in BENCHES {
        print(&format!("{:<12} {}\n", bench.name, bench.about));
    }
}

/// Every bench: its name and what it measures.
pub fn catalogue() -> impl Iterator<Item = (&'static str, &'static str)> {
    BENCHES.iter().map(|bench| (bench.name, bench.about))
}

/// Runs benches by name (`all` is every one); gives whether all figures are within their budgets.
pub fn run(names: &[String], json: Option<&PathBuf>) -> Result<bool> {
    let mut chosen = Vec::new();
    for name in names {
        let named: Vec<_> = BENCHES
            .iter()
            .filter(|bench| name == "all" || bench.name == name)
            .collect();
        if named.is_empty() {
            bail!("there is no bench {name:?}; `cargo xtask bench --list` names them");
        }
        chosen.extend(named);
    }
    leftovers::end(FOLDER)?;
    leftovers::end_when_interrupted(FOLDER)?;
    let built = Built::make()?;
    nesting::prove_once(&built.parts, &Path::new(FOLDER).join("nesting"))?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for bench in chosen {
        // What an earlier run left was made for servers that are gone.
        let outcome =
            empty(&Path::new(FOLDER).join(bench.name)).and_then(|dir| (bench.run)(&built, &dir));
        match outcome {
            Ok(measured) => rows.extend(measured),
            Err(error) => {
                leftovers::wait_if_interrupted();
                failed.push(format!("{}: {error:#}", bench.name));
            }
        }
    }
    println!(
        "{:<58} {:>10} {:>10}  verdict",
        "figure", "measured", "budget"
    );
    for row in &rows {
        println!(
            "{:<58} {:>10.2} {:>10.2}  {}",
            row.name,
            row.measured,
            row.budget,
            row.verdict()
        );
    }
    if let Some(path) = json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "name": row.name, "measured": row.measured, "budget": row.budget, "bound": row.bound, "verdict": row.verdict(),
                })
            })
            .collect();
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join("; "));
    }
    Ok(rows.iter().all(|row| row.verdict() == "ok"))
}
