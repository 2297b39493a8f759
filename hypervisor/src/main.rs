//! `skerry-vmm run -f vm.json`: runs the virtual machine that the file describes, and exits when it has ended.
//!
//! SIGTERM or SIGINT presses the guest's power button and gives it `shutdownGraceSeconds`; a second one ends it at once.
//!
//! Exit status: 0 power-off, 1 the monitor failed, 2 reset, 3 triple fault, 4 killed; 64 wrong usage.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use hypervisor::{config, jail, last_words, machine, socket};
use hypervisor_api::report::LastWords;

const USAGE: &str = "usage: skerry-vmm run -f FILE     run the machine that FILE (JSON) describes
       skerry-vmm check -f FILE   only say whether FILE is sound
       skerry-vmm --version";
const EXIT_USAGE: u8 = 64;

/// What is asked for on the command line. By hand: an argument parser would double the program's memory.
enum Command {
    Run(PathBuf),
    Check(PathBuf),
    Version,
}

fn parse(arguments: &[OsString]) -> Option<Command> {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    match (words.as_slice(), arguments) {
        (["run", "-f", ..], [_, _, file]) => Some(Command::Run(file.into())),
        (["check", "-f", ..], [_, _, file]) => Some(Command::Check(file.into())),
        (["--version"], _) => Some(Command::Version),
        _ => None,
    }
}

fn main() -> ExitCode {
    let start = Instant::now();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words = match parse(&arguments) {
        Some(Command::Run(file)) => run(&file, start),
        Some(Command::Check(file)) => match config::load(&file) {
            Ok(_) => return ExitCode::SUCCESS,
            Err(error) => LastWords::Failed {
                message: error.to_string(),
            },
        },
        Some(Command::Version) => {
            println!("skerry-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        None => {
            eprintln!("{USAGE}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let LastWords::Failed { message } = &words {
        eprintln!("skerry-vmm: {message}");
    }
    ExitCode::from(words.exit_code())
}

fn run(file: &std::path::Path, start: Instant) -> LastWords {
    jail::keep_memory_small();
    socket::make_private();
    let config = match config::load(file) {
        Ok(config) => config,
        Err(error) => {
            return LastWords::Failed {
                message: error.to_string(),
            };
        }
    };
    let words = std::panic::catch_unwind(|| machine::run(&config, start)).unwrap_or_else(|_| {
        LastWords::Failed {
            message: "the monitor's main thread panicked; its message is on standard error"
                .to_owned(),
        }
    });
    if let Some(path) = &config.last_words
        && let Err(error) = last_words::leave(&words, path)
    {
        eprintln!("skerry-vmm: {}: {error}", config.name);
    }
    words
}
