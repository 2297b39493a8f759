//! The commands, one module each.

mod admit;
mod app;
mod apply;
mod believe;
mod console;
mod content;
mod context;
mod delete;
mod describe;
mod docs;
mod get;
mod image;
mod login;
mod logs;
mod rename;
mod version;
pub mod wait;

use clap::CommandFactory as _;

use operator_api::WaitingVerb;

use crate::cli::{
    Cli, Command, ContentCommand, ImageCommand, MakersCommand, ManifestCommand, PolicyCommand,
    ReferenceCommand,
};
use crate::client::Client;
use crate::context::{Config, Environment};
use crate::failure::Failure;

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let context = cli.context.as_deref();
    match cli.command {
        Command::Login(args) => login::run(args, context),
        Command::Context(command) => context::run(command),
        Command::Get(args) => get::run(args, context),
        Command::Describe(args) => describe::run(args, context),
        Command::Apply(args) => apply::run(args, context),
        Command::Delete(args) => delete::run(args, context),
        Command::Rename(args) => rename::run(args, context),
        Command::Logs(args) => logs::run(args, context),
        Command::Console(args) => console::run(args, context),
        Command::Wait(args) => wait::run(args, context),
        Command::App(command) => app::run(command, context),
        Command::Manifest(ManifestCommand::Import(args)) => admit::import(args, context),
        Command::Manifest(ManifestCommand::Trust(args)) => admit::trust(args, context),
        Command::Approve(args) => admit::decide(WaitingVerb::Approve, args, context),
        Command::Deny(args) => admit::decide(WaitingVerb::Deny, args, context),
        Command::Revoke(args) => admit::revoke(args, context),
        Command::Policy(PolicyCommand::Accept(args)) => believe::accept(args, context),
        Command::Reference(ReferenceCommand::Import(args)) => {
            believe::import_reference(args, context)
        }
        Command::Makers(MakersCommand::Import(args)) => believe::import_makers(args, context),
        Command::Makers(MakersCommand::Revocations(args)) => {
            believe::import_revocations(args, context)
        }
        Command::Image(ImageCommand::Build(args)) => image::build(args, context),
        Command::Content(ContentCommand::Push(args)) => content::push(args),
        Command::Version => version::run(),
        Command::Docs { out } => docs::run(&out),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skerry", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// A client for the named or current context.
fn client(context: Option<&str>) -> Result<Client, Failure> {
    Client::new(Config::load(&Config::path()?)?.access(context, Environment::read()?)?)
}
