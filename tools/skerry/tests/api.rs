//! The program against a scripted controller: what it sends, and how it takes each answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, too"
)]

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use serde_json::{Value, json};
use support::scripted::{Answer, Scripted};
use support::{Ran, Skerry};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

fn app(name: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "skerry.io/v1", "kind": "App",
        "metadata": {"name": name, "uid": "00000000-0000-4000-8000-000000000001", "resourceVersion": "7",
            "creationTimestamp": "2026-11-20T00:00:00Z", "labels": {"site": "hall-3"}},
        "spec": {"device": "box-1", "type": "vm", "image": {"datastore": "demo", "reference": "debian@sha256:00"}},
        "status": {"phase": phase, "restarts": 2, "message": "", "conditions": [
            {"type": "Ready", "status": if phase == "Running" { "True" } else { "False" }, "reason": phase,
                "lastTransitionTime": "2026-11-20T00:00:00Z"}]}
    })
}

fn list(kind: &str, items: Value) -> Value {
    json!({"apiVersion": "skerry.io/v1", "kind": kind, "metadata": {"resourceVersion": "7"}, "items": items})
}

fn problem(status: u16, detail: &str, errors: Value) -> Answer {
    Answer::Json(
        status,
        json!({"type": "/problems/x", "title": "X", "status": status, "detail": detail, "errors": errors}),
    )
}

/// Runs a command against a controller, with a token from the environment.
fn run(skerry: &Skerry, server: &Scripted, arguments: &[&str]) -> Ran {
    let output = skerry
        .command(arguments)
        .env("SKERRY_SERVER", server.url())
        .env("SKERRY_TOKEN", "token")
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn login_keeps_the_token_and_sends_it_from_then_on() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "POST tokens" if request.body["password"] == "secret" => Answer::Json(
            201,
            json!({"token": "t0ken", "user": "admin", "expires": "2030-01-01T00:00:00Z"}),
        ),
        "POST tokens" => problem(401, "the user name or the password is wrong", json!([])),
        _ if request.head.contains("authorization: bearer t0ken") => {
            Answer::Json(200, list("AppList", json!([])))
        }
        _ => problem(401, "no token", json!([])),
    });
    let skerry = Skerry::new();
    let url = server.url();
    let wrong = skerry.run_with(&["login", &url, "--password-stdin"], "guess\n");
    assert_eq!(wrong.code, 4, "{wrong:?}");
    assert!(
        wrong
            .err
            .contains("as admin: the user name or the password is wrong"),
        "{}",
        wrong.err
    );
    assert!(!skerry.path("config.yaml").exists());

    std::fs::write(skerry.path("password"), "secret\nmore").unwrap();
    let right = skerry.run(&[
        "login",
        &url,
        "--user",
        "admin",
        "--password-file",
        "password",
        "--context",
        "plant",
    ]);
    assert_eq!(right.code, 0, "{right:?}");
    assert!(!right.out.contains("t0ken"));
    let mode = std::fs::metadata(skerry.path("config.yaml"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let get = skerry.run(&["get", "apps"]);
    assert_eq!((get.code, get.err.as_str()), (0, "there are no apps\n"));
    let contexts = skerry.run(&["context", "list"]);
    assert!(
        contexts.out.contains("*   plant   http://127.0.0.1"),
        "{}",
        contexts.out
    );
    assert!(!contexts.out.contains("t0ken"));
    assert_eq!(skerry.run(&["context", "delete", "plant"]).code, 0);
    assert_eq!(skerry.run(&["get", "apps"]).code, 2);
}

#[test]
fn objects_are_shown_in_every_form() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "GET apps" => Answer::Json(
            200,
            list(
                "AppList",
                json!([app("db", "Failed"), app("web", "Running")]),
            ),
        ),
        "GET apps/web" => Answer::Json(200, app("web", "Running")),
        other => panic!("{other}"),
    });
    let skerry = Skerry::new();
    let get = |more: &[&str]| {
        let ran = run(&skerry, &server, &[&["get"], more].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    };
    let table = get(&["apps"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].starts_with("NAME   DEVICE   TYPE   PHASE     RESTARTS   PORTS"),
        "{table}"
    );
    assert!(
        lines[1].starts_with("db     box-1    vm     Failed    2"),
        "{table}"
    );
    assert_eq!(get(&["apps", "-o", "name"]), "app/db\napp/web\n");
    assert!(get(&["apps", "-o", "wide"]).contains("debian@sha256:00"));
    assert_eq!(get(&["apps", "-l", "site=elsewhere", "-o", "name"]), "");
    let list: Value = serde_json::from_str(&get(&["apps", "-o", "json"])).unwrap();
    assert_eq!(
        (&list["kind"], list["items"].as_array().unwrap().len()),
        (&json!("AppList"), 2)
    );
    let one: Value = serde_json::from_str(&get(&["app", "web", "-o", "json"])).unwrap();
    assert_eq!(one, app("web", "Running"));
    assert!(get(&["app/web", "-o", "yaml"]).contains("  device: box-1\n"));
    let described = run(&skerry, &server, &["describe", "app", "web"]);
    assert!(
        described.out.contains("Phase:    Running"),
        "{}",
        described.out
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|request| request.head.contains("authorization: bearer token"))
    );
}

