//! `skerry-controller`: what the fleet should be.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use controller::setup::{self, Controller, Name};
use controller::{doors, server};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Controller of a fleet of Skerry devices.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the data directory: keys, certificates, store, first user. `serve` does it too.
    Init(Options),
    /// Serve devices and operators.
    Serve(Options),
}

#[derive(Args)]
struct Options {
    /// Where everything is kept.
    #[arg(
        long,
        value_name = "DIR",
        env = "SKERRY_DATA",
        default_value = "/var/lib/skerry-controller"
    )]
    data: PathBuf,
    /// Where to listen.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "SKERRY_LISTEN",
        default_value = "0.0.0.0:8443"
    )]
    listen: SocketAddr,
    /// A name or address of this controller; the first one is what devices call it. Needed at the first start.
    #[arg(long = "name", value_name = "HOST[:PORT]")]
    names: Vec<Name>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("SKERRY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Init(options) => init(options).await,
            Command::Serve(options) => serve(options).await,
        }
    })
}

async fn open(options: &Options) -> Result<Controller> {
    let controller = setup::open(&options.data, &options.names, options.listen).await?;
    if let Some(file) = &controller.new_password {
        // Not the password itself: what a service says ends up in a log.
        println!("user admin is made; its password is in {}", file.display());
    }
    Ok(controller)
}

async fn init(options: Options) -> Result<()> {
    let controller = open(&options).await?;
    controller.store.close().await;
    println!("{} is ready", options.data.display());
    Ok(())
}

async fn serve(options: Options) -> Result<()> {
    let controller = open(&options).await?;
    let listener = server::listen(options.listen).await?;
    tracing::info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "serving");
    let tending = {
        let fleet = controller.fleet.clone();
        tokio::spawn(async move { fleet.tend().await })
    };
    let router = doors::router(controller.fleet.clone());
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    server::serve(
        listener,
        controller.tls,
        router,
        server::Limits::default(),
        stop,
    )
    .await;
    tending.abort();
    controller
        .fleet
        .flush()
        .await
        .context("writing the last figures")?;
    controller.store.close().await;
    Ok(())
}
