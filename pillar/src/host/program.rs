//! Runs the programs that the image brings (mkfs, nft, systemd-run, ...) directly, with argument vectors. There is no shell
//! on the device.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How much of a program's output is kept.
const OUTPUT_LIMIT: u64 = 256 * 1024;

/// A program that could not be run or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It did not start.
    #[error("starting {program}: {source}; is it in the image?")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Talking to it failed.
    #[error("talking to {program}: {source}")]
    Io {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{program} ended with {status}: {message}")]
    Failed {
        /// The program.
        program: String,
        /// Its exit status, in words.
        status: String,
        /// The end of what it said on standard error.
        message: String,
    },
    /// It took too long and was killed.
    #[error("{program} did not end within {seconds} s and was killed")]
    TooSlow {
        /// The program.
        program: String,
        /// The limit.
        seconds: u64,
    },
}

/// One run of a program.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    args: Vec<OsString>,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl Program {
    /// A program found in `PATH`, or by its absolute path.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
            input: None,
            limit: Duration::from_secs(60),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Bytes for its standard input; without them it is closed.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// How long it may take; a minute if nothing is said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it and gives its standard output; anything but exit status 0 is an error with the end of its standard error.
    pub async fn run(self) -> Result<String, ProgramError> {
        let limit = self.limit;
        let name = self.name.clone();
        // The child dies with its handle, so that a run that is given up leaves nothing behind.
        match tokio::time::timeout(limit, self.run_unlimited()).await {
            Ok(result) => result,
            Err(_) => Err(ProgramError::TooSlow {
                program: name,
                seconds: limit.as_secs(),
            }),
        }
    }

    async fn run_unlimited(self) -> Result<String, ProgramError> {
        let program = self.name;
        let io = |source| ProgramError::Io {
            program: program.clone(),
            source,
        };
        let mut child = Command::new(&program)
            .args(&self.args)
            .env("LC_ALL", "C.UTF-8")
            .stdin(if self.input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ProgramError::Start {
                program: program.clone(),
                source,
            })?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, &self.input) {
                // A program that ends early without reading all says why on its standard error.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), out, err) = tokio::join!(feed, read_some(stdout), read_some(stderr));
        let status = child.wait().await.map_err(io)?;
        let (out, err) = (out.map_err(io)?, err.map_err(io)?);
        if status.success() {
            return Ok(out);
        }
        let said = if err.trim().is_empty() { out } else { err };
        Err(ProgramError::Failed {
            program: program.clone(),
            status: status.to_string(),
            message: tail(said.trim(), 600).to_owned(),
        })
    }
}

async fn read_some(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let mut pipe = pipe.take(OUTPUT_LIMIT);
        pipe.read_to_end(&mut bytes).await?;
        // What is beyond the limit is read and thrown away: the program must not block on it.
        tokio::io::copy(&mut pipe.into_inner(), &mut tokio::io::sink()).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn tail(text: &str, bytes: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_input_and_failure_are_told() {
        let out = Program::new("cat").input("hello").run().await.unwrap();
        assert_eq!(out, "hello");
        let error = Program::new("cat")
            .arg("/nowhere/at/all")
            .run()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
        let error = Program::new("skerry-no-such-program")
            .run()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("is it in the image"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed() {
        let error = Program::new("sleep")
            .arg("1000")
            .limit(Duration::from_millis(50))
            .run()
            .await
            .unwrap_err();
        assert!(matches!(error, ProgramError::TooSlow { .. }));
    }

    #[test]
    fn the_tail_does_not_cut_letters() {
        assert_eq!(tail("aäö", 3), "ö");
        assert_eq!(tail("abc", 10), "abc");
    }
}
