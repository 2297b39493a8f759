//! Tests of the crate from outside: vectors of other implementations, golden files, round trips and mutations.

mod certs;
mod cipher;
mod envelope;
mod golden;
mod link;
mod logs;
mod registration;
mod support;
