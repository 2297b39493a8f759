//! Benches: figures against budgets, as a table and as JSON.
//!
//! A figure is a size, an amount of memory, or a ratio against a peer that ran in the same run; a slow day moves both sides
//! of a ratio alike.

mod boot;
mod footprint;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured, with its unit.
    pub name: String,
    /// The figure.
    pub measured: f64,
    /// At most this; none where the figure stands for itself.
    pub budget: Option<f64>,
}

impl Row {
    pub fn new(name: impl Into<String>, measured: f64, budget: impl Into<Option<f64>>) -> Row {
        Row {
            name: name.into(),
            measured,
            budget: budget.into(),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.budget {
            Some(budget) if self.measured > budget => "over",
            _ => "ok",
        }
    }
}

struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Path) -> Result<Vec<Row>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "footprint",
        about: "sizes of images; memory of the box, the agent and a monitor",
        run: footprint::run,
    },
    Bench {
        name: "boot",
        about: "power-on to enrolled, and against a stock Debian",
        run: boot::run,
    },
];

/// Names every bench, one a line.
pub fn list() {
    for bench in BENCHES {
        println!("{:<12} {}", bench.name, bench.about);
    }
}

/// Every bench: its name and what it measures.
pub fn catalogue() -> impl Iterator<Item = (&'static str, &'static str)> {
    BENCHES.iter().map(|bench| (bench.name, bench.about))
}

/// Runs benches by name (`all` is every one); gives whether all figures are within their budgets.
pub fn run(names: &[String], json: Option<&PathBuf>) -> Result<bool> {
    let mut rows = Vec::new();
    for name in names {
        let chosen: Vec<_> = BENCHES
            .iter()
            .filter(|bench| name == "all" || bench.name == name)
            .collect();
        if chosen.is_empty() {
            bail!("there is no bench {name:?}; `cargo xtask bench --list` names them");
        }
        for bench in chosen {
            let dir = Path::new("target/bench").join(bench.name);
            rows.extend((bench.run)(&dir).with_context(|| format!("bench {}", bench.name))?);
        }
    }
    println!(
        "{:<58} {:>10} {:>10}  verdict",
        "figure", "measured", "budget"
    );
    for row in &rows {
        let budget = row
            .budget
            .map_or_else(|| "-".to_owned(), |budget| format!("{budget:.2}"));
        println!(
            "{:<58} {:>10.2} {:>10}  {}",
            row.name,
            row.measured,
            budget,
            row.verdict()
        );
    }
    if let Some(path) = json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "name": row.name, "measured": row.measured, "budget": row.budget, "verdict": row.verdict(),
                })
            })
            .collect();
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(rows.iter().all(|row| row.verdict() == "ok"))
}
