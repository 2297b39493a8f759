//! Manifests, read strictly: what is not understood is an error with its line and column, and nothing of the file is taken then.
//!
//! ```csv
//! ekId,serial,name,label:site
//! 3f0c...64 digits,SN-1,press-1,hall-3
//! ,SN-2,,hall-3
//! ```
//!
//! CSV is RFC 4180's: fields in quotes may hold commas, line ends and doubled quotes. JSON is an array of objects with `ekId`, `serial`,
//! `name` and `labels`. Each machine has an `ekId`, a `serial`, or both; neither is there twice.

use std::collections::{BTreeMap, BTreeSet};

use onboarding::enrol::MachineId;
use operator_api::{MAX_MANIFEST_TEXT, ManifestFormat, is_dns_label, is_label};
use serde::Deserialize;
use thiserror::Error;

use crate::store::manifests::Entry;

/// Most machines of one manifest.
pub const MAX_MACHINES: usize = 100_000;
/// Most labels of a machine.
const MAX_LABELS: usize = 16;
/// Longest serial number, in bytes.
const MAX_SERIAL: usize = 256;
/// Most columns.
const MAX_COLUMNS: usize = 3 + MAX_LABELS;

/// What is wrong with a manifest, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {what}")]
pub struct ManifestError {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1; of a field, where it begins.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub what: String,
}

fn wrong(line: usize, column: usize, what: impl Into<String>) -> ManifestError {
    ManifestError {
        line,
        column,
        what: what.into(),
    }
}

/// Reads a manifest.
///
/// # Errors
/// [`ManifestError`]: the first thing that is wrong.
pub fn read(format: ManifestFormat, text: &str) -> Result<Vec<Entry>, ManifestError> {
    if text.len() > MAX_MANIFEST_TEXT {
        return Err(wrong(
            1,
            1,
            format!("{} bytes; at most {MAX_MANIFEST_TEXT} are read", text.len()),
        ));
    }
    // Excel writes one; nobody means it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut known = Known::default();
    match format {
        ManifestFormat::Csv => csv(text, &mut known)?,
        ManifestFormat::Json => json(text, &mut known)?,
    }
    if known.entries.is_empty() {
        return Err(wrong(1, 1, "there is no machine in it"));
    }
    Ok(known.entries)
}

/// What was read so far.
#[derive(Default)]
struct Known {
    entries: Vec<Entry>,
    machines: BTreeSet<MachineId>,
    serials: BTreeSet<String>,
    names: BTreeSet<String>,
}

/// A machine's fields with the columns where they stand.
#[derive(Default)]
struct Fields {
    line: usize,
    ek_id: (usize, String),
    serial: (usize, String),
    name: (usize, String),
    labels: BTreeMap<String, (usize, String)>,
}

