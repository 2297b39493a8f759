//! What an image tells its device about enrolling: which ways to try, in which order, and for the zero-touch way whom the device
//! belongs to and which controller reads its first words.
//!
//! It is the object `enrolment` of the bundle's `skerry.json`. Whoever writes a stick, whoever gives out bundles and the device read
//! and write it with this module, strictly: a typing error in an owner's hash must not be found by an installer in the field.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::owner::Pinned;
use crate::cipher::Point;
use crate::digest::Digest;

/// A way of enrolling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Ours: no secret on the image.
    ZeroTouch,
    /// EVE's: the image's onboarding key vouches for the device.
    Eve,
}

impl Way {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ZeroTouch => "zeroTouch",
            Self::Eve => "eve",
        }
    }

    fn of(text: &str) -> Option<Self> {
        [Self::ZeroTouch, Self::Eve]
            .into_iter()
            .find(|way| way.name() == text)
    }
}

/// Whom a device of this image belongs to, and which controller reads its Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The owner at the time when the image was made.
    pub owner: Pinned,
    /// The controller's sealing key.
    pub controller: Point,
}

/// Ways of enrolling, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    order: Vec<Way>,
    home: Option<Home>,
}

/// A part that is missing or not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field} is not {wanted}")]
pub struct EnrolmentError {
    /// Its JSON name, from `enrolment` on.
    pub field: String,
    /// What it should be.
    pub wanted: &'static str,
}

impl Default for Enrolment {
    /// As images of other controllers have it, which say nothing of it.
    fn default() -> Self {
        Self {
            order: vec![Way::Eve],
            home: None,
        }
    }
}

impl Enrolment {
    /// Puts one together.
    ///
    /// # Errors
    /// [`EnrolmentError`] if `order` is empty or names a way twice, or has the zero-touch way and there is no `home`.
    pub fn new(order: Vec<Way>, home: Option<Home>) -> Result<Self, EnrolmentError> {
        let distinct = order
            .iter()
            .enumerate()
            .all(|(place, way)| order.iter().position(|other| other == way) == Some(place));
        if order.is_empty() || !distinct {
            return Err(wrong("order", ORDER));
        }
        if order.contains(&Way::ZeroTouch) && home.is_none() {
            return Err(wrong("owner", "there, although order has zeroTouch"));
        }
        Ok(Self { order, home })
    }

    /// The ways in their order.
    #[must_use]
    pub fn order(&self) -> &[Way] {
        &self.order
    }

    /// Whether a way is among them.
    #[must_use]
    pub fn has(&self, way: Way) -> bool {
        self.order.contains(&way)
    }

    /// Owner and controller; there whenever the zero-touch way is among them.
    #[must_use]
    pub fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`EnrolmentError`]: names the field.
    pub fn from_json(value: &Value) -> Result<Self, EnrolmentError> {
        let object = value.as_object().ok_or_else(|| wrong("", OBJECT))?;
        known(object, "", &["order", "owner", "controllerKey"])?;
        let order = object
            .get("order")
            .and_then(Value::as_array)
            .and_then(|order| {
                let ways = order.iter().map(|way| Way::of(way.as_str()?));
                ways.collect::<Option<Vec<_>>>()
            })
            .ok_or_else(|| wrong("order", ORDER))?;
        let home = match (object.get("owner"), object.get("controllerKey")) {
            (None, None) => None,
            (owner, key) => Some(Home {
                owner: owner_from(owner.ok_or_else(|| wrong("owner", OBJECT))?)?,
                controller: key
                    .and_then(Value::as_str)
                    .and_then(point_from)
                    .ok_or_else(|| wrong("controllerKey", KEY))?,
            }),
        };
        Self::new(order, home)
    }

    /// Writes it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let order: Vec<&str> = self.order.iter().map(|way| way.name()).collect();
        let mut object = Map::new();
        object.insert("order".to_owned(), json!(order));
        if let Some(Home { owner, controller }) = &self.home {
            object.insert(
                "owner".to_owned(),
                json!({"epoch": owner.epoch, "root": owner.root, "next": owner.next}),
            );
            object.insert(
                "controllerKey".to_owned(),
                json!(hex::encode(controller.to_sec1())),
            );
        }
        Value::Object(object)
    }
}

const ORDER: &str = "a list of \"zeroTouch\" and \"eve\", each once at most, and one at least";
const OBJECT: &str = "an object";
const KEY: &str = "a point on P-256: 130 lower-case hexadecimal digits that begin with 04";
const HASH: &str = "sha256: and 64 lower-case hexadecimal digits";

