//! What runs before systemd: the initramfs of the host image (`initrd`) and the installer of the stick (`installer`).
//!
//! Both are PID 1 of an initramfs that holds nothing but the program, its kernel modules and the list of them. They share
//! the first steps ([`early`], [`modules`]), the way of speaking to people ([`console`]) and the way of failing
//! ([`early::give_up`]): in words, never by a panic without them.

pub mod block;
pub mod cmdline;
pub mod console;
pub mod dm;
pub mod early;
mod error;
pub mod install;
pub mod modules;
pub mod root;
pub mod switch;
pub mod uevent;
pub mod verity;

pub use error::Error;
