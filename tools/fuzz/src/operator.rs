//! What the operator's command line reads: manifests, image layouts, and what controllers answer.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use jiff::Timestamp;
use operator_api::{List, ObjectMeta, Problem, TokenResponse, WatchEvent};
use protocol::digest::Digest;
use serde::Deserialize as _;
use serde_json::{Value, json};
use skerry::client::{Lines, said};
use skerry::content::{Source, layout};
use skerry::kinds::KINDS;
use skerry::manifest;
use skerry::output::Paint;
use skerry::output::describe::describe;
use skerry::output::table::Table;

use crate::Target;
use crate::feed::survives;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "manifest",
        about: "an operator's YAML or JSON: each object has a kind and a name, and as `-o yaml` writes it, it is read as itself",
        run: object_manifest,
        seeds: manifest_seeds,
    },
    Target {
        name: "oci-layout",
        about: "an OCI image layout: what is to be pushed lies in it, has its digest and its size, and comes after what it names",
        run: oci_layout,
        seeds: layout_seeds,
    },
    Target {
        name: "controller-reply",
        about: "a list, a watch's lines, a problem, a token: shown without control characters; lines are cut the same way, however they arrive",
        run: controller_reply,
        seeds: reply_seeds,
    },
];

fn object_manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(items) = manifest::parse(text, "input") else {
        return;
    };
    for item in items {
        assert!(item.object.is_object());
        assert_eq!(item.object["metadata"]["name"], item.name.as_str());
        assert_eq!(item.object["kind"], item.kind.name);
        let yaml = serde_yaml_ng::to_string(&item.object).expect("what was read can be written");
        let again = manifest::parse(&yaml, "output").expect("what was written can be read");
        let [again] = again.as_slice() else {
            panic!("{} objects in {yaml}", again.len());
        };
        assert_eq!(again.object, item.object, "{yaml}");
        assert_eq!(again.title(), item.title());
    }
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let app = "apiVersion: skerry.io/v1\nkind: App\nmetadata:\n  name: web\n  labels: {site: \"north\", on: 'yes'}\n\
               spec:\n  device: box-1\n  type: container\n  image: {datastore: demo, reference: \"x@sha256:00\"}\n\
               \x20 env: &env\n    A: b=c\n    N: 1.5e3\n  more: *env\n  userData: |\n    #cloud-config\n    runcmd: [a]\n";
    let two = format!(
        "---\n# a comment\n---\n{app}---\napiVersion: skerry.io/v1\nkind: Device\nmetadata: {{name: box-1}}\nspec: {{}}\n...\n"
    );
    let list = r#"{"apiVersion":"skerry.io/v1","kind":"DatastoreList","metadata":{"resourceVersion":"7"},"items":[
        {"apiVersion":"skerry.io/v1","kind":"Datastore","metadata":{"name":"demo"},
         "spec":{"type":"registry","url":"docker://registry.example:5000"}}]}"#;
    for (text, count) in [(app, 1), (&two, 2), (list, 1)] {
        assert_eq!(manifest::parse(text, "seed").unwrap().len(), count);
    }
    [app, &two, list]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// The index and the documents of a layout, which stand one after the other with a zero byte between them. Where one of
/// them names another one that comes after it, it says `@N` for its digest and `#N` for its size, counted from the
/// index: a change would else get no further than the first digest.
fn parts(data: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = data
        .split(|byte| *byte == 0)
        .take(10)
        .map(<[u8]>::to_vec)
        .collect();
    for at in (0..parts.len()).rev() {
        let (before, after) = parts.split_at_mut(at + 1);
        let Some(part) = before.last_mut() else {
            continue;
        };
        let mut whole = Vec::with_capacity(part.len());
        let mut rest = part.as_slice();
        while let Some((first, tail)) = rest.split_first() {
            let number = tail
                .first()
                .map(|digit| usize::from(digit.wrapping_sub(b'0')));
            let named = number
                .and_then(|number| number.checked_sub(at + 1))
                .and_then(|index| after.get(index));
            match (first, named) {
                (b'@', Some(named)) => whole.extend(Digest::of(named).to_string().bytes()),
                (b'#', Some(named)) => whole.extend(named.len().to_string().bytes()),
                _ => {
                    whole.push(*first);
                    rest = tail;
                    continue;
                }
            }
            rest = tail.get(1..).unwrap_or_default();
        }
        // Documents that name each other many times over must not grow without end here.
        whole.truncate(64 << 10);
        *part = whole;
    }
    parts
}

