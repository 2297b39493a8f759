//! `pillar`: the agent on the device.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use pillar::agent::{self, Options};
use pillar::domain::desired::Desired;
use pillar::domain::observed::Observed;
use pillar::paths::Paths;
use pillar::status::Status;
use pillar::supervise::{self, Pace};
use pillar::{notify, reconcile, uplink};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

const USAGE: &str = "\
usage: pillar [run] [options]

  --config DIR   what the installer stick brought (/config)
  --persist DIR  what outlives a power cut (/persist)
  --run DIR      what does not (/run/skerry)
  --lib DIR      what the image brings (/usr/lib/skerry)
  --tpm PATH     TPM: a device file, or the unix socket of a simulated one (/dev/tpmrm0)
  --status FILE  where status lines go (the kernel's consoles)
  --shared-host  this machine is not the agent's own: its clock, boot loader, journal and resolv.conf stay as they are
  --version      print the version";

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pillar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    match arguments.peek().map(String::as_str) {
        Some("run") => drop(arguments.next()),
        Some("--version") => {
            println!("pillar {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        Some("--help") => {
            println!("{USAGE}");
            return Ok(());
        }
        _ => {}
    }
    let (options, status_file) = options(arguments)?;
    log_to_stderr();
    small_heap();
    let status = match &status_file {
        Some(file) => Status::to_file(file),
        None => Status::to_consoles(),
    };
    // Two workers: one that waits for the disk does not keep the other from the network. Stacks are touched as needed.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_stack_size(1024 * 1024)
        .thread_name("pillar")
        .enable_all()
        .build()
        .context("starting the tasks' runtime")?;
    runtime.block_on(serve(options, status))?;
    // What blocks now is cut off: everything lasting is written whole or not at all.
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(())
}

async fn serve(options: Options, status: Status) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let desired = watch::Sender::new(Arc::new(Desired::default()));
    let (told, observed) = watch::channel(Arc::new(Observed::default()));
    let mut tasks = JoinSet::new();
    let (wanted, paths, board) = (desired.clone(), options.paths.clone(), status.clone());
    supervise::spawn(
        &mut tasks,
        status.clone(),
        Pace::default(),
        "reconcilers",
        move || reconcilers(wanted.clone(), paths.clone(), board.clone(), told.clone()),
    );
    tokio::select! {
        () = agent::run(options, status, desired, observed) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Apps run in units of their own and go on.
    notify::send("STOPPING=1");
    Ok(())
}

/// Runs the reconcilers and passes on what they tell, until they end.
async fn reconcilers(
    desired: watch::Sender<Arc<Desired>>,
    paths: Paths,
    status: Status,
    told: watch::Sender<Arc<Observed>>,
) -> anyhow::Result<()> {
    let mut observed = reconcile::spawn(desired.subscribe(), paths, status)?;
    loop {
        told.send_replace(observed.borrow_and_update().clone());
        observed.changed().await.context("the reconcilers ended")?;
    }
}

fn options(
    mut arguments: impl Iterator<Item = String>,
) -> anyhow::Result<(Options, Option<PathBuf>)> {
    let mut options = Options::default();
    let mut status = None;
    while let Some(argument) = arguments.next() {
        if argument == "--shared-host" {
            options.owns_machine = false;
            continue;
        }
        let value = PathBuf::from(
            arguments
                .next()
                .with_context(|| format!("{argument} needs a value\n{USAGE}"))?,
        );
        match argument.as_str() {
            "--config" => options.paths.config = value,
            "--persist" => options.paths.persist = value,
            "--run" => options.paths.run = value,
            "--lib" => options.paths.lib = value,
            "--tpm" => options.tpm = value,
            "--status" => status = Some(value),
            _ => bail!("unknown option {argument}\n{USAGE}"),
        }
    }
    if !options.owns_machine {
        options.journalctl = None;
        options.network = uplink::Sources::system(options.paths.run.join("resolv.conf"));
    }
    Ok((options, status))
}

/// The journal adds the time.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PILLAR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
}

/// One heap for all threads: glibc would give each its own, and none of them gives back what another needs.
fn small_heap() {
    // SAFETY: mallopt takes two numbers; it is called before any other thread is there.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}
