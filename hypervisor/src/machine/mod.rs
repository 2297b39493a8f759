//! Builds a machine from its description, runs it to its end, and leaves its disks in order.

mod build;
mod signals;
mod vcpu;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use hypervisor_api::config::VmConfig;
use hypervisor_api::report::LastWords;

use crate::console::Backend;
use crate::event_loop::EventLoop;
use crate::jail;
use crate::lifecycle::{EndOnPanic, Lifecycle};
use crate::sync::lock;
use crate::virtio::block::Block;
use crate::virtio::transport::VirtioPci;

pub use build::BuildError;

/// Stack of each thread in bytes; only what is used of it takes memory.
const STACK: usize = 256 << 10;

/// Runs the machine that `config` describes until it ends, and says why it ended. `process_start` is what its boot
/// time is counted from.
pub fn run(config: &VmConfig, process_start: Instant) -> LastWords {
    match try_run(config, process_start) {
        Ok(words) => words,
        Err(error) => LastWords::Failed {
            message: error.to_string(),
        },
    }
}

/// What has been built and must be looked after until the end.
struct Parts {
    lifecycle: Arc<Lifecycle>,
    main_loop: EventLoop,
    disk_loop: EventLoop,
    disks: Vec<Arc<Mutex<VirtioPci<Block>>>>,
    consoles: Vec<Arc<Mutex<Backend>>>,
    vcpus: Vec<vcpu::Vcpu>,
}

fn try_run(config: &VmConfig, process_start: Instant) -> Result<LastWords, BuildError> {
    let lifecycle =
        Arc::new(Lifecycle::new(process_start).map_err(BuildError::system("setting up signals"))?);
    let Parts {
        lifecycle,
        mut main_loop,
        mut disk_loop,
        disks,
        consoles,
        vcpus,
    } = build::build(config, lifecycle)?;

    jail::no_new_privileges().map_err(BuildError::system("giving up new privileges"))?;
    if !disk_loop.is_empty() {
        let guard = EndOnPanic(lifecycle.clone());
        thread("disks")
            .spawn(move || {
                if let Err(error) = jail::confine(jail::Thread::Disks) {
                    return fail(&guard.0, format!("confining the disks' thread: {error}"));
                }
                while let Ok(()) = disk_loop.turn() {}
                fail(&guard.0, "waiting for the disks' events failed".to_owned());
            })
            .map_err(BuildError::system("starting the disks' thread"))?;
    }
    for vcpu in vcpus {
        let guard = EndOnPanic(lifecycle.clone());
        let handle = thread(&format!("vcpu{}", vcpu.index()))
            .spawn(move || {
                if let Err(error) = jail::confine(jail::Thread::Vcpu) {
                    return fail(&guard.0, format!("confining a vCPU's thread: {error}"));
                }
                vcpu.run(&guard.0);
            })
            .map_err(BuildError::system("starting a vCPU's thread"))?;
        lifecycle.adopt(&handle);
        // Kept, so that the thread's id stays valid for signals; the process's end ends the thread.
        std::mem::forget(handle);
    }
    jail::confine(jail::Thread::Main).map_err(BuildError::system("confining the main thread"))?;
    lifecycle.run();

    let words = loop {
        if let Some(words) = lifecycle.last_words() {
            break words;
        }
        if let Err(error) = main_loop.turn() {
            fail(&lifecycle, format!("waiting for events: {error}"));
        }
    };
    lifecycle.wait_for_vcpus();
    for disk in disks {
        lock(&disk).finish();
    }
    for console in consoles {
        lock(&console).finish();
    }
    Ok(words)
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
}

fn fail(lifecycle: &Lifecycle, message: String) {
    lifecycle.end(LastWords::Failed { message });
}
