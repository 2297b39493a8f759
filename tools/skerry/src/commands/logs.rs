//! `skerry logs`: what an app, or a device itself, says. The controller gives lines of text.

use std::io::{IsTerminal as _, Write as _, stdout};

use crate::cli::Logs;
use crate::failure::Failure;
use crate::kinds::{Kind, select};
use crate::output::harmless;

pub fn run(args: Logs, context: Option<&str>) -> Result<(), Failure> {
    let (kind, name) = target(&args.what, &["App", "Device"])?;
    let client = super::client(context)?;
    let mut query = Vec::new();
    if args.follow {
        query.push(("follow", "true".to_owned()));
    }
    if let Some(lines) = args.tail {
        query.push(("tail", lines.to_string()));
    }
    let what = format!("read the log of {} {name}", kind.singular());
    // Raw bytes into a file or a pipe; on a terminal nothing that a log says may move the cursor.
    let guard = stdout().is_terminal();
    crate::runtime(async {
        let mut lines = client
            .lines(&format!("{}/log", kind.path(&name)), &query, &what)
            .await?;
        while let Some(line) = lines.next().await? {
            let mut out = stdout().lock();
            let written = if guard {
                writeln!(out, "{}", harmless(&String::from_utf8_lossy(&line)))
            } else {
                out.write_all(&line).and_then(|()| out.write_all(b"\n"))
            };
            written
                .and_then(|()| out.flush())
                .map_err(Failure::output)?;
        }
        Ok(())
    })
}

/// Reads `NAME` (an app) or `KIND/NAME` of one of the allowed kinds.
pub fn target(word: &str, allowed: &[&str]) -> Result<(&'static Kind, String), Failure> {
    let full = if word.contains('/') {
        word.to_owned()
    } else {
        format!("app/{word}")
    };
    let mut selections = select(&[full])?;
    match selections.pop() {
        Some(selection) if allowed.contains(&selection.kind.name) => {
            let name = selection.names.into_iter().next().unwrap_or_default();
            Ok((selection.kind, name))
        }
        _ => Err(Failure::usage(format!(
            "`{word}`: only {} have this",
            allowed.join("s and ").to_ascii_lowercase() + "s"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn a_bare_name_is_an_apps() {
        let read = |word| {
            target(word, &["App", "Device"]).map(|(kind, name)| format!("{} {name}", kind.name))
        };
        assert_eq!(read("web").unwrap(), "App web");
        assert_eq!(read("app/web").unwrap(), "App web");
        assert_eq!(read("device/box-1").unwrap(), "Device box-1");
        let failure = read("ds/demo").unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(
            failure.to_string().contains("apps and devices"),
            "{failure}"
        );
        assert!(target("device/x", &["App"]).is_err());
    }
}
