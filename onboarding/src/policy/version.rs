//! Versions of images, and which of them come later.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Version of an image, as `parts.json` has it: 1 to 64 of letters, digits, `.`, `_`, `~`, `^` and `-`, beginning with a letter or
/// digit. Ordered as the UAPI Group's Version Format Specification (UAPI.10) has it: `1.2~rc1` is before `1.2`, and `1.10` after `1.9`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageVersion(String);

/// The text cannot be a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an image's version: 1 to 64 of A-Z a-z 0-9 . _ ~ ^ -, beginning with a letter or digit"
)]
pub struct NotAVersion(String);

impl ImageVersion {
    /// The version's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageVersion {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let fits = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._~^-".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAVersion(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for ImageVersion {
    type Error = NotAVersion;

    fn try_from(text: String) -> Result<Self, NotAVersion> {
        text.parse()
    }
}

impl From<ImageVersion> for String {
    fn from(version: ImageVersion) -> Self {
        version.0
    }
}

impl fmt::Display for ImageVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Ord for ImageVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.0, &other.0)
    }
}

impl PartialOrd for ImageVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

// Equal in order is equal: `01` and `1` are the same version.
impl PartialEq for ImageVersion {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ImageVersion {}

/// The specification's steps, over and over until one decides.
fn compare(mut a: &str, mut b: &str) -> Ordering {
    let other = |c: char| !c.is_ascii_alphanumeric() && !"~^-.".contains(c);
    loop {
        a = a.trim_start_matches(other);
        b = b.trim_start_matches(other);
        // A tilde is before everything, the end included.
        if let Some(decided) = mark('~', &mut a, &mut b) {
            match decided {
                Ordering::Equal => continue,
                decided => return decided,
            }
        }
        if a.is_empty() || b.is_empty() {
            return (!a.is_empty()).cmp(&!b.is_empty());
        }
        if let Some(decided) = ['-', '^', '.']
            .into_iter()
            .find_map(|sign| mark(sign, &mut a, &mut b))
        {
            match decided {
                Ordering::Equal => continue,
                decided => return decided,
            }
        }
        let (decided, rest_a, rest_b) = if a.starts_with(is_digit) || b.starts_with(is_digit) {
            let (number_a, rest_a) = split(a, is_digit);
            let (number_b, rest_b) = split(b, is_digit);
            (numbers(number_a, number_b), rest_a, rest_b)
        } else {
            let (word_a, rest_a) = split(a, is_letter);
            let (word_b, rest_b) = split(b, is_letter);
            (word_a.cmp(word_b), rest_a, rest_b)
        };
        if decided != Ordering::Equal {
            return decided;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// If either begins with the sign: the one that does is before the other; both: it is skipped.
fn mark(sign: char, a: &mut &str, b: &mut &str) -> Option<Ordering> {
    match (a.strip_prefix(sign), b.strip_prefix(sign)) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(rest_a), Some(rest_b)) => {
            (*a, *b) = (rest_a, rest_b);
            Some(Ordering::Equal)
        }
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
}

fn split(text: &str, fits: fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !fits(c)).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// Numbers of any length; none at all is before zero.
fn numbers(a: &str, b: &str) -> Ordering {
    if a.is_empty() || b.is_empty() {
        return a.len().cmp(&b.len());
    }
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Which versions are meant: those of a list, those between two, or all if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Versions {
    /// The first of a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<ImageVersion>,
    /// The last of a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<ImageVersion>,
    /// Single ones, besides the range if there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<ImageVersion>,
}

impl Versions {
    /// Whether a version is among them.
    #[must_use]
    pub fn hold(&self, version: &ImageVersion) -> bool {
        let has_range = self.from.is_some() || self.to.is_some();
        let in_range = self.from.as_ref().is_none_or(|from| from <= version)
            && self.to.as_ref().is_none_or(|to| version <= to);
        if has_range && in_range {
            return true;
        }
        match self.only.is_empty() {
            true => !has_range,
            false => self.only.contains(version),
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = match (&self.from, &self.to) {
            (Some(from), Some(to)) => Some(format!("{from} to {to}")),
            (Some(from), None) => Some(format!("from {from} on")),
            (None, Some(to)) => Some(format!("up to {to}")),
            (None, None) => None,
        };
        let mut parts: Vec<String> = range.into_iter().collect();
        parts.extend(self.only.iter().map(ToString::to_string));
        if parts.is_empty() {
            f.write_str("any")
        } else {
            f.write_str(&parts.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ImageVersion {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_ordered_as_people_mean_them() {
        // Each is before the next one.
        let ladder = [
            "0.1.0~rc1",
            "0.1.0",
            "0.1.0.1",
            "0.1.1",
            "0.9",
            "0.10",
            "1~~",
            "1~",
            "1",
            "1-2",
            "1^2",
            "1.2",
            "1a",
            "1b",
            "2",
            "10",
            "99999999999999999999999",
            "100000000000000000000000",
        ];
        for (i, a) in ladder.iter().enumerate() {
            for (j, b) in ladder.iter().enumerate() {
                assert_eq!(version(a).cmp(&version(b)), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(version("01.2"), version("1.2"));
        assert_ne!(version("1_0"), version("1.0"));
    }

    #[test]
    fn versions_that_are_none_are_refused() {
        for text in ["", "-1", "1/2", "1 2", &"1".repeat(65), "\u{e9}"] {
            assert!(text.parse::<ImageVersion>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_and_a_list_hold_what_is_in_either() {
        let of = |from: &str, to: &str, only: &[&str]| Versions {
            from: (!from.is_empty()).then(|| version(from)),
            to: (!to.is_empty()).then(|| version(to)),
            only: only.iter().map(|text| version(text)).collect(),
        };
        for (versions, asked, holds, shown) in [
            (of("", "", &[]), "7", true, "any"),
            (of("1.2", "", &[]), "1.2", true, "from 1.2 on"),
            (of("1.2", "", &[]), "1.2~rc1", false, "from 1.2 on"),
            (of("1.2", "1.9", &[]), "1.10", false, "1.2 to 1.9"),
            (of("", "1.9", &["2.0"]), "2.0", true, "up to 1.9, 2.0"),
            (of("", "1.9", &["2.0"]), "1.0", true, "up to 1.9, 2.0"),
            (of("", "1.9", &["2.0"]), "1.9.1", false, "up to 1.9, 2.0"),
            (of("", "", &["2.0"]), "1.0", false, "2.0"),
        ] {
            assert_eq!(versions.hold(&version(asked)), holds, "{versions}: {asked}");
            assert_eq!(versions.to_string(), shown);
        }
    }
}
