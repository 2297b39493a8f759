//! Descriptions: an object for people, every field that the controller gave, with the ones that matter first.
//!
//! Field names are turned into words (`lastSeen` becomes "Last seen"), lists of small objects into tables. So a field that
//! a newer controller adds is shown without this program knowing it.

use serde_json::{Map, Value};

use crate::output::harmless;
use crate::output::table::Table;
use crate::terminal::Paint;

/// Field names that come first, in this order; the others follow by the alphabet.
const LEADING: [&str; 11] = [
    "name",
    "kind",
    "type",
    "check",
    "time",
    "status",
    "conclusion",
    "level",
    "outcome",
    "reason",
    "message",
];

/// Fields whose keys are the operator's own words and stay as they are.
const OWN_WORDS: [&str; 3] = ["labels", "annotations", "env"];

/// The description, many lines.
pub fn describe(object: &Value) -> String {
    let mut out = Vec::new();
    let mut head = object
        .get("metadata")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if let Some(kind) = object.get("kind") {
        head.insert("kind".to_owned(), kind.clone());
    }
    fields(&head, 0, words, &mut out);
    for part in ["spec", "status"] {
        match object.get(part) {
            Some(Value::Object(values)) if !values.is_empty() => {
                out.push(format!("{}:", words(part)));
                fields(values, 2, words, &mut out);
            }
            _ => {}
        }
    }
    out.join("\n")
}

/// Keys in the order in which they are shown.
fn ordered<'a>(keys: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut keys: Vec<_> = keys.collect();
    keys.sort_by_key(|key| {
        (
            LEADING
                .iter()
                .position(|known| known == key)
                .unwrap_or(LEADING.len()),
            key.as_str(),
        )
    });
    keys.dedup();
    keys
}

/// Scalars first, on lines with their values side by side; then what has parts.
fn fields(
    values: &Map<String, Value>,
    indent: usize,
    title: fn(&str) -> String,
    out: &mut Vec<String>,
) {
    let space = " ".repeat(indent);
    let title = |key: &str| harmless(&title(key));
    let keys = ordered(values.keys());
    let get = |key: &&&String| values.get(key.as_str());
    let simple: Vec<(String, String)> = keys
        .iter()
        .filter_map(|key| Some((title(key), get(&key).and_then(scalar)?)))
        .filter(|(_, text)| !text.is_empty())
        .collect();
    let width = simple
        .iter()
        .map(|(title, _)| title.chars().count())
        .max()
        .unwrap_or_default()
        + 1;
    for (title, text) in &simple {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let gap = " ".repeat(width - title.chars().count());
        out.push(format!("{space}{title}:{gap}{}", harmless(first)));
        out.extend(lines.map(|line| format!("{space}{}{}", " ".repeat(width + 1), harmless(line))));
    }
    for key in &keys {
        match get(&key) {
            Some(Value::Object(inner)) if !inner.is_empty() => {
                out.push(format!("{space}{}:", title(key)));
                fields(
                    inner,
                    indent + 2,
                    if OWN_WORDS.contains(&key.as_str()) {
                        str::to_owned
                    } else {
                        words
                    },
                    out,
                );
            }
            Some(Value::Array(items)) if items.iter().any(Value::is_object) => {
                out.push(format!("{space}{}:", title(key)));
                rows(items, indent + 2, out);
            }
            _ => {}
        }
    }
}

/// A list of objects as a table; what has parts inside them is written as JSON.
fn rows(items: &[Value], indent: usize, out: &mut Vec<String>) {
    let titles = ordered(
        items
            .iter()
            .filter_map(Value::as_object)
            .flat_map(Map::keys),
    );
    let mut table = vec![titles.iter().map(|title| words(title)).collect::<Vec<_>>()];
    for item in items {
        let cell = |title: &&String| {
            item.get(title.as_str())
                .map(|value| scalar(value).unwrap_or_else(|| value.to_string()))
                .unwrap_or_default()
        };
        table.push(titles.iter().map(cell).collect());
    }
    let layout = Table::fitting(&table, false);
    out.extend(table.iter().map(|cells| {
        format!(
            "{}{}",
            " ".repeat(indent),
            layout.row(cells, |_| Paint::Plain)
        )
    }));
}

/// A value as text, if it fits on a line: lists of simple values are joined, lists of lists are written as JSON.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Array(items) if items.iter().any(Value::is_object) => None,
        Value::Array(items) if items.iter().any(Value::is_array) => Some(value.to_string()),
        // Sentences stand on lines of their own.
        Value::Array(items)
            if items
                .iter()
                .any(|item| item.as_str().is_some_and(|text| text.contains(' '))) =>
        {
            let lines: Vec<String> = items.iter().filter_map(scalar).collect();
            Some(lines.join("\n"))
        }
        Value::Array(items) => Some(
            items
                .iter()
                .filter_map(scalar)
                .collect::<Vec<_>>()
                .join(", "),
        ),
        Value::Object(inner) => inner.is_empty().then(String::new),
    }
}

/// `lastSeen` becomes `Last seen`; `memoryMiB` becomes `Memory MiB`; a label such as `example.com/line` stays.
fn words(key: &str) -> String {
    if !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return key.to_owned();
    }
    let (stem, unit) = ["KiB", "MiB", "GiB"]
        .iter()
        .find_map(|unit| {
            key.strip_suffix(unit)
                .filter(|stem| !stem.is_empty())
                .map(|stem| (stem, Some(*unit)))
        })
        .unwrap_or((key, None));
    let mut out = String::new();
    for (index, c) in stem.chars().enumerate() {
        match (index, c.is_ascii_uppercase()) {
            (0, _) => out.push(c.to_ascii_uppercase()),
            (_, true) => {
                out.push(' ');
                out.push(c.to_ascii_lowercase());
            }
            (_, false) => out.push(c),
        }
    }
    match unit {
        Some(unit) => format!("{out} {unit}"),
        None => out,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_become_words() {
        for (key, shown) in [
            ("lastSeen", "Last seen"),
            ("memoryMiB", "Memory MiB"),
            ("uid", "Uid"),
            ("type", "Type"),
            ("example.com/line", "example.com/line"),
            ("MiB", "Mi b"),
        ] {
            assert_eq!(words(key), shown);
        }
    }

    #[test]
    fn an_object_is_described_whole() {
        let app = json!({
            "apiVersion": "skerry.io/v1", "kind": "App",
            "metadata": {"name": "web", "labels": {"siteName": "hall-3"}, "uid": "u"},
            "spec": {"device": "box-1", "resources": {"cpus": 1, "memoryMiB": 128}, "ports": [{"device": 8080, "app": 80}, {"device": 53, "protocol": "udp"}]},
            "status": {
                "message": "two\nlines", "addresses": ["10.0.0.1", "10.0.0.2"], "restarts": 0, "ready": true,
                "conditions": [{"type": "Ready", "status": "True"}], "new": {"deep": [[1]]}
            }
        });
        assert_eq!(
            describe(&app),
            "\
Name: web
Kind: App
Uid:  u
Labels:
  siteName: hall-3
Spec:
  Device: box-1
  Ports:
    App   Device   Protocol
    80    8080
          53       udp
  Resources:
    Cpus:       1
    Memory MiB: 128
Status:
  Message:   two
             lines
  Addresses: 10.0.0.1, 10.0.0.2
  Ready:     yes
  Restarts:  0
  Conditions:
    Type    Status
    Ready   True
  New:
    Deep: [[1]]"
        );
    }
}
