//! `skerry version`.

use crate::failure::Failure;
use crate::terminal::say;

pub fn run() -> Result<(), Failure> {
    say(format!("skerry {}", env!("CARGO_PKG_VERSION")))
}
