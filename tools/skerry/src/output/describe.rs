//! Descriptions: an object for people, every field that the controller gave, with the ones that matter first.
//!
//! Field names are turned into words (`lastSeen` becomes "Last seen"), lists of small objects into tables. So a field that
//! a newer controller adds is shown without this program knowing it.

use serde_json::{Map, Value};

use crate::output::harmless;
use crate::output::table::Table;
use crate::terminal::Paint;

/// The description, many lines.
pub fn describe(object: &Value) -> String {
    let mut out = Vec::new();
    let metadata = object.get("metadata").and_then(Value::as_object);
    let mut head = Map::new();
    for (title, pointer) in [("name", "/metadata/name"), ("kind", "/kind")] {
        if let Some(value) = object.pointer(pointer) {
            head.insert(title.to_owned(), value.clone());
        }
    }
    for (key, value) in metadata
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.as_str() != "name")
    {
        head.insert(key.clone(), value.clone());
    }
    fields(&head, 0, &mut out);
    for part in ["spec", "status"] {
        match object.get(part) {
            Some(Value::Object(values)) if !values.is_empty() => {
                out.push(format!("{}:", words(part)));
                fields(values, 2, &mut out);
            }
            _ => {}
        }
    }
    out.join("\n")
}

/// Scalars first, on lines with their values side by side; then what has parts.
fn fields(values: &Map<String, Value>, indent: usize, out: &mut Vec<String>) {
    let space = " ".repeat(indent);
    let simple: Vec<(String, String)> = values
        .iter()
        .filter_map(|(key, value)| Some((words(key), scalar(value)?)))
        .collect();
    let width = simple
        .iter()
        .map(|(title, _)| title.chars().count())
        .max()
        .unwrap_or_default()
        + 1;
    for (title, text) in simple.iter().filter(|(_, text)| !text.is_empty()) {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let gap = " ".repeat(width - title.chars().count());
        out.push(format!("{space}{title}:{gap}{}", harmless(first)));
        out.extend(lines.map(|line| format!("{space}{}{}", " ".repeat(width + 1), harmless(line))));
    }
    for (key, value) in values {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push(format!("{space}{}:", words(key)));
                fields(inner, indent + 2, out);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                out.push(format!("{space}{}:", words(key)));
                rows(items, indent + 2, out);
            }
            _ => {}
        }
    }
}

/// A list of objects as a table; what has parts inside them is written as JSON.
fn rows(items: &[Value], indent: usize, out: &mut Vec<String>) {
    let mut titles: Vec<&String> = Vec::new();
    for key in items
        .iter()
        .filter_map(Value::as_object)
        .flat_map(Map::keys)
    {
        if !titles.contains(&key) {
            titles.push(key);
        }
    }
    let mut table = vec![titles.iter().map(|title| words(title)).collect::<Vec<_>>()];
    for item in items {
        let cell = |title: &&String| {
            item.get(title.as_str())
                .map(|value| scalar(value).unwrap_or_else(|| value.to_string()))
        };
        table.push(
            titles
                .iter()
                .map(|title| cell(title).unwrap_or_default())
                .collect(),
        );
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

/// A value without parts as text; lists of such values are joined.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => items
            .iter()
            .map(|item| if item.is_array() { None } else { scalar(item) })
            .collect::<Option<Vec<_>>>()
            .map(|all| all.join(", ")),
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
            "metadata": {"name": "web", "labels": {"site": "hall-3"}, "uid": "u"},
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
  site: hall-3
Spec:
  Device: box-1
  Resources:
    Cpus:       1
    Memory MiB: 128
  Ports:
    Device   App   Protocol
    8080     80
    53             udp
Status:
  Message:   two
             lines
  Addresses: 10.0.0.1, 10.0.0.2
  Restarts:  0
  Ready:     yes
  Conditions:
    Type    Status
    Ready   True
  New:"
        );
    }
}
