//! `skerry apply`: create or replace. All files are read before the first object is sent; what fails does not keep the
//! others back, and the exit code tells of the first failure.

use serde_json::Value;

use crate::cli::Apply;
use crate::client::Client;
use crate::failure::Failure;
use crate::kinds::text;
use crate::manifest::{self, Item};
use crate::terminal::say;

pub fn run(args: Apply, context: Option<&str>) -> Result<(), Failure> {
    let items = manifest::read(&args.files)?;
    let client = super::client(context)?;
    crate::runtime(async {
        let mut first_failure = None;
        for item in &items {
            match apply(&client, item).await {
                Ok(done) => say(format!("{} {done}", item.title()))?,
                Err(failure) if first_failure.is_none() => first_failure = Some(failure),
                Err(failure) => {
                    failure.report();
                }
            }
        }
        first_failure.map_or(Ok(()), Err)
    })
}

/// Sends one object; says what became of it.
async fn apply(client: &Client, item: &Item) -> Result<&'static str, Failure> {
    let path = item.kind.path(&item.name);
    let what = format!("apply {}", item.title());
    // A manifest with a resource version was read earlier and changed: it must not overwrite somebody else's change.
    let version = item
        .object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str);
    let before = client.find(&path, &what).await?;
    let put = client.put(&path, &item.object, version, &what).await?;
    Ok(match before {
        _ if put.created => "created",
        Some(before) if same(&before, &put.object) => "unchanged",
        _ => "configured",
    })
}

/// Whether the operator's part of two objects is the same.
fn same(before: &Value, after: &Value) -> bool {
    let part = |object: &Value, pointer| object.pointer(pointer).cloned().unwrap_or_default();
    text(before, "/metadata/uid") == text(after, "/metadata/uid")
        && ["/spec", "/metadata/labels", "/metadata/annotations"]
            .iter()
            .all(|pointer| part(before, pointer) == part(after, pointer))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_operators_part_counts() {
        let one = json!({"metadata": {"uid": "a", "resourceVersion": "1"}, "spec": {"x": 1}, "status": {"phase": "Pending"}});
        let later = json!({"metadata": {"uid": "a", "resourceVersion": "2"}, "spec": {"x": 1}, "status": {"phase": "Running"}});
        assert!(same(&one, &later));
        for change in [
            json!({"metadata": {"uid": "a"}, "spec": {"x": 2}}),
            json!({"metadata": {"uid": "b"}, "spec": {"x": 1}}),
            json!({"metadata": {"uid": "a", "labels": {"k": "v"}}, "spec": {"x": 1}}),
        ] {
            assert!(!same(&one, &change));
        }
    }
}
