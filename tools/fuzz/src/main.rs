//! Names the fuzz targets and writes their seeds, for `cargo xtask fuzz`; and runs a target over one input, for a debugger.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str =
    "usage: skerry-fuzz list | skerry-fuzz seeds TARGET FOLDER | skerry-fuzz run TARGET FILE";

#[global_allocator]
static METER: fuzz::meter::Meter = fuzz::meter::Meter;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["list"] => {
            let mut out = std::io::stdout().lock();
            for target in fuzz::targets() {
                // Whoever stops reading has seen enough.
                let _ = writeln!(out, "{:<24} {}", target.name, target.about);
            }
            Ok(())
        }
        ["seeds", name, folder] => seeds(name, Path::new(folder)),
        ["run", name, file] => run(name, Path::new(file)),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn find(name: &str) -> Result<&'static fuzz::Target, String> {
    fuzz::find(name).ok_or_else(|| {
        format!("there is no fuzz target {name}; `cargo xtask fuzz --list` names them all")
    })
}

/// Runs a target over one input.
fn run(name: &str, file: &Path) -> Result<(), String> {
    let input =
        std::fs::read(file).map_err(|error| format!("reading {}: {error}", file.display()))?;
    find(name)?.check(&input);
    Ok(())
}

/// Writes a target's seeds into a folder, one file each.
fn seeds(name: &str, folder: &Path) -> Result<(), String> {
    let target = find(name)?;
    let failed =
        |error: std::io::Error| format!("writing seeds into {}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(failed)?;
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed).map_err(failed)?;
    }
    Ok(())
}
