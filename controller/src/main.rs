//! `skerry-controller`: what the fleet should be.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use controller::pki::owner::{DELEGATION_DAYS, MAX_DELEGATION_DAYS, Owner};
use controller::setup::{self, Controller, Name};
use controller::{doors, server};
use jiff::Timestamp;
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
    /// Show and use the owner's root keys. A controller that serves meanwhile takes changes up within a minute.
    #[command(subcommand)]
    Owner(OwnerCommand),
}

#[derive(Subcommand)]
enum OwnerCommand {
    /// Show who the owner is, where the root keys are, and when the delegation ends.
    Show(Data),
    /// Delegate to this controller anew.
    Delegate(WithRoot),
    /// Withdraw what was delegated: make a new signing key, and delegate to it alone.
    Withdraw(WithRoot),
    /// Let the next root take over, and make the one after it.
    Rotate(WithNext),
}

#[derive(Args)]
struct Data {
    /// Where everything is kept.
    #[arg(
        long,
        value_name = "DIR",
        env = "SKERRY_DATA",
        default_value = "/var/lib/skerry-controller"
    )]
    data: PathBuf,
}

#[derive(Args)]
struct Term {
    /// How long the delegation lasts, in days.
    #[arg(long, default_value_t = DELEGATION_DAYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DELEGATION_DAYS)))]
    days: u32,
}

#[derive(Args)]
struct WithRoot {
    #[command(flatten)]
    data: Data,
    /// The root's key, if it was taken away.
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    #[command(flatten)]
    term: Term,
}

#[derive(Args)]
struct WithNext {
    #[command(flatten)]
    data: Data,
    /// The next root's key, if it was taken away.
    #[arg(long, value_name = "FILE")]
    next_key: Option<PathBuf>,
    #[command(flatten)]
    term: Term,
}

#[derive(Args)]
struct Options {
    #[command(flatten)]
    data: Data,
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
            Command::Owner(command) => owner(&command),
        }
    })
}

async fn open(options: &Options) -> Result<Controller> {
    let controller = setup::open(&options.data.data, &options.names, options.listen).await?;
    if let Some(file) = &controller.new_password {
        // Not the password itself: what a service says ends up in a log.
        println!("user admin is made; its password is in {}", file.display());
    }
    Ok(controller)
}

async fn init(options: Options) -> Result<()> {
    let controller = open(&options).await?;
    controller.store.close().await;
    println!("{} is ready", options.data.data.display());
    Ok(())
}

fn owner(command: &OwnerCommand) -> Result<()> {
    let (OwnerCommand::Show(data)
    | OwnerCommand::Delegate(WithRoot { data, .. })
    | OwnerCommand::Withdraw(WithRoot { data, .. })
    | OwnerCommand::Rotate(WithNext { data, .. })) = command;
    let directory = data.data.join("pki").join("owner");
    let now = Timestamp::now();
    anyhow::ensure!(
        directory.join("owner.json").is_file(),
        "there is no owner in {}; `skerry-controller init` makes one",
        directory.display()
    );
    let owner = Owner::open(&directory, now)?;
    match command {
        OwnerCommand::Show(_) => {}
        OwnerCommand::Delegate(args) => {
            owner.delegate(args.root_key.as_deref(), args.term.days, now)?;
        }
        OwnerCommand::Withdraw(args) => {
            owner.withdraw(args.root_key.as_deref(), args.term.days, now)?;
        }
        OwnerCommand::Rotate(args) => {
            owner.rotate(args.next_key.as_deref(), args.term.days, now)?;
        }
    }
    let standing = owner.standing()?;
    let place = |(path, there): &(PathBuf, bool)| {
        if *there {
            path.display().to_string()
        } else {
            format!("taken away (it was {})", path.display())
        }
    };
    println!("epoch       {}", standing.epoch);
    println!("root        {}", standing.root);
    println!("  key       {}", place(&standing.root_file));
    println!("next root   {}", standing.next);
    println!("  key       {}", place(&standing.next_file));
    println!("delegation  {}", standing.delegation);
    println!("  ends      {}", standing.not_after);
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
