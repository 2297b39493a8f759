//! `skerry get`: objects in a table, or as they are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use operator_api::WatchEventType;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::{Format, Get};
use crate::client::Client;
use crate::failure::Failure;
use crate::kinds::{Column, Kind, Selection, phase_paint, select, text};
use crate::output::table::Table;
use crate::terminal::{self, Paint, say};

pub fn run(args: Get, context: Option<&str>) -> Result<(), Failure> {
    let selections = select(&args.what)?;
    let selector = Selector::parse(args.selector.as_deref().unwrap_or_default())?;
    let client = super::client(context)?;
    crate::runtime(async {
        if args.watch {
            let [selection] = selections.as_slice() else {
                return Err(Failure::usage("--watch takes one kind of object"));
            };
            return watch(&client, &args, selection, &selector).await;
        }
        show(&client, &args, &selections, &selector).await
    })
}

async fn show(
    client: &Client,
    args: &Get,
    selections: &[Selection],
    selector: &Selector,
) -> Result<(), Failure> {
    let mut all = Vec::new();
    for selection in selections {
        let mut objects = fetch(client, selection).await?;
        objects.retain(|object| selector.takes(object));
        all.push((selection.kind, objects));
    }
    // One object by name is shown as itself, everything else as a list.
    let single = match selections {
        [selection] if selection.names.len() == 1 => {
            all.first().and_then(|(_, objects)| objects.first())
        }
        _ => None,
    };
    match args.output {
        Some(Format::Json) => say(format!(
            "{:#}",
            single.cloned().unwrap_or_else(|| as_list(&all))
        )),
        Some(Format::Yaml) => print_yaml(&single.cloned().unwrap_or_else(|| as_list(&all))),
        Some(Format::Name) => all
            .iter()
            .flat_map(|(kind, objects)| objects.iter().map(move |o| title(kind, o)))
            .try_for_each(say),
        wide @ (None | Some(Format::Wide)) => {
            let mut first = true;
            for (kind, objects) in &all {
                if objects.is_empty() {
                    terminal::note(format!("there are no {}", kind.collection));
                    continue;
                }
                if !std::mem::take(&mut first) {
                    say("")?;
                }
                print_table(kind, objects, wide.is_some(), !args.no_headers)?;
            }
            Ok(())
        }
    }
}

/// The objects of a selection as they are now.
pub async fn fetch(client: &Client, selection: &Selection) -> Result<Vec<Value>, Failure> {
    let kind = selection.kind;
    if selection.names.is_empty() {
        let mut list = client
            .get(kind.collection, &[], &format!("get {}", kind.collection))
            .await?;
        return match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(Failure::error(format!(
                "get {}: {} gave no list",
                kind.collection,
                client.server()
            ))),
        };
    }
    let mut objects = Vec::new();
    for name in &selection.names {
        let what = format!("get {} {name}", kind.singular());
        objects.push(client.get(&kind.path(name), &[], &what).await?);
    }
    Ok(objects)
}

/// `app/web`.
pub fn title(kind: &Kind, object: &Value) -> String {
    format!("{}/{}", kind.singular(), text(object, "/metadata/name"))
}

fn as_list(all: &[(&Kind, Vec<Value>)]) -> Value {
    let items: Vec<&Value> = all.iter().flat_map(|(_, objects)| objects).collect();
    let kind = match all {
        [(kind, _)] => format!("{}List", kind.name),
        _ => "List".to_owned(),
    };
    json!({"apiVersion": operator_api::API_VERSION, "kind": kind, "items": items})
}

fn print_yaml(value: &Value) -> Result<(), Failure> {
    let yaml = serde_yaml_ng::to_string(value)
        .map_err(|error| Failure::error(format!("cannot write YAML: {error}")))?;
    say(yaml.trim_end())
}

fn columns(kind: &Kind, wide: bool) -> Vec<&'static Column> {
    kind.columns
        .iter()
        .filter(|column| wide || !column.wide)
        .collect()
}

fn cells(columns: &[&Column], object: &Value) -> Vec<String> {
    let now = Timestamp::now();
    columns
        .iter()
        .map(|column| (column.cell)(object, now))
        .collect()
}

fn line(table: &Table, columns: &[&Column], cells: &[String]) -> String {
    table.row(cells, |index| {
        match (columns.get(index), cells.get(index)) {
            (Some(column), Some(cell)) if column.title == "PHASE" => phase_paint(cell),
            _ => Paint::Plain,
        }
    })
}

fn print_table(kind: &Kind, objects: &[Value], wide: bool, titles: bool) -> Result<(), Failure> {
    let columns = columns(kind, wide);
    let head: Vec<String> = columns
        .iter()
        .map(|column| column.title.to_owned())
        .collect();
    let mut rows: Vec<_> = objects
        .iter()
        .map(|object| cells(&columns, object))
        .collect();
    if titles {
        rows.insert(0, head);
    }
    let table = Table::fitting(&rows, terminal::colours());
    rows.iter()
        .try_for_each(|row| say(line(&table, &columns, row)))
}

