//! What depends on the processor: memory map, CPUID, boot protocol, firmware tables, chipset registers.
//!
//! The rest of the crate sees only what this module re-exports. Another architecture is another folder with the same
//! names.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
