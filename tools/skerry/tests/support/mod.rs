//! What the component tests need: the program in a folder of its own, and servers.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, too"
)]

pub mod scripted;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imaging::Parts;
use imaging::digest::Digest;
use imaging::parts::{PartName, RootHash, Variant};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// The program, with its own folder and configuration, and an environment without settings of the user.
pub struct Skerry(tempfile::TempDir);

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Skerry {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skerry"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_clear()
            .env("SKERRY_CONFIG", self.path("config.yaml"))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "")
    }

    pub fn run_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its input may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Parts of an image in a new folder: of the right form, and nothing that starts.
pub fn parts(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for name in PartName::ALL {
        std::fs::write(dir.join(name.file_name()), vec![5; 100_000]).unwrap();
    }
    let hash = RootHash::new(Digest::of(b"root"));
    let version = "0.1.0".parse().unwrap();
    let parts = Parts::measure(dir, version, Variant::Production, hash, 8192).unwrap();
    parts.write(dir).unwrap();
}

/// A TCP port of the loopback address that nobody uses right now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A root and a server certificate under it for the loopback address.
pub fn certificates(dir: &Path) {
    let named = |name: &str, addresses: Vec<String>| {
        // OpenSSL takes a certificate for self-signed if its subject is its issuer's, so each has its own name.
        let mut params = CertificateParams::new(addresses).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let mut params = named("test root", Vec::new());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = named("test server", vec!["127.0.0.1".to_owned()])
        .signed_by(&key, &root)
        .unwrap();
    std::fs::write(dir.join("root.pem"), root.pem()).unwrap();
    std::fs::write(dir.join("server.pem"), server.pem()).unwrap();
    std::fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
}

/// Waits until something listens.
pub fn wait_for_port(port: u16, child: &mut Child, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{name} ended: {status}");
        }
        assert!(Instant::now() < deadline, "{name} does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Debian's docker-registry; ended when dropped.
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
    root: String,
}

impl Registry {
    pub fn start() -> Self {
        Self::launch("")
    }

    /// With one user, by HTTP basic authentication.
    pub fn start_with_password(user: &str, password: &str) -> Self {
        Self::launch(&format!("{user}:{}\n", bcrypt(password)))
    }

    fn launch(users: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| dir.path().join(name).display().to_string();
        certificates(dir.path());
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n  \
             tls: {{certificate: {}, key: {}}}\n",
            path("data"),
            path("server.pem"),
            path("server.key"),
        );
        if !users.is_empty() {
            std::fs::write(path("users"), users).unwrap();
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path("users")
            ));
        }
        std::fs::write(path("config.yml"), config).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is missing: apt-get install docker-registry");
        wait_for_port(port, &mut child, "docker-registry");
        let root = path("root.pem");
        Self {
            child,
            dir,
            address: format!("127.0.0.1:{port}"),
            root,
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    /// What lies at a path of its API, read by curl.
    pub fn get(&self, path: &str, accept: &str) -> Vec<u8> {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--cacert",
                &self.root,
                "--header",
                &format!("Accept: {accept}"),
            ])
            .arg(format!("https://{}/v2/{path}", self.address))
            .output()
            .expect("curl is missing: apt-get install curl");
        assert!(
            output.status.success(),
            "{path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bcrypt hash, which is the only one that the registry takes, by the C library's crypt through Perl.
fn bcrypt(password: &str) -> String {
    let output = Command::new("perl")
        .args([
            "-e",
            "print crypt($ARGV[0], '$2b$05$abcdefghijklmnopqrstuu')",
            password,
        ])
        .output()
        .expect("perl is missing: apt-get install perl-base");
    let hash = String::from_utf8(output.stdout).unwrap();
    assert!(
        hash.starts_with("$2"),
        "this system's crypt knows no bcrypt"
    );
    hash
}

/// SHA-256 in hexadecimal, by coreutils: not by the code under test.
pub fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// Reads a process's output until a line contains `text`, or panics after a while.
pub fn read_until(from: impl std::io::Read, text: &str) -> String {
    let mut seen = String::new();
    for line in BufReader::new(from).lines() {
        let line = line.unwrap();
        seen.push_str(&line);
        seen.push('\n');
        if line.contains(text) {
            return seen;
        }
    }
    panic!("it ended without `{text}`:\n{seen}");
}

/// Reads everything.
pub fn read_all(mut from: impl std::io::Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}
