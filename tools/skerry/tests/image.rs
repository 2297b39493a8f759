//! `skerry image build`, with parts made for the test and a bundle from a file or from the controller.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, too"
)]

mod support;

use serde_json::{Value, json};
use support::Skerry;
use support::scripted::{Answer, Scripted};

fn bundle() -> Value {
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    json!({
        "server": "controller.example:8443",
        "rootCertificate": pem("CERTIFICATE"),
        "tlsRootCertificates": pem("CERTIFICATE"),
        "onboardCertificate": pem("CERTIFICATE"),
        "onboardKey": pem("PRIVATE KEY"),
        "builtAt": "2026-11-20T19:50:00Z"
    })
}

fn skerry_with_parts() -> Skerry {
    let skerry = Skerry::new();
    support::parts(&skerry.path("parts"));
    skerry
}

#[test]
fn a_stick_is_made_with_a_bundle_from_a_file_or_from_the_controller() {
    let server = Scripted::start(|request| match request.line.as_str() {
        "GET imagebundle?enrolment=zeroTouch%2Ceve" => Answer::Json(200, bundle()),
        other => panic!("{other}"),
    });
    let skerry = skerry_with_parts();
    std::fs::write(skerry.path("bundle.json"), bundle().to_string()).unwrap();
    let from_file = skerry.run(&[
        "image",
        "build",
        "--parts",
        "parts",
        "--bundle",
        "bundle.json",
        "-o",
        "one.img",
    ]);
    assert_eq!(from_file.code, 0, "{from_file:?}");
    assert!(from_file.out.starts_with("one.img ("), "{}", from_file.out);
    assert!(
        from_file.err.contains("at controller.example:8443"),
        "{}",
        from_file.err
    );

    let from_controller = skerry
        .command(&["image", "build", "--parts", "parts", "-o", "two.img"])
        .env("SKERRY_SERVER", server.url())
        .output()
        .unwrap();
    assert!(from_controller.status.success(), "{from_controller:?}");
    let image = std::fs::read(skerry.path("one.img")).unwrap();
    assert!(
        image
            .windows(24)
            .any(|bytes| bytes == b"controller.example:8443\n")
    );
    assert!(
        image == std::fs::read(skerry.path("two.img")).unwrap(),
        "the same parts and bundle make the same stick"
    );
}

#[test]
fn what_is_wrong_makes_no_stick() {
    let skerry = skerry_with_parts();
    let build = |bundle: &str| {
        let ran = skerry.run(&[
            "image",
            "build",
            "--parts",
            "parts",
            "--bundle",
            bundle,
            "-o",
            "stick.img",
        ]);
        assert!(!skerry.path("stick.img").exists());
        ran
    };
    assert_eq!(build("absent.json").code, 3);
    let mut bad = bundle();
    bad["server"] = json!("");
    std::fs::write(skerry.path("bad.json"), bad.to_string()).unwrap();
    let ran = build("bad.json");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.contains("bad.json") && ran.err.contains("server"),
        "{}",
        ran.err
    );

    std::fs::write(skerry.path("good.json"), bundle().to_string()).unwrap();
    std::fs::write(skerry.path("parts/root.img"), vec![6; 100_000]).unwrap();
    let ran = build("good.json");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("root.img"), "{}", ran.err);
}
