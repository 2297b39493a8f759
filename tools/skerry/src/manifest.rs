//! Manifests: files with objects, YAML (several documents) or JSON, or lists of them.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use operator_api::API_VERSION;
use serde::Deserialize as _;
use serde_json::Value;

use crate::failure::Failure;
use crate::kinds::Kind;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// One object of a manifest.
pub struct Item {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its name.
    pub name: String,
    /// All of it.
    pub object: Value,
}

impl Item {
    /// `app/web`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.kind.singular(), self.name)
    }
}

/// Reads all objects of all files before anything is done with any of them. A folder means its `.yaml`, `.yml` and
/// `.json` files by name; `-` means standard input.
pub fn read(files: &[PathBuf]) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    for path in files {
        if path.as_os_str() == "-" {
            items.extend(parse(&slurp(std::io::stdin(), path)?, "standard input")?);
        } else if path.is_dir() {
            for file in manifests_in(path)? {
                items.extend(parse(&read_file(&file)?, &file.display().to_string())?);
            }
        } else {
            items.extend(parse(&read_file(path)?, &path.display().to_string())?);
        }
    }
    if items.is_empty() {
        return Err(Failure::usage("there is no object in what was given"));
    }
    Ok(items)
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).map_err(Failure::io("read", path))?;
    slurp(file, path)
}

fn slurp(from: impl std::io::Read, path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(Failure::io("read", path))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Failure::usage(format!(
            "{} has more than {MAX_FILE} bytes",
            path.display()
        )));
    }
    Ok(text)
}

fn manifests_in(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Failure::io("read", dir))? {
        let path = entry.map_err(Failure::io("read", dir))?.path();
        if path
            .extension()
            .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The objects in a text. JSON is YAML, so one parser serves both. `source` is what the text is from, for errors.
pub fn parse(text: &str, source: &str) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let place = format!("{source}, document {}", number + 1);
        let value = Value::deserialize(document)
            .map_err(|error| Failure::usage(format!("{place}: {error}")))?;
        if !value.is_null() {
            collect(value, &place, &mut items)?;
        }
    }
    Ok(items)
}

fn collect(value: Value, place: &str, items: &mut Vec<Item>) -> Result<(), Failure> {
    let fault = |reason: String| Failure::usage(format!("{place}: {reason}"));
    let word = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let Some(kind) = word("/kind") else {
        return Err(fault("it says no `kind`".to_owned()));
    };
    match word("/apiVersion") {
        Some(version) if version == API_VERSION => {}
        Some(version) => {
            return Err(fault(format!(
                "apiVersion `{version}` is not known; write {API_VERSION}"
            )));
        }
        None => {
            return Err(fault(format!(
                "it says no `apiVersion`; write {API_VERSION}"
            )));
        }
    }
    if let (true, Some(Value::Array(inner))) = (kind.ends_with("List"), value.get("items")) {
        for (number, item) in inner.iter().enumerate() {
            collect(
                item.clone(),
                &format!("{place}, item {}", number + 1),
                items,
            )?;
        }
        return Ok(());
    }
    let name = word("/metadata/name")
        .ok_or_else(|| fault(format!("the {kind} has no `metadata.name`")))?;
    let kind = Kind::of_object(&kind).ok_or_else(|| {
        let known: Vec<_> = crate::kinds::KINDS.iter().map(|kind| kind.name).collect();
        fault(format!(
            "kind `{kind}` is not known; known are {}",
            known.join(", ")
        ))
    })?;
    items.push(Item {
        kind,
        name,
        object: value,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    fn titles(text: &str) -> Result<Vec<String>, String> {
        let items = parse(text, "x.yaml").map_err(|failure| {
            assert_eq!(failure.exit(), Exit::Usage);
            failure.to_string()
        })?;
        Ok(items.iter().map(Item::title).collect())
    }

    const APP: &str = "apiVersion: skerry.io/v1\nkind: App\nmetadata: {name: web}\n";

    #[test]
    fn documents_lists_and_json_are_read() {
        assert_eq!(titles(APP).unwrap(), ["app/web"]);
        let two = format!(
            "---\n# a comment\n---\n{APP}---\napiVersion: skerry.io/v1\nkind: Device\nmetadata:\n  name: box-1\n---\n"
        );
        assert_eq!(titles(&two).unwrap(), ["app/web", "device/box-1"]);
        let json = r#"{"apiVersion":"skerry.io/v1","kind":"DatastoreList","items":[
            {"apiVersion":"skerry.io/v1","kind":"Datastore","metadata":{"name":"demo"}}]}"#;
        assert_eq!(titles(json).unwrap(), ["datastore/demo"]);
        assert_eq!(titles("").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, part) in [
            (
                "kind: App\nmetadata: {name: web}",
                "x.yaml, document 1: it says no `apiVersion`",
            ),
            ("apiVersion: v1\nkind: App", "apiVersion `v1`"),
            ("apiVersion: skerry.io/v1\nmetadata: {}", "no `kind`"),
            (
                "apiVersion: skerry.io/v1\nkind: App",
                "the App has no `metadata.name`",
            ),
            (
                "apiVersion: skerry.io/v1\nkind: Pod\nmetadata: {name: x}",
                "kind `Pod`",
            ),
            ("a: [", "document 1"),
            ("just text", "no `kind`"),
        ] {
            let error = titles(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(
            titles(&format!("{APP}---\nkind: 5"))
                .unwrap_err()
                .contains("document 2")
        );
    }

    #[test]
    fn folders_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for (file, name) in [("b.yaml", "b"), ("a.json", "a"), ("c.txt", "c")] {
            std::fs::write(dir.path().join(file), APP.replace("web", name)).unwrap();
        }
        let items = read(&[dir.path().to_owned()]).unwrap();
        assert_eq!(
            items.iter().map(Item::title).collect::<Vec<_>>(),
            ["app/a", "app/b"]
        );
        let absent = read(&[dir.path().join("no.yaml")]).err().unwrap();
        assert_eq!(absent.exit(), Exit::NotFound);
    }
}
