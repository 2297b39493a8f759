//! Disk images without root: what an image is made of, partition tables, FAT volumes, the installer stick.
//!
//! The operator's command line makes sticks with it ([`stick::build_stick`]), the image build describes its output with it
//! ([`parts::Parts`]) and reads out of boot loader and kernel what firmware will measure of them ([`pe`]), and the installer
//! lays out a device's disk with it ([`disk`]). Partition tables ([`gpt`]) and FAT volumes ([`fat`]) are planned in pure
//! functions and written to anything that takes bytes: a file or a block device.

pub mod bundle;
pub mod content;
pub mod digest;
pub mod disk;
mod error;
pub mod fat;
pub mod gpt;
pub mod parts;
pub mod pe;
pub mod stick;
pub mod window;

pub use bundle::Bundle;
pub use error::Error;
pub use parts::Parts;
pub use stick::build_stick;