fn wrong(field: &str, wanted: &'static str) -> EnrolmentError {
    let dot = if field.is_empty() { "" } else { "." };
    EnrolmentError {
        field: format!("enrolment{dot}{field}"),
        wanted,
    }
}

fn known(object: &Map<String, Value>, within: &str, fields: &[&str]) -> Result<(), EnrolmentError> {
    match object.keys().find(|key| !fields.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let key: String = key.chars().take(40).collect();
            let wanted = "a field that this version knows";
            Err(wrong(&format!("{within}{key}"), wanted))
        }
    }
}

fn owner_from(value: &Value) -> Result<Pinned, EnrolmentError> {
    let object = value.as_object().ok_or_else(|| wrong("owner", OBJECT))?;
    known(object, "owner.", &["epoch", "root", "next"])?;
    let hash = |name: &str| -> Option<Digest> { object.get(name)?.as_str()?.parse().ok() };
    Ok(Pinned {
        epoch: object
            .get("epoch")
            .and_then(Value::as_u64)
            .filter(|epoch| *epoch > 0)
            .ok_or_else(|| wrong("owner.epoch", "a number from 1 on"))?,
        root: hash("root").ok_or_else(|| wrong("owner.root", HASH))?,
        next: hash("next").ok_or_else(|| wrong("owner.next", HASH))?,
        delegation: 0,
    })
}

fn point_from(text: &str) -> Option<Point> {
    let mut bytes = [0; 65];
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Point::from_sec1(&bytes).ok()
}

impl Serialize for Enrolment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Enrolment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_json(&value).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::SoftwareAgreement;

    fn home() -> Home {
        Home {
            owner: Pinned {
                epoch: 3,
                root: Digest::of(b"root"),
                next: Digest::of(b"next"),
                delegation: 0,
            },
            controller: SoftwareAgreement::from_scalar(&[7; 32])
                .unwrap()
                .public_point()
                .unwrap(),
        }
    }

    #[test]
    fn what_is_written_is_read_as_itself() {
        let both = vec![Way::ZeroTouch, Way::Eve];
        for enrolment in [
            Enrolment::default(),
            Enrolment::new(both, Some(home())).unwrap(),
            Enrolment::new(vec![Way::ZeroTouch], Some(home())).unwrap(),
            Enrolment::new(vec![Way::Eve], Some(home())).unwrap(),
        ] {
            let text = serde_json::to_string(&enrolment).unwrap();
            assert_eq!(serde_json::from_str::<Enrolment>(&text).unwrap(), enrolment);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = Enrolment::new(vec![Way::ZeroTouch, Way::Eve], Some(home()))
            .unwrap()
            .to_json();
        type Spoil = fn(&mut Value);
        let table: [(&str, Spoil); 16] = [
            ("enrolment is not", |v| *v = json!("eve")),
            ("enrolment.order ", |v| v["order"] = json!([])),
            ("enrolment.order ", |v| v["order"] = json!(["eve", "eve"])),
            ("enrolment.order ", |v| v["order"] = json!(["zero-touch"])),
            ("enrolment.order ", |v| v["order"] = json!("eve")),
            ("enrolment.owner ", |v| v["owner"] = json!(null)),
            ("enrolment.owner ", |v| {
                v.as_object_mut().unwrap().remove("owner");
            }),
            ("enrolment.controllerKey ", |v| {
                v.as_object_mut().unwrap().remove("controllerKey");
            }),
            ("enrolment.controllerKey ", |v| {
                v["controllerKey"] = json!("04".repeat(65));
            }),
            ("enrolment.controllerKey ", |v| {
                v["controllerKey"] = json!(v["controllerKey"].as_str().unwrap().to_uppercase());
            }),
            ("enrolment.owner.epoch ", |v| v["owner"]["epoch"] = json!(0)),
            ("enrolment.owner.epoch ", |v| {
                v["owner"]["epoch"] = json!("1");
            }),
            ("enrolment.owner.root ", |v| {
                v["owner"]["root"] = json!("a".repeat(64));
            }),
            ("enrolment.owner.next ", |v| {
                v["owner"]["next"] = json!("sha256:00");
            }),
            ("enrolment.owner.delegation ", |v| {
                v["owner"]["delegation"] = json!(1);
            }),
            ("enrolment.ordre ", |v| v["ordre"] = json!([])),
        ];
        for (names, spoil) in table {
            let mut bad = good.clone();
            spoil(&mut bad);
            let error = Enrolment::from_json(&bad).unwrap_err().to_string();
            assert!(error.starts_with(names), "{names:?}: {error}");
        }
        // Both parts of a home gone.
        let error = Enrolment::from_json(&json!({"order": ["zeroTouch"]})).unwrap_err();
        assert_eq!(error.field, "enrolment.owner");
    }
}