impl Known {
    fn add(&mut self, fields: Fields) -> Result<(), ManifestError> {
        let line = fields.line;
        if self.entries.len() >= MAX_MACHINES {
            return Err(wrong(
                line,
                1,
                format!("more than {MAX_MACHINES} machines; split it"),
            ));
        }
        let (column, text) = &fields.ek_id;
        let machine = if text.is_empty() {
            None
        } else {
            let digits = text.strip_prefix("sha256:").unwrap_or(text);
            let machine: MachineId = digits
                .parse()
                .map_err(|error| wrong(line, *column, format!("ekId: {error}")))?;
            if !self.machines.insert(machine) {
                return Err(wrong(
                    line,
                    *column,
                    format!("ekId {machine} is there twice"),
                ));
            }
            Some(machine)
        };
        let (column, serial) = fields.serial;
        if serial.len() > MAX_SERIAL || serial.chars().any(char::is_control) {
            let what =
                format!("serial: must be at most {MAX_SERIAL} bytes, without control characters");
            return Err(wrong(line, column, what));
        }
        if !serial.is_empty() && !self.serials.insert(serial.clone()) {
            let what = format!("serial {serial:?} is there twice");
            return Err(wrong(line, column, what));
        }
        if machine.is_none() && serial.is_empty() {
            return Err(wrong(line, 1, "a machine needs an ekId, a serial, or both"));
        }
        let (column, name) = fields.name;
        if !name.is_empty() && !is_dns_label(&name) {
            let what = "name: must be lower-case letters, digits and `-`, at most 63";
            return Err(wrong(line, column, what));
        }
        if !name.is_empty() && !self.names.insert(name.clone()) {
            return Err(wrong(line, column, format!("name `{name}` is there twice")));
        }
        let mut labels = BTreeMap::new();
        for (key, (column, value)) in fields.labels {
            if !is_label(&key, &value) {
                let what = format!(
                    "label `{key}`: neither key nor value may have other than letters, digits, `-`, `_` and `.`"
                );
                return Err(wrong(line, column, what));
            }
            labels.insert(key, value);
        }
        self.entries.push(Entry {
            line: i64::try_from(line).unwrap_or(i64::MAX),
            machine,
            serial,
            name,
            labels,
        });
        Ok(())
    }
}

/// What a column means.
enum Column {
    EkId,
    Serial,
    Name,
    Label(String),
}

impl Column {
    fn read(title: &str) -> Option<Self> {
        match title {
            "ekId" => Some(Self::EkId),
            "serial" => Some(Self::Serial),
            "name" => Some(Self::Name),
            other => other
                .strip_prefix("label:")
                .filter(|key| !key.is_empty())
                .map(|key| Self::Label(key.to_owned())),
        }
    }
}

fn csv(text: &str, known: &mut Known) -> Result<(), ManifestError> {
    let mut records = Records::new(text);
    let Some(titles) = records.next()? else {
        return Err(wrong(
            1,
            1,
            "it is empty; the first line has the columns' titles",
        ));
    };
    if titles.fields.len() > MAX_COLUMNS {
        return Err(wrong(1, 1, format!("more than {MAX_COLUMNS} columns")));
    }
    let mut columns = Vec::new();
    let mut seen = BTreeSet::new();
    for (column, title) in &titles.fields {
        let title = title.trim();
        if !seen.insert(title) {
            return Err(wrong(
                titles.line,
                *column,
                format!("column `{title}` is there twice"),
            ));
        }
        columns.push(Column::read(title).ok_or_else(|| {
            let what = format!(
                "column `{}` is not known; known are ekId, serial, name, label:KEY",
                title.chars().take(64).collect::<String>()
            );
            wrong(titles.line, *column, what)
        })?);
    }
    while let Some(record) = records.next()? {
        if record.fields.len() != columns.len() {
            let what = format!(
                "{} fields; the first line has {}",
                record.fields.len(),
                columns.len()
            );
            return Err(wrong(record.line, 1, what));
        }
        let mut fields = Fields {
            line: record.line,
            ..Fields::default()
        };
        for (meaning, (column, text)) in columns.iter().zip(record.fields) {
            let field = (column, text.trim().to_owned());
            match meaning {
                Column::EkId => fields.ek_id = field,
                Column::Serial => fields.serial = field,
                Column::Name => fields.name = field,
                Column::Label(_) if field.1.is_empty() => {}
                Column::Label(key) => drop(fields.labels.insert(key.clone(), field)),
            }
        }
        known.add(fields)?;
    }
    Ok(())
}

/// A line of CSV: its fields with the columns where they begin.
struct Record {
    line: usize,
    fields: Vec<(usize, String)>,
}

/// Reads CSV record by record (RFC 4180); empty lines are passed over.
struct Records<'a> {
    text: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    column: usize,
}

