//! The reference of the operator API, from its OpenAPI description: paths, then every object with its fields.

use serde_json::{Map, Value};

use super::{GENERATED, cell, table};

/// Objects come first, in the order in which people meet them; the parts of all follow by name.
const FIRST: [&str; 11] = [
    "Device",
    "App",
    "Datastore",
    "Manifest",
    "EnrolmentRule",
    "WaitingMachine",
    "TrustedKey",
    "TpmMaker",
    "AttestationPolicy",
    "BootReference",
    "Boot",
];

/// The page.
pub fn markdown(document: &Value) -> String {
    let mut out = format!("{GENERATED}\n\n# Operator API\n\n");
    if let Some(about) = document
        .pointer("/info/description")
        .and_then(Value::as_str)
    {
        out += &format!("{about}\n\n");
    }
    out += "A field that is not needed may be left out; what stands in for it is said if it matters. Units are part of a field's name or \
            stand in its description. The same as a document for programs: [openapi.json](openapi.json), and at `/openapi.json` of every \
            controller.\n\n## Paths\n\n";
    out += &table(&["Method", "Path", "What it does"], &paths(document));
    let empty = Map::new();
    let schemas = document
        .pointer("/components/schemas")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    // Lists differ in their items only, and the paths say whose they are.
    let mut names: Vec<&String> = schemas
        .keys()
        .filter(|name| !name.starts_with("List"))
        .collect();
    names.sort_by_key(|name| {
        let place = FIRST.iter().position(|first| first == name);
        (place.unwrap_or(FIRST.len()), name.as_str())
    });
    for name in names {
        if let Some(schema) = schemas.get(name) {
            out += &format!("## {name}\n\n{}", object(schema));
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn paths(document: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let all = document.get("paths").and_then(Value::as_object);
    for (path, item) in all.into_iter().flatten() {
        for method in ["get", "put", "post", "delete"] {
            let Some(operation) = item.get(method) else {
                continue;
            };
            let mut what = cell(text(operation, "summary"));
            let parameters = operation.get("parameters").and_then(Value::as_array);
            for parameter in parameters.into_iter().flatten() {
                let about = text(parameter, "description");
                if !about.is_empty() {
                    what += &format!(" `{}`: {}", text(parameter, "name"), cell(about));
                }
            }
            rows.push(vec![method.to_ascii_uppercase(), format!("`{path}`"), what]);
        }
    }
    rows
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// An object's description with its fields, or the values that it can have.
fn object(schema: &Value) -> String {
    let mut out = match text(schema, "description") {
        "" => String::new(),
        about => format!("{about}\n\n"),
    };
    let needed: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let fields = schema.get("properties").and_then(Value::as_object);
    let row = |(name, field): (&String, &Value)| {
        let need = match (needed.contains(&name.as_str()), field.get("default")) {
            (true, _) => "needed".to_owned(),
            (false, None | Some(Value::Null)) => String::new(),
            (false, Some(default)) => format!("default `{default}`"),
        };
        // Types that a sentence names are links in the code's own documentation only.
        let about = cell(&about(field).replace("[`", "`").replace("`]", "`"));
        vec![format!("`{name}`"), kind(field), need, about]
    };
    let rows: Vec<_> = fields.into_iter().flatten().map(row).collect();
    out += &table(&["Field", "Type", "", "Meaning"], &rows);
    if fields.is_none() {
        out += &format!("{}\n\n", kind(schema));
    }
    out
}

/// A field's description; that of one that may be null stands with what it is otherwise.
fn about(field: &Value) -> &str {
    match field.get("oneOf").and_then(Value::as_array) {
        Some(kinds) if text(field, "description").is_empty() => kinds
            .iter()
            .map(|kind| text(kind, "description"))
            .find(|about| !about.is_empty())
            .unwrap_or_default(),
        _ => text(field, "description"),
    }
}

/// A type in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let name = name.rsplit('/').next().unwrap_or(name);
        return format!("[{name}](#{})", name.to_ascii_lowercase());
    }
    for choice in ["oneOf", "anyOf", "allOf"] {
        if let Some(kinds) = schema.get(choice).and_then(Value::as_array) {
            let kinds: Vec<String> = kinds
                .iter()
                .filter(|one| text(one, "type") != "null")
                .map(kind)
                .collect();
            return kinds.join(" or ");
        }
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let values: Vec<String> = values
            .iter()
            .map(|value| format!("`{}`", value.as_str().unwrap_or_default()))
            .collect();
        return values.join(", ");
    }
    if let Some(items) = schema.get("items") {
        return format!("list of {}", kind(items));
    }
    if let Some(values) = schema
        .get("additionalProperties")
        .filter(|values| values.is_object())
    {
        return format!("map to {}", kind(values));
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(some)) => some
            .iter()
            .filter_map(Value::as_str)
            .filter(|one| *one != "null")
            .collect(),
        _ => vec!["anything"],
    };
    match text(schema, "format") {
        "" => types.join(" or "),
        "date-time" => "time (RFC 3339)".to_owned(),
        "uuid" => "UUID".to_owned(),
        "int32" | "int64" => "number".to_owned(),
        format => format!("{} ({format})", types.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_and_field_of_the_api_is_there() {
        let document = serde_json::to_value(operator_api::openapi::document()).unwrap();
        let page = markdown(&document);
        for part in [
            "| PUT | `/apis/skerry.io/v1/apps/{name}` |",
            "\n## Device\n",
            "| `spec` | [AppSpec](#appspec) | needed |",
            "| `env` | map to string |",
            "| `ports` | list of [PortMap](#portmap) |",
            "| `isolation` | [Isolation](#isolation) |",
            "`trusted`, `unproven`, `refused`",
            "| `lastSeen` | time (RFC 3339) |",
            "| `memoryMiB` | number | default `128` | Memory in MiB, from 32. |",
            "`microvm` if left out.",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let schemas = document.pointer("/components/schemas").unwrap();
        for (name, schema) in schemas.as_object().unwrap() {
            if name.starts_with("List") {
                continue;
            }
            assert!(page.contains(&format!("\n## {name}\n")), "{name}");
            let fields = schema.get("properties").and_then(Value::as_object);
            for field in fields.into_iter().flatten() {
                assert!(page.contains(&format!("| `{}` |", field.0)), "{name}");
            }
        }
        assert_eq!(page, markdown(&document), "the same each time");
    }
}
