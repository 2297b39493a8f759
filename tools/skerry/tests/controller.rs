//! The program against the real `skerry-controller` on its embedded store.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, too"
)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use support::{Skerry, free_port, wait_for_port};

/// A running controller; ended when dropped.
struct Controller {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Controller {
    fn start() -> Self {
        let port = free_port();
        Self::start_as(port, &format!("127.0.0.1:{port}"))
    }

    /// One that listens on a port of its own and is called by another, as behind a forwarded port.
    fn start_as(port: u16, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{port}");
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut child = Command::new(PROGRAM.as_path())
            .args(["serve", "--listen", &address, "--name", name, "--data"])
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_for_port(port, &mut child, "skerry-controller");
        Self { child, dir, port }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn file(&self, name: &str) -> String {
        self.dir
            .path()
            .join("data")
            .join(name)
            .display()
            .to_string()
    }

    /// An operator who is logged in.
    fn operator(&self) -> Skerry {
        let skerry = Skerry::new();
        let (ca, password) = (self.file("pki/root.pem"), self.file("admin-password"));
        let ran = skerry.run(&[
            "login",
            &self.url(),
            "--ca",
            &ca,
            "--password-file",
            &password,
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        skerry
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The controller's program, beside ours. Cargo builds only this package for its tests, so it is asked, once, for the
/// other one, unless `cargo xtask test` has just built the whole workspace.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let ours = env!("CARGO_BIN_EXE_skerry");
    let program = PathBuf::from(ours).with_file_name("skerry-controller");
    if std::env::var_os("SKERRY_WORKSPACE_BUILT").is_some() {
        return program;
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--workspace", "--bins"]);
    if ours.contains("/release/") {
        build.arg("--release");
    }
    assert!(
        build.status().unwrap().success(),
        "skerry-controller does not build"
    );
    program
});

fn datastore(url: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\nkind: Datastore\nmetadata: {{name: demo, labels: {{site: hall-3}}}}\nspec: {{type: registry, url: '{url}'}}\n"
    )
}

#[test]
fn an_operators_day() {
    let controller = Controller::start();
    let skerry = controller.operator();
    let none = skerry.run(&["get", "devices"]);
    assert_eq!(
        (none.code, none.err.as_str()),
        (0, "there are no devices\n")
    );

    let mut watch = skerry
        .command(&["get", "datastores", "-w", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = BufReader::new(watch.stdout.take().unwrap()).lines();

    for (url, done) in [
        ("docker://192.0.2.1:5000", "created"),
        ("docker://192.0.2.1:5000", "unchanged"),
        ("docker://192.0.2.2:5000", "configured"),
    ] {
        let ran = skerry.run_with(&["apply", "-f", "-"], &datastore(url));
        assert_eq!(
            (ran.code, ran.out),
            (0, format!("datastore/demo {done}\n")),
            "{}",
            ran.err
        );
    }
    assert_eq!(seen.next().unwrap().unwrap(), "datastore/demo");
    watch.kill().unwrap();
    watch.wait().unwrap();

    let table = skerry.run(&["get", "ds", "-l", "site=hall-3"]);
    assert!(
        table
            .out
            .contains("demo   registry   docker://192.0.2.2:5000"),
        "{}",
        table.out
    );
    let one: Value =
        serde_json::from_str(&skerry.run(&["get", "ds/demo", "-o", "json"]).out).unwrap();
    assert_eq!(one["spec"]["url"], "docker://192.0.2.2:5000");
    let described = skerry.run(&["describe", "datastore", "demo"]);
    assert!(
        described.out.starts_with("Name:") && described.out.contains("site: hall-3"),
        "{}",
        described.out
    );

    // What was read can be applied again, but not over somebody else's change.
    let yaml = skerry.run(&["get", "ds", "demo", "-o", "yaml"]).out;
    assert_eq!(
        skerry.run_with(&["apply", "-f", "-"], &yaml).out,
        "datastore/demo unchanged\n"
    );
    assert_eq!(
        skerry
            .run_with(&["apply", "-f", "-"], &datastore("docker://192.0.2.3:5000"))
            .code,
        0
    );
    let stale = skerry.run_with(&["apply", "-f", "-"], &yaml);
    assert_eq!(stale.code, 1, "{stale:?}");

    assert_eq!(
        skerry.run(&["delete", "ds", "demo"]).out,
        "datastore/demo deleted\n"
    );
    assert_eq!(skerry.run(&["get", "ds", "demo"]).code, 3);
    assert_eq!(
        skerry
            .run(&["wait", "ds/demo", "--for", "delete", "--timeout", "5s"])
            .code,
        0
    );
}

#[test]
fn what_is_wrong_is_refused_by_field() {
    let controller = Controller::start();
    let skerry = controller.operator();
    let app = "apiVersion: skerry.io/v1\nkind: App\nmetadata: {name: web}\nspec:\n  device: box-1\n  type: container\n  \
               image: {datastore: demo, reference: hello}\n";
    let ran = skerry.run_with(&["apply", "-f", "-"], app);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("spec.image.reference"), "{}", ran.err);
    let ran = skerry.run_with(&["apply", "-f", "-"], &datastore("ftp://192.0.2.1"));
    assert!(ran.code == 1 && ran.err.contains("spec.url"), "{ran:?}");
    for absent in [
        &["logs", "web"][..],
        &["console", "web"],
        &["describe", "app", "web"],
        &["logs", "device/box-1"],
    ] {
        let ran = skerry.run(absent);
        assert_eq!(ran.code, 3, "{absent:?}: {ran:?}");
    }
}

#[test]
fn only_those_who_may_get_in() {
    let controller = Controller::start();
    let skerry = Skerry::new();
    let (url, ca) = (controller.url(), controller.file("pki/root.pem"));
    let untrusted = skerry.run_with(&["login", &url, "--password-stdin"], "x\n");
    assert_eq!(untrusted.code, 1, "{untrusted:?}");
    assert!(untrusted.err.contains("--ca"), "{}", untrusted.err);
    let wrong = skerry.run_with(&["login", &url, "--ca", &ca, "--password-stdin"], "guess\n");
    assert_eq!(wrong.code, 4, "{wrong:?}");
    for token in ["", "guess"] {
        let output = skerry
            .command(&["get", "apps"])
            .env("SKERRY_SERVER", &url)
            .env("SKERRY_CA", &ca)
            .env("SKERRY_TOKEN", token)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
    }
}

#[test]
fn the_image_bundle_is_one_that_makes_sticks() {
    let own = Controller::start();
    let own_name = format!("127.0.0.1:{}", own.port);
    let well_known = Controller::start_as(free_port(), "127.0.0.1:443");
    for (controller, name) in [(own, own_name.as_str()), (well_known, "127.0.0.1:443")] {
        let skerry = controller.operator();
        support::parts(&skerry.path("parts"));
        let ran = skerry.run(&["image", "build", "--parts", "parts", "-o", "stick.img"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.err.contains(&format!("at {name}")), "{}", ran.err);
        let line = format!("{name}\n");
        assert!(
            std::fs::read(skerry.path("stick.img"))
                .unwrap()
                .windows(line.len())
                .any(|bytes| bytes == line.as_bytes()),
            "{name} is not on the stick"
        );
    }
}

#[test]
fn who_may_enrol_is_said_by_manifests_keys_rules_and_makers() {
    let controller = Controller::start();
    let skerry = controller.operator();
    std::fs::write(
        skerry.path("Spring boxes.csv"),
        "serial,name,label:site\nSN-1,press,hall-3\nSN-2,,hall-3\n",
    )
    .unwrap();
    let import =
        |more: &[&str]| skerry.run(&[&["manifest", "import", "Spring boxes.csv"], more].concat());
    let bare = import(&[]);
    assert_eq!(
        bare.code, 2,
        "it must be said that it is not signed: {bare:?}"
    );
    let ran = import(&["--unsigned"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "manifest/spring-boxes created\n");
    assert!(
        ran.err.contains("2 machines, 0 of them enrolled"),
        "{ran:?}"
    );
    let table = skerry.run(&["get", "manifests"]).out;
    assert!(table.contains("spring-boxes   2"), "{table}");

    std::fs::write(skerry.path("bad.csv"), "serial,colour\nA,red\n").unwrap();
    let bad = skerry.run(&["manifest", "import", "bad.csv", "--unsigned"]);
    assert_eq!(bad.code, 1, "{bad:?}");
    assert!(bad.err.contains("line 1, column 8"), "{}", bad.err);

    std::fs::write(
        skerry.path("rule.yaml"),
        "apiVersion: skerry.io/v1\nkind: EnrolmentRule\nmetadata: {name: edge}\n\
         spec: {effect: admit, match: {product: 'Edge*', certified: true}}\n",
    )
    .unwrap();
    assert_eq!(skerry.run(&["apply", "-f", "rule.yaml"]).code, 0);
    let rules = skerry.run(&["get", "rules"]).out;
    assert!(rules.contains("product=Edge*,certified=true"), "{rules}");

    let root = controller.file("pki/root.pem");
    let makers = skerry.run(&["makers", "import", "example", &root]);
    assert_eq!(makers.out, "tpmmaker/example created\n", "{makers:?}");
    let boxes = skerry.run(&["makers", "import", "boxes", &root, "--machines"]);
    assert_eq!(boxes.out, "tpmmaker/boxes created\n", "{boxes:?}");
    let table = skerry.run(&["get", "makers"]).out;
    assert!(
        table.contains("machines") && table.contains("tpms"),
        "{table}"
    );
    let both = skerry.run(&["makers", "import", "example", &root, "--machines"]);
    assert_eq!(both.code, 2, "{both:?}");
    assert!(both.err.contains("is a maker of tpms"), "{}", both.err);
    // What is no list is refused with the field; none at all is said aloud.
    std::fs::write(skerry.path("no.crl"), [0x30, 0]).unwrap();
    let bad = skerry.run(&["makers", "revocations", "example", "no.crl"]);
    assert_eq!(bad.code, 1, "{bad:?}");
    assert!(bad.err.contains("spec.revocationLists[0]"), "{}", bad.err);
    let none = skerry.run(&["makers", "revocations", "example", "--none"]);
    assert_eq!(none.out, "tpmmaker/example configured\n", "{none:?}");
    let nobody = skerry.run(&["makers", "revocations", "nobody", "--none"]);
    assert_eq!(nobody.code, 3, "{nobody:?}");
    let wrong = skerry.run(&["reference", "import", "rule.yaml"]);
    assert_eq!(wrong.code, 1, "a rule is no reference: {wrong:?}");

    let nobody = skerry.run(&["get", "waiting"]);
    assert_eq!(nobody.err, "there are no waiting\n", "{nobody:?}");
    let unknown = skerry.run(&["approve", "acid", "bird", "cold"]);
    assert_eq!(unknown.code, 3, "{unknown:?}");
    let all = skerry.run(&["approve", "--all"]);
    assert_eq!((all.code, all.out.as_str()), (0, ""), "{all:?}");
    let boots = skerry.run(&["get", "boots", "box-9"]);
    assert_eq!(boots.code, 3, "{boots:?}");
    assert_eq!(skerry.run(&["get", "boots"]).code, 2);
}

#[test]
fn the_owners_root_key_is_used_by_commands_beside_a_controller_that_serves() {
    let controller = Controller::start();
    let owner = |arguments: &[&str]| {
        let output = Command::new(PROGRAM.as_path())
            .arg("owner")
            .args(arguments)
            .args(["--data", &controller.file("")])
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (good, shown) = owner(&["show"]);
    assert!(good && shown.contains("epoch       1"), "{shown}");
    let file = shown
        .lines()
        .find_map(|line| line.strip_prefix("  key       "))
        .unwrap()
        .to_owned();
    // The root's key goes into a safe.
    let safe = controller.file("safe.pem");
    std::fs::rename(&file, &safe).unwrap();
    let (good, away) = owner(&["delegate"]);
    assert!(!good && away.contains("--root-key"), "{away}");
    let (good, shown) = owner(&["delegate", "--root-key", &safe, "--days", "30"]);
    assert!(good && shown.contains("delegation  2"), "{shown}");
    let (good, shown) = owner(&["rotate"]);
    assert!(good && shown.contains("epoch       2"), "{shown}");
}