#[test]
fn a_watch_shows_each_change_once() {
    let server = Scripted::start(|request| {
        assert_eq!(request.line, "GET apps?watch=true");
        let event = |kind: &str, app: Value| json!({"type": kind, "object": app}).to_string();
        Answer::Lines(vec![
            event("ADDED", app("web", "Fetching")),
            event("MODIFIED", app("web", "Fetching")),
            String::new(),
            event("MODIFIED", app("web", "Running")),
            event("DELETED", app("web", "Running")),
        ])
    });
    let ran = run(&Skerry::new(), &server, &["get", "apps", "-w"]);
    let phases: Vec<_> = ran
        .out
        .lines()
        .map(|line| line.split_whitespace().nth(3).unwrap())
        .collect();
    assert_eq!(
        phases,
        ["PHASE", "Fetching", "Running", "Deleted"],
        "{}",
        ran.out
    );
    // A watch that ends is a fault: nobody asked it to.
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("ended the watch"), "{}", ran.err);
}

#[test]
fn apply_says_what_became_of_each_object() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "GET apps/new" | "GET apps/bad" => problem(404, "there is no app", json!([])),
        "GET apps/same" | "GET apps/other" | "GET apps/stale" => {
            let name = request.line.rsplit('/').next().unwrap();
            Answer::Json(200, app(name, "Running"))
        }
        "PUT apps/new" => Answer::Json(201, request.body.clone()),
        "PUT apps/same" => Answer::Json(200, app("same", "Running")),
        "PUT apps/other" => {
            let mut changed = app("other", "Running");
            changed["spec"]["device"] = json!("box-2");
            Answer::Json(200, changed)
        }
        "PUT apps/stale" if request.head.contains("if-match: \"6\"") => {
            problem(409, "it was changed meanwhile", json!([]))
        }
        "PUT apps/bad" => problem(
            422,
            "1 field is wrong",
            json!([{"field": "spec.ports[0].device", "message": "0 is no port"}]),
        ),
        other => panic!("{other}"),
    });
    let skerry = Skerry::new();
    let document = |name: &str, more: &str| {
        format!(
            "---\napiVersion: skerry.io/v1\nkind: App\nmetadata: {{name: {name}{more}}}\nspec: {{device: box-1}}\n"
        )
    };
    std::fs::write(
        skerry.path("all.yaml"),
        [
            document("new", ""),
            document("bad", ""),
            document("same", ""),
            document("stale", ", resourceVersion: '6'"),
            document("other", ""),
        ]
        .concat(),
    )
    .unwrap();
    let ran = run(&skerry, &server, &["apply", "-f", "all.yaml"]);
    assert_eq!(
        ran.out,
        "app/new created\napp/same unchanged\napp/other configured\n"
    );
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("apply app/bad: 1 field is wrong\n  spec.ports[0].device: 0 is no port"),
        "{}",
        ran.err
    );
    assert!(
        ran.err
            .contains("apply app/stale: it was changed meanwhile"),
        "{}",
        ran.err
    );
}

#[test]
fn a_device_is_renamed_at_its_old_place() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "GET devices/box-1" => Answer::Json(
            200,
            json!({"apiVersion": "skerry.io/v1", "kind": "Device", "metadata": {"name": "box-1", "resourceVersion": "5"},
                "spec": {"description": "x"}}),
        ),
        "PUT devices/box-1" => Answer::Json(200, request.body.clone()),
        other => panic!("{other}"),
    });
    let ran = run(&Skerry::new(), &server, &["rename", "box-1", "press"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "device/box-1 is now device/press\n"),
        "{ran:?}"
    );
    let put = server.seen().pop().unwrap();
    assert!(put.head.contains("if-match: \"5\""));
    assert_eq!(
        (
            &put.body["metadata"]["name"],
            &put.body["spec"]["description"]
        ),
        (&json!("press"), &json!("x"))
    );
}

