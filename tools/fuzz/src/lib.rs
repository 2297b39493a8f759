//! Fuzz targets: whatever comes from outside is refused or understood, and never brings a program of ours down.
//!
//! ```text
//! seeds --> tests/targets.rs (every test run: seeds, their prefixes, some thousand changes of them)
//!    '----> libfuzzer/ (`cargo xtask fuzz NAME`: as long as one likes, led by coverage)
//!                 |
//!                 '--> Target::run: parse, then check what must hold of what was parsed
//! ```
//!
//! A target fails by a panic. What it checks beyond that stands in its `about`: what was understood encodes to itself, what
//! was accepted keeps its bounds, what one side admits the other can do. That no input makes a program take memory out of
//! proportion is checked for all of them by [`meter`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a target fails by a panic; it runs in no program that ships"
)]

use std::fmt;

mod controller;
mod enrolment;
mod feed;
mod hypervisor;
mod images;
pub mod meter;
mod onboarding;
mod operator;
mod pillar;
mod policy;
mod protocol;
pub mod seal;

/// One parser, or a few that read the same bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is fed to it and what is checked.
    pub about: &'static str,
    /// Feeds it one input. Panics if something does not hold.
    pub run: fn(&[u8]),
    /// Small inputs that it accepts.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All targets, by the crate whose parsers they feed.
pub const TARGETS: &[&[Target]] = &[
    protocol::TARGETS,
    onboarding::TARGETS,
    enrolment::TARGETS,
    seal::TARGETS,
    hypervisor::TARGETS,
    policy::TARGETS,
    pillar::TARGETS,
    controller::TARGETS,
    operator::TARGETS,
    images::TARGETS,
];

/// All targets, one after the other.
pub fn targets() -> impl Iterator<Item = &'static Target> {
    TARGETS.iter().copied().flatten()
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    targets().find(|target| target.name == name)
}

impl Target {
    /// Feeds it one input, and checks that no single allocation was out of proportion, if the program has [`meter::Meter`]
    /// as its allocator.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check(&self, input: &[u8]) {
        meter::reset();
        (self.run)(input);
        let largest = meter::largest();
        assert!(
            largest <= meter::LIMIT,
            "an input of {} bytes made the target take {largest} bytes at once",
            input.len()
        );
    }
}
