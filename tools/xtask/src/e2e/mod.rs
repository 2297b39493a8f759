//! End-to-end tests: each a story of what a user does, on a whole emulated machine with the real image.
//!
//! A test is a function that tells its steps to a [`Story`] and returns an error when the world is not as it should be.
//! It ends with `PASS name seconds` or `FAIL name reason`.

mod attacks;
mod chance;
mod disk;
mod enrolment;
mod faults;
mod hardware;
mod hypervisor;
mod judged;
mod main_job;
mod story;
mod yard;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

pub use story::Story;
pub use yard::Yard;

use crate::files::empty;
use crate::leftovers;
use crate::nesting;
use crate::progress::print;
use crate::site::Built;

/// Where tests keep their things.
const FOLDER: &str = "target/e2e";

/// A test and what it is called.
struct Test {
    name: &'static str,
    about: &'static str,
    /// Runs in CI.
    essential: bool,
    run: Play,
}

/// How a test is played.
#[derive(Clone, Copy)]
enum Play {
    /// On emulated machines of the yard's site.
    Machines(fn(&Story) -> Result<()>),
    /// Without any machine: component tests, by name.
    Components(fn() -> Result<()>),
}

const TESTS: &[Test] = &[
    Test {
        name: "main-job",
        about: "from a USB stick to a running VM and a running container",
        essential: true,
        run: Play::Machines(main_job::run),
    },
    Test {
        name: "hypervisor",
        about: "the monitor alone: every device, pause, clean shutdown, crash, in nested guests",
        essential: true,
        run: Play::Machines(hypervisor::run),
    },
    Test {
        name: "offline-boot",
        about: "controller gone when the device boots: apps start from the checkpoint",
        essential: true,
        run: Play::Machines(faults::offline_boot),
    },
    Test {
        name: "bad-content",
        about: "wrong digest, registry down: clear error, retry, others untouched",
        essential: true,
        run: Play::Machines(faults::bad_content),
    },
    Test {
        name: "crash",
        about: "apps that end by themselves are started again with back-off, and counted",
        essential: true,
        run: Play::Machines(faults::crash),
    },
    Test {
        name: "power-cut-deploy",
        about: "power cut at each stage of enrolling and deploying, and ten times by chance: everything comes back",
        essential: false,
        run: Play::Machines(faults::power_cut),
    },
    Test {
        name: "power-cut-short",
        about: "the short form of power-cut-deploy: four cuts, two of them at moments of chance",
        essential: true,
        run: Play::Machines(faults::power_cut_short),
    },
    Test {
        name: "clock-1970",
        about: "the device's clock stands at 1970",
        essential: false,
        run: Play::Machines(faults::clock_1970),
    },
    Test {
        name: "second-box",
        about: "two boxes from one stick, on at once, have identities of their own",
        essential: false,
        run: Play::Machines(faults::second_box),
    },
    Test {
        name: "zero-touch",
        about: "a stick without a secret: a box that a person lets in, one on a manifest, and boots judged by what the build signed",
        essential: true,
        run: Play::Machines(enrolment::zero_touch),
    },
    Test {
        name: "eve-onboarding",
        about: "a stick of EVE's way alone: its box registers with the onboarding key",
        essential: false,
        run: Play::Machines(enrolment::eve_onboarding),
    },
    Test {
        name: "enrol-attacks",
        about: "attacks on enrolment and faults in it, against a real TPM emulator; `--list` names them",
        essential: false,
        run: Play::Components(attacks::run),
    },
    Test {
        name: "spoilt-root",
        about: "a root file system with turned bits does not start",
        essential: true,
        run: Play::Machines(hardware::spoilt_root),
    },
    Test {
        name: "raw-disk",
        about: "a Debian VM from a raw disk",
        essential: false,
        run: Play::Machines(main_job::raw_disk),
    },
    Test {
        name: "cable",
        about: "the cable is pulled and plugged again: apps go on, the device is back",
        essential: false,
        run: Play::Machines(hardware::cable),
    },
    Test {
        name: "debug-variant",
        about: "the debug variant has a shell on the serial line; how apps are confined, seen from inside",
        essential: false,
        run: Play::Machines(hardware::debug_variant),
    },
];

/// How many tests passed and failed.
#[derive(Default)]
pub struct Outcome {
    pub passed: usize,
    pub failed: usize,
}