#[test]
fn refusals_and_absences_have_their_exit_codes() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "GET apps/secret" => problem(403, "you may not see it", json!([])),
        "GET apps/late" => problem(401, "the token is no longer good", json!([])),
        "DELETE apps/web" => Answer::Json(204, Value::Null),
        "GET apps/odd" => Answer::Json(200, json!("not an object")),
        "GET devices" => Answer::Json(500, Value::Null),
        "GET datastores" => Answer::Json(200, json!([])),
        _ => problem(404, "there is no such app", json!([])),
    });
    let skerry = Skerry::new();
    for (arguments, code, said) in [
        (
            &["get", "app", "secret"][..],
            4,
            "get app secret: you may not see it",
        ),
        (&["get", "app", "late"], 4, "log in again: skerry login"),
        (
            &["get", "app", "gone"],
            3,
            "get app gone: there is no such app",
        ),
        (&["get", "devices"], 1, "answered 500"),
        (&["get", "app", "odd"], 1, "is no App"),
        (&["get", "app", "odd", "-o", "json"], 0, ""),
        (&["get", "datastores"], 1, "gave no list"),
        (&["delete", "app", "web"], 0, ""),
        (&["delete", "app/web", "app/gone"], 3, "delete app/gone"),
        (&["delete", "app", "gone", "--ignore-not-found"], 0, ""),
        (&["logs", "gone"], 3, "read the log of app gone"),
        (&["console", "gone"], 3, "take up the console of app gone"),
        (
            &["wait", "app/secret", "--for", "phase=Running"],
            4,
            "wait for app secret",
        ),
    ] {
        let ran = run(&skerry, &server, arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(said), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn waiting_ends_when_the_state_is_reached_or_the_time_is_over() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let server = Scripted::start(|request| match request.line.as_str() {
        "GET apps/web" => match ASKED.fetch_add(1, Ordering::SeqCst) {
            0 => problem(404, "there is no such app", json!([])),
            1 => problem(503, "starting", json!([])),
            2 => Answer::Json(200, app("web", "Fetching")),
            _ => Answer::Json(200, app("web", "Running")),
        },
        "GET apps/slow" => Answer::Json(200, app("slow", "Fetching")),
        _ => problem(404, "there is no such app", json!([])),
    });
    let skerry = Skerry::new();
    let reached = run(
        &skerry,
        &server,
        &["wait", "app/web", "--for", "condition=Ready"],
    );
    assert_eq!(
        (reached.code, reached.out.as_str()),
        (0, "app/web: condition Ready is True\n"),
        "{reached:?}"
    );
    assert_eq!(ASKED.load(Ordering::SeqCst), 4);
    assert_eq!(
        run(
            &skerry,
            &server,
            &["wait", "app", "gone", "--for", "delete"]
        )
        .code,
        0
    );
    let begun = Instant::now();
    let late = run(
        &skerry,
        &server,
        &[
            "wait",
            "app/slow",
            "--for",
            "phase=Running",
            "--timeout",
            "1s",
        ],
    );
    assert_eq!(late.code, 5, "{late:?}");
    assert!(
        late.err
            .contains("last: phase Fetching, Ready False (Fetching)"),
        "{}",
        late.err
    );
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[test]
fn logs_come_line_by_line_and_a_reader_may_leave() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "GET apps/web/log?follow=true&tail=2" => {
            Answer::Lines(vec!["one".into(), "two \u{1b}[2J".into()])
        }
        "GET devices/box-1/log" => Answer::Lines((0..1000).map(|n| format!("line {n}")).collect()),
        other => panic!("{other}"),
    });
    let skerry = Skerry::new();
    let logs = run(&skerry, &server, &["logs", "-f", "web", "--tail", "2"]);
    assert_eq!((logs.code, logs.out.as_str()), (0, "one\ntwo \u{1b}[2J\n"));

    let mut child = skerry
        .command(&["logs", "device/box-1"])
        .env("SKERRY_SERVER", server.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 7]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}

