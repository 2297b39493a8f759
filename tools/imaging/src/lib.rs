//! Disk images without root: parts, bundle, GPT, FAT, installer stick.

pub mod digest;
pub mod durable;
mod error;
pub mod parts;

pub use error::Error;