thread_local! {
    static LAYOUT: tempfile::TempDir = tempfile::tempdir().unwrap();
}

/// Makes the layout anew.
fn lay_out(dir: &Path, data: &[u8]) {
    let blobs = dir.join("blobs/sha256");
    let _ = fs::remove_dir_all(&blobs);
    fs::create_dir_all(&blobs).unwrap();
    for (number, part) in parts(data).iter().enumerate() {
        let path = match number {
            0 => dir.join("index.json"),
            _ => blobs.join(Digest::of(part).hex()),
        };
        fs::write(path, part).unwrap();
    }
}

fn oci_layout(data: &[u8]) {
    LAYOUT.with(|dir| {
        lay_out(dir.path(), data);
        let Ok(plan) = layout::plan(dir.path()) else {
            return;
        };
        let place = dir.path().join("blobs/sha256");
        let mut there: Vec<String> = Vec::new();
        for blob in &plan.blobs {
            let Source::File { path, size } = &blob.source else {
                panic!("a blob that is in no file: {blob:?}");
            };
            assert_eq!(path.parent(), Some(place.as_path()));
            let bytes = fs::read(path).unwrap();
            assert_eq!(bytes.len() as u64, *size);
            assert_eq!(Digest::of(&bytes), blob.digest);
            let digest = blob.digest.to_string();
            assert!(!there.contains(&digest), "{plan:?}");
            there.push(digest);
        }
        let mut manifests: Vec<String> = Vec::new();
        for manifest in &plan.manifests {
            assert_eq!(Digest::of(&manifest.bytes), manifest.digest);
            let own = manifest.digest.to_string();
            assert!(!manifest.media_type.is_empty());
            assert!(!manifests.contains(&own), "{plan:?}");
            // What nobody looks at in it need not be fit for a `Value`: half a surrogate pair, say.
            let document: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
            for (list, known) in [("manifests", &manifests), ("layers", &there)] {
                let named = document[list].as_array().into_iter().flatten();
                for digest in named.filter_map(|named| named["digest"].as_str()) {
                    assert!(
                        known.iter().any(|known| known == digest),
                        "{digest} in {plan:?}"
                    );
                }
            }
            manifests.push(own);
        }
        assert!(!plan.manifests.is_empty());
    });
}

fn layout_seeds() -> Vec<Vec<u8>> {
    let image = concat!(
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@1","size":#1}]}"#,
        "\0",
        r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@2","size":#2},"#,
        r#""layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@3","size":#3}]}"#,
        "\0{}\0layer",
    );
    let index = concat!(
        r#"{"manifests":[{"mediaType":"index","digest":"@1","size":#1}]}"#,
        "\0",
        r#"{"mediaType":"index","manifests":[{"mediaType":"a","digest":"@2","size":#2},{"mediaType":"b","digest":"@3","size":#3}]}"#,
        "\0",
        r#"{"config":{"digest":"@4","size":#4},"layers":[{"digest":"@5","size":#5},{"digest":"@5","size":#5}]}"#,
        "\0",
        r#"{"config":{"digest":"@4","size":#4},"layers":[{"digest":"@5","size":#5}],"x":1}"#,
        "\0{}\0layer",
    );
    let dir = tempfile::tempdir().unwrap();
    for (seed, manifests) in [(image, 1), (index, 3)] {
        lay_out(dir.path(), seed.as_bytes());
        assert_eq!(layout::plan(dir.path()).unwrap().manifests.len(), manifests);
    }
    [image, index].map(|seed| seed.as_bytes().to_vec()).to_vec()
}

/// Whether a terminal is safe from a text; several lines are allowed.
fn harmless(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() && c != '\t' && c != '\n')
}

/// An object as tables and descriptions show it, whichever kind it is.
fn show(object: &Value) {
    let _ = ObjectMeta::deserialize(object.get("metadata").unwrap_or(&Value::Null));
    for kind in &KINDS {
        let Ok(view) = kind.view(object, Timestamp::UNIX_EPOCH) else {
            continue;
        };
        assert_eq!(view.cells.len(), kind.titles().len());
        let rows = [view.cells];
        let line = Table::fitting(&rows, false).row(&rows[0], |_| Paint::Plain);
        assert!(harmless(&line) && !line.contains('\n'), "{line:?}");
    }
    let text = describe(object);
    assert!(harmless(&text), "{text:?}");
}