/// Gives back what it gets, in capitals; ends when it gets "bye".
fn shout(mut socket: WebSocket<std::net::TcpStream>) {
    socket.send(Message::binary(&b"ready> "[..])).unwrap();
    while let Ok(message) = socket.read() {
        if let Message::Binary(bytes) = message {
            let bye = bytes.starts_with(b"bye");
            if socket
                .send(Message::binary(bytes.to_ascii_uppercase()))
                .is_err()
                || bye
            {
                let _ = socket.close(None);
                let _ = socket.flush();
            }
        }
    }
}

#[test]
fn a_script_can_use_a_console() {
    let server = Scripted::start(|request| {
        assert_eq!(request.line, "GET apps/debian/console");
        assert!(request.head.contains("authorization: bearer token"));
        Answer::Socket(shout)
    });
    let skerry = Skerry::new();
    let talk = |input: &str, idle: &str| {
        let mut child = skerry
            .command(&["console", "debian", "--idle", idle])
            .env("SKERRY_SERVER", server.url())
            .env("SKERRY_TOKEN", "token")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    // Ctrl-] is a byte like others where nobody types.
    assert_eq!(talk("hello\x1d\n", "300ms"), "ready> HELLO\x1d\n");
    let begun = Instant::now();
    assert_eq!(talk("bye\n", "1h"), "ready> BYE\n");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_person_can_use_a_console_and_leave_it() {
    let server = Scripted::start(|_| Answer::Socket(shout));
    let skerry = Skerry::new();
    let terminal = openpty(None, None).unwrap();
    let side = || Stdio::from(terminal.slave.try_clone().unwrap());
    let before = nix::sys::termios::tcgetattr(&terminal.slave).unwrap();
    let mut child = skerry
        .command(&["console", "debian"])
        .env("SKERRY_SERVER", server.url())
        .stdin(side())
        .stdout(side())
        .stderr(side())
        .spawn()
        .unwrap();
    let mut keys = File::from(terminal.master);
    let mut screen = String::new();
    let mut read_until = |keys: &mut File, text: &str| {
        let mut buffer = [0; 256];
        while !screen.contains(text) {
            let count = keys.read(&mut buffer).unwrap();
            screen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        screen.clone()
    };
    assert!(read_until(&mut keys, "ready> ").contains("console of debian; Ctrl-] leaves\r\n"));
    // In raw mode Ctrl-C is the guest's, and nothing is echoed by this side.
    keys.write_all(b"ab\x03").unwrap();
    let seen = read_until(&mut keys, "AB\x03");
    assert!(!seen.contains("ab"), "{seen:?}");
    keys.write_all(b"\x1d").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(
        nix::sys::termios::tcgetattr(&terminal.slave).unwrap(),
        before
    );
}

#[test]
fn machines_are_approved_by_words_ids_and_what_they_are() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "POST waiting/decisions" => Answer::Json(200, json!({"machines": ["0123456789ab"]})),
        other => panic!("{other}"),
    });
    let skerry = Skerry::new();
    for (arguments, body) in [
        (
            vec![
                "approve",
                "acid",
                "bird",
                "cold",
                "--name",
                "press",
                "--label",
                "site=hall-3",
            ],
            json!({"decision": "approve", "machines": ["acid bird cold"], "name": "press", "labels": {"site": "hall-3"}}),
        ),
        (
            vec!["deny", "waiting/0123456789ab"],
            json!({"decision": "deny", "machines": ["0123456789ab"]}),
        ),
        (
            vec!["approve", "--all"],
            json!({"decision": "approve", "match": {}}),
        ),
        (
            vec!["approve", "-l", "product=Edge*,certified=true"],
            json!({"decision": "approve", "match": {"product": "Edge*", "certified": true}}),
        ),
    ] {
        let ran = run(&skerry, &server, &arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        let done = if arguments[0] == "deny" {
            "denied"
        } else {
            "approved"
        };
        assert_eq!(ran.out, format!("waitingmachine/0123456789ab {done}\n"));
        assert_eq!(server.seen().last().unwrap().body, body);
    }
    for arguments in [
        vec!["approve"],
        vec!["approve", "--all", "acid"],
        vec!["approve", "-l", "colour=red"],
        vec!["approve", "acid", "--label", "site"],
    ] {
        assert_eq!(run(&skerry, &server, &arguments).code, 2, "{arguments:?}");
    }
}
