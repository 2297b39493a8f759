//! QEMU's machine protocol: one JSON command, one JSON answer, events in between that nobody here needs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Error;

pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    pub(crate) fn connect(path: &Path) -> Result<Qmp, Error> {
        let stream = UnixStream::connect(path)
            .map_err(Error::file("connecting to QEMU's monitor at", path))?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .map_err(Error::file("setting up QEMU's monitor at", path))?;
        let mut qmp = Qmp {
            reader: BufReader::new(stream),
        };
        qmp.answer("greeting", |answer| answer.get("QMP").is_some())?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returned.
    pub(crate) fn run(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|e| problem(command, &e.to_string()))?;
        let answer = self.answer(command, |answer| {
            answer.get("return").is_some() || answer.get("error").is_some()
        })?;
        match answer.get("error") {
            Some(error) => Err(problem(command, &error.to_string())),
            None => Ok(answer["return"].clone()),
        }
    }

    fn answer(
        &mut self,
        command: &str,
        is_answer: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        loop {
            let mut line = String::new();
            let n = self
                .reader
                .read_line(&mut line)
                .map_err(|e| problem(command, &e.to_string()))?;
            if n == 0 {
                return Err(problem(command, "QEMU closed the connection"));
            }
            let value: Value =
                serde_json::from_str(&line).map_err(|e| problem(command, &e.to_string()))?;
            if is_answer(&value) {
                return Ok(value);
            }
        }
    }
}

fn problem(command: &str, reason: &str) -> Error {
    Error::Monitor {
        command: command.to_owned(),
        reason: reason.to_owned(),
    }
}
