//! What can be seen of the program without a controller: help, exit codes, speed.

mod support;

use std::time::{Duration, Instant};

use support::{Skerry, free_port};

#[test]
fn help_names_commands_exit_codes_and_examples() {
    let skerry = Skerry::new();
    let help = skerry.run(&["--help"]);
    assert_eq!(help.code, 0);
    for word in [
        "login",
        "console",
        "Exit codes:",
        "5  timed out",
        "SKERRY_SERVER",
        "Examples:",
    ] {
        assert!(help.out.contains(word), "{word} is not in\n{}", help.out);
    }
    assert!(
        skerry
            .run(&["content", "push", "--help"])
            .out
            .contains("--oci-layout")
    );
}

#[test]
fn what_makes_no_sense_exits_with_2() {
    let skerry = Skerry::new();
    for arguments in [
        &["fly"][..],
        &["get"],
        &["get", "pods"],
        &["get", "devices", "-o", "xml"],
        &["delete", "app"],
        &["wait", "app/web", "--for", "happiness"],
        &[
            "wait",
            "app/web",
            "--for",
            "phase=Running",
            "--timeout",
            "soon",
        ],
        &["login", "http://controller.example.com"],
        &["login", "https://127.0.0.1:1"],
        &["content", "push", "127.0.0.1:1/x:1"],
        &["content", "push", "127.0.0.1:1/x:1", "--disk", "x"],
        &[
            "content",
            "push",
            "127.0.0.1:1/x:1",
            "--disk",
            "x",
            "--format",
            "raw",
            "--oci-layout",
            "y",
        ],
        &["logs", "datastore/demo"],
        &["get", "devices"],
    ] {
        let ran = skerry.run(arguments);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            ran.err
        );
        assert!(!ran.err.is_empty());
    }
}

#[test]
fn what_is_not_there_exits_with_3() {
    let skerry = Skerry::new();
    for arguments in [
        &["apply", "-f", "no-such-file.yaml"][..],
        &["context", "use", "nowhere"],
        &["get", "devices", "--context", "nowhere"],
        &[
            "content",
            "push",
            "127.0.0.1:1/x:1",
            "--oci-layout",
            "no-such-dir",
        ],
        &["image", "build", "--parts", ".", "-o", "stick.img"],
    ] {
        let ran = skerry.run(arguments);
        assert_eq!(ran.code, 3, "{arguments:?}: {}", ran.err);
        assert!(ran.err.starts_with("error: "), "{}", ran.err);
    }
}

#[test]
fn an_absent_controller_is_named() {
    let skerry = Skerry::new();
    let server = format!("http://127.0.0.1:{}", free_port());
    let ran = skerry.run_with(&["login", &server, "--password-stdin"], "secret\n");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.contains(&server) && ran.err.contains("is the controller running"),
        "{}",
        ran.err
    );

    let output = skerry
        .command(&["get", "apps"])
        .env("SKERRY_SERVER", &server)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let waited = skerry
        .command(&[
            "wait",
            "app/web",
            "--for",
            "phase=Running",
            "--timeout",
            "1s",
        ])
        .env("SKERRY_SERVER", &server)
        .output()
        .unwrap();
    assert_eq!(waited.status.code(), Some(5), "{waited:?}");
}

#[test]
fn manifests_are_read_before_anything_is_sent() {
    let skerry = Skerry::new();
    let ran = skerry.run_with(
        &["apply", "-f", "-"],
        "apiVersion: skerry.io/v1\nkind: Pod\nmetadata: {name: x}\n",
    );
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("standard input, document 1: kind `Pod` is not known"),
        "{}",
        ran.err
    );
}

#[test]
fn completion_is_made_for_shells() {
    let skerry = Skerry::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = skerry.run(&["completion", shell]);
        assert_eq!(script.code, 0);
        assert!(
            script.out.contains("skerry") && script.out.contains("console"),
            "{shell}"
        );
    }
}

#[test]
fn it_starts_at_once() {
    let skerry = Skerry::new();
    let fastest = (0..10)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(skerry.run(&["version"]).code, 0);
            begun.elapsed()
        })
        .min();
    assert!(fastest < Some(Duration::from_millis(50)), "{fastest:?}");
}
