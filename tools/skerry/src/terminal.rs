//! What a terminal needs: colours only where wanted, a password without echo, raw mode for consoles.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _, stderr, stdin, stdout};

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// Colours, named by what they are used for elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    Plain,
    /// All is well.
    Green,
    /// Not yet, or not quite.
    Yellow,
    /// Wrong.
    Red,
}

/// Whether standard output takes colours. <https://no-color.org>: any non-empty value of `NO_COLOR` says no.
pub fn colours() -> bool {
    wanted() && stdout().is_terminal()
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether progress may be drawn on standard error.
pub fn draws_progress() -> bool {
    wanted() && stderr().is_terminal()
}

/// `text` in a colour.
pub fn paint(text: &str, paint: Paint) -> String {
    let code = match paint {
        Paint::Plain => return text.to_owned(),
        Paint::Green => 32,
        Paint::Yellow => 33,
        Paint::Red => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// `text` in a colour if standard error takes them.
pub fn paint_err(text: &str, colour: Paint) -> String {
    if wanted() && stderr().is_terminal() {
        paint(text, colour)
    } else {
        text.to_owned()
    }
}

/// Writes a line to standard output.
pub fn say(text: impl Display) -> Result<(), Failure> {
    writeln!(stdout(), "{text}").map_err(Failure::output)
}

/// Writes a line for people, not for programs, to standard error.
pub fn note(text: impl Display) {
    // Nobody is left to be told if this fails.
    let _ = writeln!(stderr(), "{text}");
}

/// Restores a terminal's settings when dropped.
pub struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

fn change(what: impl FnOnce(&mut Termios)) -> Result<Restore, Failure> {
    let fault =
        |error: nix::Error| Failure::error(format!("cannot set the terminal's mode: {error}"));
    let before = tcgetattr(stdin()).map_err(fault)?;
    let mut after = before.clone();
    what(&mut after);
    tcsetattr(stdin(), SetArg::TCSADRAIN, &after).map_err(fault)?;
    Ok(Restore(before))
}

/// Every key goes to the program, nothing is echoed, until the value is dropped.
pub fn raw() -> Result<Restore, Failure> {
    change(cfmakeraw)
}

/// Asks for a line that does not show while it is typed. Only for a terminal on standard input.
pub fn ask_secret(prompt: &str) -> Result<String, Failure> {
    let quiet = change(|terminal| terminal.local_flags.remove(LocalFlags::ECHO))?;
    eprint!("{prompt}");
    let mut line = String::new();
    let read = stdin().read_line(&mut line);
    drop(quiet);
    eprintln!();
    read.map_err(|error| Failure::error(format!("cannot read from the terminal: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
