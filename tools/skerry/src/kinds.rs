//! The kinds of objects: what they are called, and where they are found. What their tables show stands in [`crate::output::view`].

use jiff::Timestamp;
use operator_api::{
    App, AttestationPolicy, Boot, BootReference, Datastore, Device, EnrolmentRule, Manifest,
    TpmMaker, TrustedKey, WaitingMachine,
};
use serde_json::Value;

use crate::failure::Failure;
use crate::output::view::{self, Title, View, Viewed};

/// A kind of object.
pub struct Kind {
    /// `kind` in an object.
    pub name: &'static str,
    /// Last part of the collection's path; also what people type.
    pub collection: &'static str,
    /// What else people type.
    aliases: &'static [&'static str],
    /// Titles of its table.
    titles: fn() -> Vec<Title>,
    /// Reads an object of this kind.
    view: fn(&Value, Timestamp) -> Result<View, serde_json::Error>,
}

/// All kinds.
pub static KINDS: [Kind; 11] = [
    Kind::of::<Device>(&["device", "dev"]),
    Kind::of::<App>(&["app"]),
    Kind::of::<Datastore>(&["datastore", "ds"]),
    Kind::of::<WaitingMachine>(&["waitingmachine", "waitingmachines"]),
    Kind::of::<Manifest>(&["manifest"]),
    Kind::of::<EnrolmentRule>(&["enrolmentrule", "rule", "rules"]),
    Kind::of::<TrustedKey>(&["trustedkey", "key", "keys"]),
    Kind::of::<TpmMaker>(&["tpmmaker", "maker", "makers"]),
    Kind::of::<AttestationPolicy>(&["attestationpolicy", "policy", "policies"]),
    Kind::of::<BootReference>(&["bootreference", "reference", "references"]),
    Kind::of::<Boot>(&["boot"]),
];

impl Kind {
    const fn of<T: Viewed>(aliases: &'static [&'static str]) -> Self {
        Self {
            name: T::KIND,
            collection: T::COLLECTION,
            aliases,
            titles: view::titles::<T>,
            view: view::view::<T>,
        }
    }

    /// Titles of the columns of its table.
    pub fn titles(&self) -> Vec<Title> {
        (self.titles)()
    }

    /// What a table shows of an object at a time.
    pub fn view(&self, object: &Value, now: Timestamp) -> Result<View, Failure> {
        (self.view)(object, now).map_err(|error| {
            Failure::error(format!(
                "the controller gave an object that is no {} as this program, version {}, knows them: {error}; \
                 -o json shows it as it is",
                self.name,
                env!("CARGO_PKG_VERSION")
            ))
        })
    }

    /// The kind that people call `word`.
    pub fn find(word: &str) -> Option<&'static Self> {
        let word = word.to_ascii_lowercase();
        KINDS
            .iter()
            .find(|kind| kind.collection == word || kind.aliases.contains(&word.as_str()))
    }

    /// The kind that objects call `name`.
    pub fn of_object(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// `app`, as it stands before a slash.
    pub fn singular(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// Path of one object below the API's prefix.
    pub fn path(&self, name: &str) -> String {
        // Only names that the controller takes get here unchanged; a slash or a question mark must not lead elsewhere.
        let safe: String = name
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        format!("{}/{safe}", self.collection)
    }
}

/// What a command is about: all objects of a kind, or some by name.
pub struct Selection {
    /// Which kind.
    pub kind: &'static Kind,
    /// Which names; all if empty.
    pub names: Vec<String>,
}

/// Reads `KIND`, `KIND NAME...` or `KIND/NAME...`. What belongs to one kind comes together, in the order given.
pub fn select(words: &[String]) -> Result<Vec<Selection>, Failure> {
    let unknown = |word: &str| {
        let known: Vec<_> = KINDS.iter().map(|kind| kind.collection).collect();
        Failure::usage(format!(
            "there is no kind of object `{word}`; known are {}",
            known.join(", ")
        ))
    };
    let Some((first, rest)) = words.split_first() else {
        return Err(Failure::usage(
            "which objects? Write KIND, KIND NAME or KIND/NAME",
        ));
    };
    if !first.contains('/') {
        let kind = Kind::find(first).ok_or_else(|| unknown(first))?;
        if let Some(mixed) = rest.iter().find(|name| name.contains('/')) {
            return Err(Failure::usage(format!(
                "`{first}` and `{mixed}` do not go together: write KIND NAME or KIND/NAME"
            )));
        }
        return Ok(vec![Selection {
            kind,
            names: rest.to_vec(),
        }]);
    }
    let mut selections: Vec<Selection> = Vec::new();
    for word in words {
        let Some((kind, name)) = word.split_once('/').filter(|(_, name)| !name.is_empty()) else {
            return Err(Failure::usage(format!("`{word}` is not KIND/NAME")));
        };
        let kind = Kind::find(kind).ok_or_else(|| unknown(kind))?;
        match selections
            .iter_mut()
            .find(|selection| selection.kind.name == kind.name)
        {
            Some(selection) => selection.names.push(name.to_owned()),
            None => selections.push(Selection {
                kind,
                names: vec![name.to_owned()],
            }),
        }
    }
    Ok(selections)
}

/// The value at a JSON pointer as text; empty if absent. For what is not of this program's making: manifests, and objects that go
/// through as they are.
pub fn text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_spelling_finds_its_kind() {
        for (word, name) in [
            ("devices", "Device"),
            ("device", "Device"),
            ("Dev", "Device"),
            ("APP", "App"),
            ("ds", "Datastore"),
        ] {
            assert_eq!(Kind::find(word).unwrap().name, name);
        }
        assert!(Kind::find("pods").is_none());
    }

    #[test]
    fn selections_are_read() {
        let read = |text| {
            let all = select(&words(text)).unwrap();
            all.into_iter()
                .map(|one| (one.kind.collection, one.names.join(" ")))
                .collect::<Vec<_>>()
        };
        assert_eq!(read("apps"), [("apps", String::new())]);
        assert_eq!(read("app web db"), [("apps", "web db".to_owned())]);
        assert_eq!(
            read("app/web ds/demo app/db"),
            [
                ("apps", "web db".to_owned()),
                ("datastores", "demo".to_owned())
            ]
        );
        for bad in [
            "",
            "pods",
            "pod/x",
            "app/",
            "app web ds/demo",
            "app/web demo",
        ] {
            assert_eq!(
                select(&words(bad)).err().map(|failure| failure.exit()),
                Some(Exit::Usage),
                "{bad}"
            );
        }
    }

    #[test]
    fn names_do_not_lead_elsewhere() {
        let kind = Kind::find("app").unwrap();
        assert_eq!(kind.path("web-1"), "apps/web-1");
        assert_eq!(
            kind.path("../devices?x=\u{e9}"),
            "apps/..%2Fdevices%3Fx%3D%C3%A9"
        );
    }
}