impl<'a> Records<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text: text.chars().peekable(),
            line: 1,
            column: 1,
        }
    }

    fn take(&mut self) -> Option<char> {
        let c = self.text.next()?;
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    /// Takes a line end, if one is next.
    fn line_end(&mut self) -> Result<bool, ManifestError> {
        match self.text.peek() {
            Some('\n') => {
                self.take();
                Ok(true)
            }
            Some('\r') => {
                self.take();
                if self.text.peek() == Some(&'\n') {
                    self.take();
                    Ok(true)
                } else {
                    Err(wrong(
                        self.line,
                        self.column,
                        "a carriage return without a line feed",
                    ))
                }
            }
            _ => Ok(false),
        }
    }

    fn next(&mut self) -> Result<Option<Record>, ManifestError> {
        while self.line_end()? {}
        if self.text.peek().is_none() {
            return Ok(None);
        }
        let mut record = Record {
            line: self.line,
            fields: Vec::new(),
        };
        loop {
            let column = self.column;
            record.fields.push((column, self.field()?));
            if record.fields.len() > MAX_COLUMNS {
                return Err(wrong(
                    self.line,
                    column,
                    format!("more than {MAX_COLUMNS} fields"),
                ));
            }
            match self.text.peek().copied() {
                None => return Ok(Some(record)),
                Some(',') => drop(self.take()),
                Some(_) if self.line_end()? => return Ok(Some(record)),
                Some(_) => {
                    return Err(wrong(
                        self.line,
                        self.column,
                        "after a closing quote comes a comma or a line end",
                    ));
                }
            }
        }
    }

    fn field(&mut self) -> Result<String, ManifestError> {
        let mut field = String::new();
        if self.text.peek() != Some(&'"') {
            while let Some(c) = self.text.peek().copied() {
                match c {
                    ',' | '\n' | '\r' => break,
                    '"' => {
                        return Err(wrong(
                            self.line,
                            self.column,
                            "a quote inside a field; put the field into quotes, and this one twice",
                        ));
                    }
                    _ => {
                        field.push(c);
                        self.take();
                    }
                }
            }
            return Ok(field);
        }
        let (line, column) = (self.line, self.column);
        self.take();
        loop {
            match self.take() {
                None => return Err(wrong(line, column, "a quote is not closed")),
                Some('"') if self.text.peek() == Some(&'"') => {
                    self.take();
                    field.push('"');
                }
                Some('"') => return Ok(field),
                Some(c) => field.push(c),
            }
        }
    }
}

/// A machine in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Machine {
    #[serde(default)]
    ek_id: String,
    #[serde(default)]
    serial: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn json(text: &str, known: &mut Known) -> Result<(), ManifestError> {
    let machines: Vec<Machine> = serde_json::from_str(text)
        .map_err(|error| wrong(error.line(), error.column(), error.to_string()))?;
    for (machine, (line, column)) in machines.into_iter().zip(places(text)) {
        if machine.labels.len() > MAX_LABELS {
            return Err(wrong(
                line,
                column,
                format!("more than {MAX_LABELS} labels"),
            ));
        }
        known.add(Fields {
            line,
            ek_id: (column, machine.ek_id),
            serial: (column, machine.serial),
            name: (column, machine.name),
            labels: machine
                .labels
                .into_iter()
                .map(|(key, value)| (key, (column, value)))
                .collect(),
        })?;
    }
    // Two machines on one line must not be two with one number.
    for (number, entry) in known.entries.iter_mut().enumerate() {
        entry.line = i64::try_from(number + 1).unwrap_or(i64::MAX);
    }
    Ok(())
}

