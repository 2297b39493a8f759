//! Commands and options, with an example in every help text.

#[cfg(test)]
mod documented;
mod enrolment;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::enrolment::*;

const EXIT_CODES: &str = "Exit codes:
  0  it worked
  1  it did not work
  2  the command makes no sense as given
  3  there is no such object, file or image
  4  refused: not logged in, bad credentials, or not allowed
  5  timed out

Environment:
  SKERRY_CONFIG   file that keeps contexts (default: ~/.config/skerry/config.yaml)
  SKERRY_SERVER   controller to talk to, instead of the context's
  SKERRY_TOKEN    bearer token, instead of the context's
  SKERRY_CA       file with root certificates to trust (PEM), instead of the context's
  NO_COLOR        set to anything: no colours and no drawn progress

Examples:
  skerry login https://controller.example.com:8443 --ca root-certificate.pem
  skerry image build --parts target/images/production -o stick.img
  skerry get devices
  skerry apply -f app.yaml
  skerry wait app/web --for phase=Running";

/// The command line of Skerry: edge devices, what runs on them, and the sticks that install them.
#[derive(Debug, Parser)]
#[command(name = "skerry", version, after_help = EXIT_CODES, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// Context to use, instead of the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Log in to a controller and keep the token as a context.
    Login(Login),
    /// List contexts or choose the current one.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Show objects in a table, or as JSON or YAML.
    Get(Get),
    /// Show everything that is known about objects, for people.
    Describe(Describe),
    /// Create or replace objects from files.
    Apply(Apply),
    /// Delete objects.
    Delete(Delete),
    /// Give a device another name.
    Rename(Rename),
    /// Show what an app, or a device itself, says.
    Logs(Logs),
    /// Take up the console of an app.
    Console(Console),
    /// Wait until an object is in a given state.
    Wait(Wait),
    /// The same commands for apps alone: apply, list, delete, logs, console.
    #[command(subcommand)]
    App(AppCommand),
    /// Lists of machines that enrol without a person.
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Let machines in that wait for a person: compare the words on the machine's screen first.
    #[command(after_help = APPROVE_EXAMPLES)]
    Approve(Decide),
    /// Turn machines away that wait for a person.
    #[command(
        after_help = "Examples:\n  skerry deny 3f0c9a6e11d2\n  skerry deny --selector serial=X-*"
    )]
    Deny(Decide),
    /// Turn a device away: it gets no config and cannot enrol again.
    Revoke(Revoke),
    /// Policies of attestation: what devices may have booted.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// References: what an image's boot comes to.
    #[command(subcommand)]
    Reference(ReferenceCommand),
    /// Makers of TPMs and of machines whose certificates are believed.
    #[command(subcommand)]
    Makers(MakersCommand),
    /// Make installer images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Put images where devices find them.
    #[command(subcommand)]
    Content(ContentCommand),
    /// Print the version of this program.
    #[command(after_help = "Examples:\n  skerry version")]
    Version,
    /// Write the reference of this command line and of the operator API for the book.
    #[command(
        hide = true,
        after_help = "Examples:\n  skerry docs --out docs/src/reference"
    )]
    Docs {
        /// Folder to write to: skerry.md, operator-api.md, openapi.json.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Examples:\n  skerry completion bash > /etc/bash_completion.d/skerry")]
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry login https://controller.example.com:8443 --ca root-certificate.pem
  skerry login controller:8443 --ca root.pem --user admin --password-file admin-password --context plant
  pass show skerry | skerry login https://controller:8443 --password-stdin")]
pub struct Login {
    /// Address of the controller: https://HOST:PORT.
    pub server: String,
    /// File with root certificates to trust for it (PEM). The system's are trusted if none is given.
    #[arg(long, value_name = "FILE", env = "SKERRY_CA")]
    pub ca: Option<PathBuf>,
    /// User name.
    #[arg(long, default_value = "admin", value_name = "NAME")]
    pub user: String,
    /// Read the password from the first line of a file.
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    pub password_file: Option<PathBuf>,
    /// Read the password from standard input.
    #[arg(long)]
    pub password_stdin: bool,
}

/// Apps by their own name, for who thinks of what to do with an app and not of kinds of objects.
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Create or replace apps, and what they need, from files.
    Apply(Apply),
    /// Show apps in a table.
    #[command(after_help = "Examples:\n  skerry app list")]
    List,
    /// Delete apps.
    #[command(after_help = "Examples:\n  skerry app delete web debian")]
    Delete {
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Show what an app says.
    Logs(Logs),
    /// Take up the console of an app.
    Console(Console),
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List contexts; the current one is marked.
    #[command(after_help = "Examples:\n  skerry context list")]
    List,
    /// Choose the current context.
    #[command(after_help = "Examples:\n  skerry context use plant")]
    Use {
        /// Its name.
        name: String,
    },
    /// Forget a context and its token.
    #[command(after_help = "Examples:\n  skerry context delete plant")]
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table with more columns.
    Wide,
    /// JSON, as the controller gives it.
    Json,
    /// YAML, fit for `skerry apply`.
    Yaml,
    /// KIND/NAME, a line each.
    Name,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry get devices
  skerry get apps -o wide -w
  skerry get app web -o yaml
  skerry get app/web app/db
  skerry get devices -l site=hall-3
  skerry get waiting
  skerry get boots box-1")]
pub struct Get {
    /// devices, apps, datastores, waiting, rules and so on, then names; or KIND/NAME. For boots, names of devices.
    #[arg(required = true, value_name = "KIND [NAME]")]
    pub what: Vec<String>,
    /// How to show them.
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
    /// Go on and show every change.
    #[arg(short, long)]
    pub watch: bool,
    /// Only objects with these labels: KEY=VALUE, or KEY alone, separated by commas.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Leave out the line with the column titles.
    #[arg(long)]
    pub no_headers: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  skerry describe device box-1\n  skerry describe app/web")]
pub struct Describe {
    /// devices, apps or datastores, then names; or KIND/NAME.
    #[arg(required = true, value_name = "KIND [NAME]")]
    pub what: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry apply -f app.yaml
  skerry apply -f site/            # every .yaml, .yml and .json in a folder
  skerry get app web -o yaml | sed s/8080/8081/ | skerry apply -f -")]
pub struct Apply {
    /// File, folder, or - for standard input. YAML (several documents) or JSON. May be given again.
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry delete app web
  skerry delete app/web datastore/demo
  skerry delete -f app.yaml --ignore-not-found")]
pub struct Delete {
    /// devices, apps or datastores, then names; or KIND/NAME.
    #[arg(required_unless_present = "files", value_name = "KIND [NAME]")]
    pub what: Vec<String>,
    /// Delete what these files describe.
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "what"
    )]
    pub files: Vec<PathBuf>,
    /// What is not there is no error.
    #[arg(long)]
    pub ignore_not_found: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  skerry rename box-1 hall-3-press")]
pub struct Rename {
    /// Name that the device has.
    pub device: String,
    /// Name that it shall have: lower-case letters, digits and -, at most 63.
    pub name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry logs web
  skerry logs -f web
  skerry logs device/box-1 --tail 50")]
pub struct Logs {
    /// Name of an app, app/NAME or device/NAME.
    #[arg(value_name = "APP")]
    pub what: String,
    /// Go on and show what is added.
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last so many lines.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry console debian                      # Ctrl-] leaves
  printf 'uname -a\\n' | skerry console debian --idle 3s")]
pub struct Console {
    /// Name of an app, or app/NAME.
    #[arg(value_name = "APP")]
    pub what: String,
    /// Where standard input is no terminal: leave after it has ended and the console was silent for so long.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "TIME")]
    pub idle: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry wait app/web --for phase=Running
  skerry wait device box-1 --for condition=Online --timeout 10m
  skerry wait app/web --for condition=Ready=False
  skerry wait app/web --for delete")]
pub struct Wait {
    /// devices, apps or datastores, then names; or KIND/NAME.
    #[arg(required = true, value_name = "KIND [NAME]")]
    pub what: Vec<String>,
    /// condition=TYPE, condition=TYPE=False, phase=PHASE, or delete.
    #[arg(long = "for", value_name = "STATE", value_parser = crate::commands::wait::Goal::parse)]
    pub goal: crate::commands::wait::Goal,
    /// Longest time to wait, such as 90s, 5m or 1h; exit code 5 after it.
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make an installer stick's image from the parts of an image and the controller's bundle.
    Build(ImageBuild),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry image build --parts target/images/production -o stick.img
  skerry image build --parts target/images/production --enrolment zero-touch -o stick.img
  skerry image build --parts target/images/production --bundle bundle.json -o stick.img")]
pub struct ImageBuild {
    /// Folder with the parts: parts.json and what it lists.
    #[arg(long, value_name = "DIR")]
    pub parts: PathBuf,
    /// Bundle to put on the stick (JSON). Asked from the controller if not given.
    #[arg(long, value_name = "FILE", conflicts_with = "enrolment")]
    pub bundle: Option<PathBuf>,
    /// How the stick's devices enrol. A stick of `zero-touch` holds no secret at all.
    #[arg(long, value_enum, value_name = "WAY", default_value_t = EnrolmentWay::Both)]
    pub enrolment: EnrolmentWay,
    /// File to write.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Which ways of enrolling a stick's devices try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EnrolmentWay {
    /// By the TPM and the manifest or a person's approval, without a secret on the stick.
    ZeroTouch,
    /// EVE's way, by the onboarding key on the stick.
    Eve,
    /// The first; at a controller that does not know it, the second.
    Both,
}

#[derive(Debug, Subcommand)]
pub enum ContentCommand {
    /// Push a machine image or an OCI image to a registry; prints REPOSITORY@DIGEST, fit for an app's `reference`.
    Push(Push),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiskFormat {
    /// The bytes of the disk, one by one.
    Raw,
    /// QEMU's format, version 2 or 3, without a backing file.
    Qcow2,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skerry content push registry.example.com:5000/debian:12 --disk disk.qcow2 --format qcow2 \\
      --kernel vmlinuz --initrd initrd.img --ca registry-root.pem
  skerry content push registry.example.com:5000/hello:latest --oci-layout ./hello
  skerry content push localhost:5000/hello:latest --oci-layout ./hello --plain-http")]
pub struct Push {
    /// Where to: REGISTRY/REPOSITORY:TAG.
    #[arg(value_name = "REGISTRY/REPO:TAG")]
    pub target: String,
    /// Root disk of a machine image.
    #[arg(
        long,
        value_name = "FILE",
        requires = "format",
        required_unless_present = "oci_layout"
    )]
    pub disk: Option<PathBuf>,
    /// Format of the root disk. It is never guessed.
    #[arg(long, value_enum)]
    pub format: Option<DiskFormat>,
    /// Kernel that the machine is started with.
    #[arg(long, value_name = "FILE", requires = "disk")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel. May be given again.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Vec<PathBuf>,
    /// Folder with an OCI image layout, whose image is pushed as it is.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["disk", "format", "kernel", "initrd"])]
    pub oci_layout: Option<PathBuf>,
    /// File with root certificates to trust for the registry (PEM).
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Speak HTTP without TLS.
    #[arg(long, conflicts_with = "ca")]
    pub plain_http: bool,
    /// User name at the registry.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// Read the registry's password from the first line of a file.
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

/// Longest time that an option takes, in hours: ten years. With it every deadline is one that a clock can count up to.
const LONGEST_HOURS: u64 = 87_600;

/// Reads `90`, `90s`, `5m`, `1h`, `500ms`. What is wrong is told with the option's name in front by clap.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let fault = || format!("`{text}` is no time: write a number and ms, s, m or h, such as 90s");
    if digits.is_empty() {
        return Err(fault());
    }
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(fault()),
    };
    // Digits alone do not fail to be a number but by being too many.
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(millis))
        .map(Duration::from_millis)
        .filter(|time| *time <= Duration::from_secs(LONGEST_HOURS * 3600))
        .ok_or_else(|| format!("`{text}` is too long: at most {LONGEST_HOURS}h"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn walk(command: &clap::Command) {
            if command.has_subcommands() {
                command
                    .get_subcommands()
                    .filter(|command| command.get_name() != "help")
                    .for_each(walk);
            } else {
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let example = help
                    .split_once("Examples:\n")
                    .map(|(_, example)| example)
                    .unwrap_or_default();
                assert!(
                    example.contains(command.get_name()),
                    "{}: {help}",
                    command.get_name()
                );
            }
        }
        walk(&Cli::command());
    }

    #[test]
    fn a_time_that_no_clock_can_count_is_refused_with_its_option() {
        for (arguments, option) in [
            (
                &["skerry", "wait", "app/web", "--for", "delete", "--timeout"][..],
                "--timeout",
            ),
            (&["skerry", "console", "web", "--idle"][..], "--idle"),
        ] {
            for time in [
                "18446744073709551615",
                "18446744073709551615ms",
                "99999999999999999999h",
                "87601h",
            ] {
                let error = Cli::try_parse_from([arguments, &[time][..]].concat())
                    .unwrap_err()
                    .to_string();
                assert!(
                    error.contains(option) && error.contains("is too long: at most 87600h"),
                    "{error}"
                );
            }
            assert!(Cli::try_parse_from([arguments, &["87600h"][..]].concat()).is_ok());
        }
        let longest = duration("87600h").unwrap();
        assert!(std::time::Instant::now().checked_add(longest).is_some());
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in [
            "",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1d",
            "99999999999999999999",
            "18446744073709551615h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
