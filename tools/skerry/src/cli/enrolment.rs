//! Commands and options about who enrols and what is believed of a boot.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

pub const APPROVE_EXAMPLES: &str = "Examples:
  skerry get waiting
  skerry approve acid-bird-cold-desk-echo-fork-gift-hall --name press-1
  skerry approve 3f0c9a6e11d2 77aa00bb11cc --label site=hall-3
  skerry approve --selector 'manufacturer=Maker*,certified=true'
  skerry approve --all";

#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Import a list of machines: CSV with the columns ekId, serial, name, label:KEY, or JSON with the same.
    Import(ManifestImport),
    /// Trust a key whose signatures under manifests count.
    Trust(ManifestTrust),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TextFormat {
    /// A machine a line.
    Csv,
    /// An array of objects.
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry manifest import boxes.csv --signature boxes.csv.sig
  skerry manifest import boxes.json --unsigned --name spring")]
pub struct ManifestImport {
    /// The list.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Name of the manifest; that of the file if not given. One of this name is replaced.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Detached signature by a trusted key: what `openssl dgst -sha256 -sign key.pem` writes.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "unsigned",
        required_unless_present = "unsigned"
    )]
    pub signature: Option<PathBuf>,
    /// It is not signed, and that is meant.
    #[arg(long)]
    pub unsigned: bool,
    /// How it is written; by the file's ending if not given.
    #[arg(long, value_enum)]
    pub format: Option<TextFormat>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  openssl pkey -in purchasing.pem -pubout -out purchasing.pub.pem
  skerry manifest trust purchasing purchasing.pub.pem")]
pub struct ManifestTrust {
    /// What to call the key.
    pub name: String,
    /// Its public half, P-256, PEM.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct Decide {
    /// The words on the machine's screen (all eight, with `-` between them or in quotes), or its id (12 digits will do).
    #[arg(value_name = "WORDS|ID", required_unless_present_any = ["all", "selector"], conflicts_with_all = ["all", "selector"])]
    pub machines: Vec<String>,
    /// All that wait.
    #[arg(long, conflicts_with = "selector")]
    pub all: bool,
    /// All that wait and fit: manufacturer=, product=, serial=, endorsementIssuer= with patterns, certified=true, machineCertified=true;
    /// separated by commas.
    #[arg(short = 'l', long, value_name = "TERMS")]
    pub selector: Option<String>,
    /// Name for the device, if it is one machine.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A label for the device. May be given again.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  skerry revoke box-1\n  skerry revoke box-1 --undo")]
pub struct Revoke {
    /// Name of the device.
    pub device: String,
    /// Take it back.
    #[arg(long)]
    pub undo: bool,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Accept the firmware of a device's boot, for all machines that a policy is for.
    Accept(PolicyAccept),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry get boots box-1 -o wide
  skerry policy accept edge-gateway box-1 --boot box-1-17 --name '1.14.0 as delivered'")]
pub struct PolicyAccept {
    /// Name of the policy.
    pub policy: String,
    /// Name of the device whose boot is the canary.
    pub device: String,
    /// Name of the boot, as `skerry get boots` shows it; the last one whose quote and event log hold, if not given.
    #[arg(long, value_name = "BOOT")]
    pub boot: Option<String>,
    /// What to call the firmware.
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum ReferenceCommand {
    /// Import references as the image build signed them.
    Import(ReferenceImport),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  skerry reference import target/images/production/reference.json"
)]
pub struct ReferenceImport {
    /// Signed references.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What to call it; the name of the file, or of its folder, if not given.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum MakersCommand {
    /// Import a maker's certificates. What was imported of its revocations stays.
    Import(MakersImport),
    /// Import what a maker has revoked: certificate revocation lists (CRL). They take the place of those that were there.
    Revocations(MakersRevocations),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry makers import example-tpms root.pem intermediate.pem
  skerry makers import example-boxes machines-root.pem --machines")]
pub struct MakersImport {
    /// What to call the maker.
    pub name: String,
    /// Roots, and such certificates between them and the TPMs' own that TPMs do not bring along; PEM.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// It makes machines, not TPMs: its certificates are for machines' initial attestation keys (IAK) and bring them to level gold.
    #[arg(long)]
    pub machines: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry makers revocations example-tpms root.crl intermediate.crl
  skerry makers revocations example-tpms --none")]
pub struct MakersRevocations {
    /// Name of the maker.
    pub name: String,
    /// All of its lists that are to count, PEM or DER; each is signed by one of the maker's imported certificates.
    #[arg(
        required_unless_present = "none",
        conflicts_with = "none",
        value_name = "FILE"
    )]
    pub files: Vec<PathBuf>,
    /// None is to count any more.
    #[arg(long)]
    pub none: bool,
}