/// The lines of a body that comes in pieces of a size; none if one of them is too long.
fn cut(data: &[u8], piece: usize) -> Option<Vec<Vec<u8>>> {
    let pieces: Vec<_> = data
        .chunks(piece)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let mut lines = Lines::new(stream::iter(pieces), "read");
    let mut all = Vec::new();
    // Every piece is there, so that nothing is waited for.
    while let Some(line) = lines.next().now_or_never().unwrap().ok()? {
        all.push(line);
    }
    Some(all)
}

fn controller_reply(data: &[u8]) {
    if let Ok(list) = serde_json::from_slice::<List<Value>>(data) {
        list.items.iter().for_each(show);
    }
    if let Some(text) = said(data) {
        assert!(harmless(&text), "{text:?}");
    }
    if let Ok(problem) = serde_json::from_slice::<Problem>(data) {
        survives(&problem);
    }
    let _ = serde_json::from_slice::<TokenResponse>(data);
    let piece = data.len() % 13 + 1;
    let lines = cut(data, piece).unwrap();
    assert_eq!(cut(data, data.len().max(1)).unwrap(), lines);
    assert!(lines.iter().all(|line| !line.contains(&b'\n')));
    for line in lines {
        if let Ok(event) = serde_json::from_slice::<WatchEvent<Value>>(&line) {
            show(&event.object);
        }
    }
}

fn reply_seeds() -> Vec<Vec<u8>> {
    let condition = json!({"type": "Ready", "status": "True", "reason": "Running", "message": "",
        "lastTransitionTime": "2026-11-20T19:50:00Z"});
    let device = json!({
        "apiVersion": "skerry.io/v1", "kind": "Device",
        "metadata": {"name": "box-1", "creationTimestamp": "2026-11-20T19:50:00Z", "labels": {"site": "north"}},
        "spec": {"description": "by the door"},
        "status": {
            "phase": "Online", "attestation": {"conclusion": "unproven", "level": "bronze"}, "imageVersion": "0.1.0",
            "interfaces": [{"addresses": ["10.0.0.1"]}, {"uplink": true, "addresses": ["192.0.2.7"]}],
            "memory": {"totalKiB": 2_097_152, "availableKiB": 1_966_080},
            "config": {"wanted": "a", "applied": "b"}, "conditions": [condition],
        },
    });
    let app = json!({
        "apiVersion": "skerry.io/v1", "kind": "App", "metadata": {"name": "web"},
        "spec": {
            "device": "box-1", "type": "container", "image": {"datastore": "demo", "reference": "x"},
            "ports": [{"device": 8080, "app": 80}, {"device": 53, "app": 53, "protocol": "udp"}],
        },
        "status": {"phase": "Fetching", "progressPercent": 40, "restarts": 2, "message": "one\ntwo\u{1b}[2J",
            "memoryUsedKiB": 70000, "addresses": ["10.1.0.2"]},
    });
    let datastore = json!({
        "apiVersion": "skerry.io/v1", "kind": "Datastore", "metadata": {"name": "demo"},
        "spec": {"type": "registry", "url": "docker://registry.example:5000"},
    });
    for (object, kind) in [
        (&device, "Device"),
        (&app, "App"),
        (&datastore, "Datastore"),
    ] {
        let kind = KINDS.iter().find(|known| known.name == kind).unwrap();
        kind.view(object, Timestamp::UNIX_EPOCH).unwrap();
    }
    let list = json!({"apiVersion": "skerry.io/v1", "kind": "DeviceList", "metadata": {"resourceVersion": "7"},
        "items": [device, app, datastore]});
    let events = format!(
        "{}\n\n{}\n",
        json!({"type": "ADDED", "object": device}),
        json!({"type": "DELETED", "object": app})
    );
    let problem = json!({"type": "/problems/invalid", "title": "The object is not valid", "status": 422,
        "detail": "apps/web", "errors": [{"field": "spec.ports[0].device", "message": "is 0"}]});
    let seeds = vec![
        list.to_string(),
        events,
        problem.to_string(),
        json!({"token": "abc", "user": "admin", "expires": "2026-12-20T19:50:00Z"}).to_string(),
    ];
    assert!(serde_json::from_str::<List<Value>>(&seeds[0]).is_ok());
    for line in seeds[1].split("\n\n") {
        assert!(serde_json::from_str::<WatchEvent<Value>>(line).is_ok());
    }
    assert!(said(seeds[2].as_bytes()).is_some());
    assert!(serde_json::from_str::<TokenResponse>(&seeds[3]).is_ok());
    seeds.into_iter().map(String::into_bytes).collect()
}
