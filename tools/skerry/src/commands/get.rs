//! `skerry get`: objects in a table, or as they are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use operator_api::{Boot, Device, List, Object as _, ObjectMeta, WatchEvent, WatchEventType};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::{Format, Get};
use crate::client::Client;
use crate::failure::Failure;
use crate::kinds::{Kind, Selection, select, text};
use crate::output::table::Table;
use crate::output::view::{Title, phase_paint};
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
        if !selector.takes_all() {
            let mut taken = Vec::with_capacity(objects.len());
            for object in objects {
                if selector.takes(&metadata(&object)?) {
                    taken.push(object);
                }
            }
            objects = taken;
        }
        all.push((selection.kind, objects));
    }
    // One object by name is shown as itself, everything else as a list.
    let single = match selections {
        [selection] if selection.names.len() == 1 && selection.kind.name != Boot::KIND => {
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
    if kind.name == Boot::KIND {
        return boots(client, selection).await;
    }
    if selection.names.is_empty() {
        let what = format!("get {}", kind.collection);
        let list = client.get(kind.collection, &[], &what).await?;
        // The objects themselves stay as they came: a newer controller's fields are shown, not lost.
        let list: List<Value> = serde_json::from_value(list).map_err(|error| {
            Failure::error(format!("{what}: {} gave no list: {error}", client.server()))
        })?;
        return Ok(list.items);
    }
    let mut objects = Vec::new();
    for name in &selection.names {
        let what = format!("get {} {name}", kind.singular());
        objects.push(client.get(&kind.path(name), &[], &what).await?);
    }
    Ok(objects)
}

/// Boots are found by their device.
async fn boots(client: &Client, selection: &Selection) -> Result<Vec<Value>, Failure> {
    if selection.names.is_empty() {
        return Err(Failure::usage(
            "the boots of which device? Write `skerry get boots DEVICE`",
        ));
    }
    let devices = Kind::find(Device::COLLECTION)
        .ok_or_else(|| Failure::error("devices are no kind of object"))?;
    let mut all = Vec::new();
    for device in &selection.names {
        let what = format!("get the boots of device {device}");
        let path = format!("{}/{}", devices.path(device), Boot::COLLECTION);
        let list = client.get(&path, &[], &what).await?;
        let list: List<Value> = serde_json::from_value(list).map_err(|error| {
            Failure::error(format!("{what}: {} gave no list: {error}", client.server()))
        })?;
        all.extend(list.items);
    }
    Ok(all)
}

/// What every object carries.
fn metadata(object: &Value) -> Result<ObjectMeta, Failure> {
    ObjectMeta::deserialize(object.get("metadata").unwrap_or(&Value::Null)).map_err(|error| {
        Failure::error(format!(
            "the controller gave an object whose metadata cannot be read: {error}"
        ))
    })
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

/// The columns of a table that are shown: which of a kind's, and their titles.
struct Shown(Vec<(usize, Title)>);

impl Shown {
    fn of(kind: &Kind, wide: bool) -> Self {
        let all = kind.titles().into_iter().enumerate();
        Self(all.filter(|(_, title)| wide || !title.wide).collect())
    }

    fn titles(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(_, title)| title.text.to_owned())
            .collect()
    }

    fn row(&self, kind: &Kind, object: &Value) -> Result<Vec<String>, Failure> {
        let cells = kind.view(object, Timestamp::now())?.cells;
        let cell = |(index, _): &(usize, Title)| cells.get(*index).cloned().unwrap_or_default();
        Ok(self.0.iter().map(cell).collect())
    }

    fn line(&self, table: &Table, cells: &[String]) -> String {
        table.row(cells, |index| match (self.0.get(index), cells.get(index)) {
            (Some((_, title)), Some(cell)) if title.text == "PHASE" => phase_paint(cell),
            _ => Paint::Plain,
        })
    }

    /// The cells of a row that do not change by themselves.
    fn still(&self, row: &[String]) -> Vec<String> {
        self.0
            .iter()
            .zip(row)
            .filter(|((_, title), _)| !["AGE", "SEEN"].contains(&title.text))
            .map(|(_, cell)| cell.clone())
            .collect()
    }
}

fn print_table(kind: &Kind, objects: &[Value], wide: bool, titles: bool) -> Result<(), Failure> {
    let shown = Shown::of(kind, wide);
    let mut rows = objects
        .iter()
        .map(|object| shown.row(kind, object))
        .collect::<Result<Vec<_>, _>>()?;
    if titles {
        rows.insert(0, shown.titles());
    }
    let table = Table::fitting(&rows, terminal::colours());
    rows.iter().try_for_each(|row| say(shown.line(&table, row)))
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
    let columns = Shown::of(kind, args.output == Some(Format::Wide));
    let head = columns.titles();
    // Room for what comes later, since the table cannot be laid out anew.
    let room: Vec<String> = head
        .iter()
        .map(|title| " ".repeat(title.len().max(12)))
        .collect();
    let table = Table::fitting(&[head.clone(), room], terminal::colours());
    let in_table = matches!(args.output, None | Some(Format::Wide));
    if in_table && !args.no_headers {
        say(columns.line(&table, &head))?;
    }
    let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = client
        .lines(kind.collection, &[("watch", "true".to_owned())], &what)
        .await?;
    while let Some(bytes) = lines.next().await? {
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let event: WatchEvent<Value> = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::error(format!(
                "{what}: {} sent no event: {error}",
                client.server()
            ))
        })?;
        let metadata = metadata(&event.object)?;
        let name = metadata.name.clone();
        if !(selection.names.is_empty() || selection.names.contains(&name))
            || !selector.takes(&metadata)
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
                let mut row = columns.row(kind, &event.object)?;
                if event.kind == WatchEventType::Deleted {
                    shown.remove(&name);
                    if let Some(phase) = head
                        .iter()
                        .position(|title| title == "PHASE")
                        .and_then(|i| row.get_mut(i))
                    {
                        *phase = "Deleted".to_owned();
                    }
                    say(columns.line(&table, &row))?;
                    continue;
                }
                let still = columns.still(&row);
                if shown.get(&name) != Some(&still) {
                    shown.insert(name, still);
                    say(columns.line(&table, &row))?;
                }
            }
        }
    }
    Err(Failure::error(format!(
        "{what}: {} ended the watch; run the command again",
        client.server()
    )))
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

    fn takes_all(&self) -> bool {
        self.0.is_empty()
    }

    fn takes(&self, metadata: &ObjectMeta) -> bool {
        self.0.iter().all(|(key, wanted)| {
            let found = metadata.labels.get(key);
            found.is_some() && (wanted.is_none() || found == wanted.as_ref())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select() {
        let mut metadata = ObjectMeta::named("x");
        for (key, value) in [("site", "hall-3"), ("empty", "")] {
            metadata.labels.insert(key.to_owned(), value.to_owned());
        }
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
                    .map(|selector| selector.takes(&metadata)),
                Some(takes),
                "{text}"
            );
        }
        assert!(
            !Selector::parse("site")
                .ok()
                .unwrap()
                .takes(&ObjectMeta::named("x"))
        );
        for bad in ["=x", "a,,b", ","] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }
}