/// Names every test, one a line; with `enrol-attacks`, the attacks.
pub fn list(names: &[String]) {
    if names == ["enrol-attacks"] {
        return attacks::list();
    }
    for test in TESTS {
        print(&format!(
            "{:<20} {}{}\n",
            test.name,
            test.about,
            if test.essential { " (essential)" } else { "" }
        ));
    }
}

/// Every test: its name, what it shows, whether `cargo xtask test` runs it.
pub fn catalogue() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    TESTS
        .iter()
        .map(|test| (test.name, test.about, test.essential))
}

/// Runs tests by name; `all` is every one.
pub fn run(names: &[String]) -> Result<Outcome> {
    let mut chosen = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => chosen.extend(TESTS),
            name => match TESTS.iter().find(|test| test.name == name) {
                Some(test) => chosen.push(test),
                None => bail!(
                    "there is no end-to-end test {name:?}; `cargo xtask e2e --list` names them"
                ),
            },
        }
    }
    run_tests(&chosen)
}

/// Runs the tests that CI runs.
pub fn run_essential() -> Result<Outcome> {
    run_tests(
        &TESTS
            .iter()
            .filter(|test| test.essential)
            .collect::<Vec<_>>(),
    )
}

fn run_tests(tests: &[&Test]) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut machines = Vec::new();
    for test in tests {
        match test.run {
            Play::Machines(run) => machines.push((*test, run)),
            Play::Components(run) => {
                println!("==== {}: {}", test.name, test.about);
                let start = Instant::now();
                match run() {
                    Ok(()) => {
                        println!("PASS {} {:.1}", test.name, start.elapsed().as_secs_f64());
                        outcome.passed += 1;
                    }
                    Err(error) => {
                        tell_failure(test, &error);
                        outcome.failed += 1;
                    }
                }
            }
        }
    }
    if machines.is_empty() {
        return Ok(outcome);
    }
    let set_up = || -> Result<(PathBuf, Yard)> {
        leftovers::end(FOLDER)?;
        leftovers::end_when_interrupted(FOLDER)?;
        let built = Built::make()?;
        let parent = empty(Path::new(FOLDER))?;
        let accelerator = nesting::prove(&built.parts, &parent.join("nesting"))?;
        println!("guests run in the emulated PC; accelerator: {accelerator}");
        let yard = Yard::open(&built, &parent.join("yard"))?;
        Ok((parent, yard))
    };
    let (parent, yard) = match set_up() {
        Ok(made) => made,
        Err(error) => {
            let error = error.context("setting up");
            for (test, _) in machines {
                tell_failure(test, &error);
                outcome.failed += 1;
            }
            return Ok(outcome);
        }
    };
    let mut spoilt: Option<String> = None;
    for (test, run) in machines {
        println!("==== {}: {}", test.name, test.about);
        let played = match &spoilt {
            Some(reason) => Err(anyhow!("not run: {reason}")),
            None => play(test, run, &yard, &parent),
        };
        match played {
            Ok(seconds) => {
                println!("PASS {} {seconds:.1}", test.name);
                outcome.passed += 1;
            }
            Err(error) => {
                leftovers::wait_if_interrupted();
                tell_failure(test, &error);
                outcome.failed += 1;
                if spoilt.is_none()
                    && let Err(error) = yard.recover()
                {
                    spoilt = Some(format!(
                        "the site could not be put in order after {}: {error:#}",
                        test.name
                    ));
                }
            }
        }
    }
    Ok(outcome)
}

/// Runs one test; gives how many seconds it took. One that panics has failed like any other, and the rest still run.
fn play(test: &Test, run: fn(&Story) -> Result<()>, yard: &Yard, parent: &Path) -> Result<f64> {
    let story = Story::begin(test.name, yard, parent)?;
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&story)))
        .unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(anyhow!("it panicked: {}", text.unwrap_or("without words")))
        });
    if played.is_err() {
        println!("     what it left is in {}", story.dir().display());
    }
    played?;
    let seconds = story.seconds();
    story.clean_up();
    Ok(seconds)
}

fn tell_failure(test: &Test, error: &anyhow::Error) {
    println!(
        "FAIL {} {}",
        test.name,
        format!("{error:#}").replace('\n', " | ")
    );
}