/// One line of the controller's watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: WatchEventType,
    object: Value,
}

/// Shows every object there is, then each one again as it changes. A row that would look the same is not repeated.
async fn watch(
    client: &Client,
    args: &Get,
    selection: &Selection,
    selector: &Selector,
) -> Result<(), Failure> {
    let kind = selection.kind;
    let what = format!("watch {}", kind.collection);
    for name in &selection.names {
        client
            .get(
                &kind.path(name),
                &[],
                &format!("get {} {name}", kind.singular()),
            )
            .await?;
    }
    let columns = columns(kind, args.output == Some(Format::Wide));
    let head: Vec<String> = columns
        .iter()
        .map(|column| column.title.to_owned())
        .collect();
    // Room for what comes later, since the table cannot be laid out anew.
    let room: Vec<String> = head
        .iter()
        .map(|title| " ".repeat(title.len().max(12)))
        .collect();
    let table = Table::fitting(&[head.clone(), room], terminal::colours());
    let in_table = matches!(args.output, None | Some(Format::Wide));
    if in_table && !args.no_headers {
        say(line(&table, &columns, &head))?;
    }
    let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = client
        .lines(kind.collection, &[("watch", "true".to_owned())], &what)
        .await?;
    while let Some(bytes) = lines.next().await? {
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let event: Event = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::error(format!(
                "{what}: {} sent no event: {error}",
                client.server()
            ))
        })?;
        let name = text(&event.object, "/metadata/name");
        if !(selection.names.is_empty() || selection.names.contains(&name))
            || !selector.takes(&event.object)
        {
            continue;
        }
        match args.output {
            Some(Format::Json) => say(&event.object)?,
            Some(Format::Yaml) => {
                say("---")?;
                print_yaml(&event.object)?;
            }
            Some(Format::Name) => say(title(kind, &event.object))?,
            None | Some(Format::Wide) => {
                let mut row = cells(&columns, &event.object);
                if event.kind == WatchEventType::Deleted {
                    shown.remove(&name);
                    if let Some(phase) = columns
                        .iter()
                        .position(|column| column.title == "PHASE")
                        .and_then(|i| row.get_mut(i))
                    {
                        *phase = "Deleted".to_owned();
                    }
                    say(line(&table, &columns, &row))?;
                } else if still(&columns, &row) != shown.get(&name).cloned().unwrap_or_default() {
                    shown.insert(name, still(&columns, &row));
                    say(line(&table, &columns, &row))?;
                }
            }
        }
    }
    Err(Failure::error(format!(
        "{what}: {} ended the watch; run the command again",
        client.server()
    )))
}

/// The cells of a row that do not change by themselves.
fn still(columns: &[&Column], row: &[String]) -> Vec<String> {
    let moving = ["AGE", "SEEN"];
    columns
        .iter()
        .zip(row)
        .filter(|(column, _)| !moving.contains(&column.title))
        .map(|(_, cell)| cell.clone())
        .collect()
}

/// Labels that an object must have.
struct Selector(Vec<(String, Option<String>)>);

impl Selector {
    fn parse(text: &str) -> Result<Self, Failure> {
        let term = |term: &str| match term.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((
                key.to_owned(),
                Some(value.trim_start_matches('=').to_owned()),
            )),
            None if !term.is_empty() => Ok((term.to_owned(), None)),
            _ => Err(Failure::usage(format!(
                "`{term}` is no label: write KEY=VALUE or KEY"
            ))),
        };
        let terms = text
            .split(',')
            .map(str::trim)
            .filter(|_| !text.trim().is_empty());
        terms.map(term).collect::<Result<_, _>>().map(Self)
    }

    fn takes(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.0.iter().all(|(key, wanted)| {
            let found = labels
                .and_then(|labels| labels.get(key))
                .and_then(Value::as_str);
            found.is_some() && wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select() {
        let object = json!({"metadata": {"labels": {"site": "hall-3", "empty": ""}}});
        for (text, takes) in [
            ("", true),
            ("site=hall-3", true),
            ("site==hall-3", true),
            ("site", true),
            ("site=hall-3, empty", true),
            ("empty=", true),
            ("site=hall-4", false),
            ("site,other", false),
        ] {
            assert_eq!(
                Selector::parse(text)
                    .ok()
                    .map(|selector| selector.takes(&object)),
                Some(takes),
                "{text}"
            );
        }
        assert!(!Selector::parse("site").ok().unwrap().takes(&json!({})));
        for bad in ["=x", "a,,b", ","] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }
}