/// Line and column where each object of an array begins, in a text that is an array of objects: for what is found wrong only when the
/// whole object was read.
fn places(text: &str) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    let (mut line, mut column, mut depth) = (1, 0, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        column += 1;
        match c {
            '\n' => (line, column) = (line + 1, 0),
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '{' if !quoted => {
                if depth == 0 {
                    places.push((line, column));
                }
                depth += 1;
            }
            '}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00000000000000000000000000000000000000000000000000000000000000ab";

    fn csv(text: &str) -> Result<Vec<Entry>, ManifestError> {
        read(ManifestFormat::Csv, text)
    }

    #[test]
    fn csv_is_read() {
        let text = format!(
            "\u{feff}ekId,serial,name,label:site\r\n{ID},SN-1,press,hall-3\r\n\r\n,\"SN \"\"2\"\", x\",,\nsha256:{},,,\n",
            ID.replace("ab", "cd")
        );
        let entries = csv(&text).unwrap();
        let short: Vec<_> = entries
            .iter()
            .map(|entry| {
                let tail = entry
                    .machine
                    .map(|machine| machine.to_string()[62..].to_owned());
                (
                    entry.line,
                    tail,
                    entry.serial.as_str(),
                    entry.name.as_str(),
                    entry.labels.len(),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                (2, Some("ab".to_owned()), "SN-1", "press", 1),
                (4, None, "SN \"2\", x", "", 0),
                (5, Some("cd".to_owned()), "", "", 0)
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_column() {
        for (text, line, column, part) in [
            ("", 1, 1, "empty"),
            ("serial\n", 1, 1, "no machine"),
            ("serial,colour\nA,b", 1, 8, "`colour` is not known"),
            ("serial,serial\nA,B", 1, 8, "twice"),
            ("serial,name\nA\n", 2, 1, "1 fields; the first line has 2"),
            ("serial,name\nA,B c\n", 2, 3, "name"),
            ("ekId,serial\n12,A\n", 2, 1, "ekId"),
            ("serial\nA\nA\n", 3, 1, "twice"),
            ("serial,name\nA,x\nB,x\n", 3, 3, "`x` is there twice"),
            ("ekId,serial\n,\n", 2, 1, "needs an ekId"),
            ("serial\n\"A\n", 2, 1, "not closed"),
            ("serial\n\"A\"b\n", 2, 4, "after a closing quote"),
            ("serial\nA\"b\n", 2, 2, "a quote inside"),
            ("serial\nA\rB\n", 2, 3, "carriage return"),
            ("serial,label:site\nA,hall 3\n", 2, 3, "label `site`"),
        ] {
            let error = csv(text).unwrap_err();
            assert_eq!(
                (error.line, error.column),
                (line, column),
                "{text:?}: {error}"
            );
            assert!(error.what.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn json_is_read_and_its_errors_have_places() {
        let read = |text: &str| read(ManifestFormat::Json, text);
        let entries = read(&format!(
            "[{{\"ekId\": \"{ID}\", \"labels\": {{\"site\": \"a\"}}}}, {{\"serial\": \"A\"}}]"
        ))
        .unwrap();
        assert_eq!(
            entries.iter().map(|entry| entry.line).collect::<Vec<_>>(),
            [1, 2]
        );
        for (text, line, column, part) in [
            (
                "[{\"serial\": \"A\"},\n {\"seriel\": \"B\"}]",
                2,
                10,
                "seriel",
            ),
            (
                "[{\"serial\": \"A\"},\n {\"serial\": \"A\"}]",
                2,
                2,
                "twice",
            ),
            ("[\n{}\n]", 2, 1, "needs an ekId"),
            ("{}", 1, 0, "expected a sequence"),
            ("[", 1, 1, "EOF"),
            ("[] x", 1, 4, "trailing"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(
                (error.line, error.column),
                (line, column),
                "{text:?}: {error}"
            );
            assert!(error.what.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_manifest_has_bounds() {
        let many = format!(
            "serial\n{}",
            (0..=MAX_MACHINES)
                .map(|n| format!("{n}\n"))
                .collect::<String>()
        );
        assert!(csv(&many).unwrap_err().what.contains("split it"));
        let wide = format!(
            "serial,{}\n",
            (0..40)
                .map(|n| format!("label:a{n}"))
                .collect::<Vec<_>>()
                .join(",")
        );
        assert!(csv(&wide).is_err());
    }
}
