//! Any fuzz target under libFuzzer. Which one, says the environment variable `SKERRY_FUZZ_TARGET`.
#![no_main]

use std::sync::LazyLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static METER: fuzz::meter::Meter = fuzz::meter::Meter;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("SKERRY_FUZZ_TARGET").unwrap_or_default();
    fuzz::find(&name).unwrap_or_else(|| {
        eprintln!("SKERRY_FUZZ_TARGET must name a fuzz target and is {name:?}");
        std::process::exit(2)
    })
});

fuzz_target!(|data: &[u8]| TARGET.check(data));
