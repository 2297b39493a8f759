//! Tests of the crate from outside: vectors of other implementations, golden files, round trips and mutations.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, too"
)]

mod authority;
mod certs;
mod cipher;
mod envelope;
mod golden;
mod link;
mod logs;
mod registration;
mod support;
