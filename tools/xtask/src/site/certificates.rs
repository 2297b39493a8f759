//! A certificate authority of a site's own, as a firm's registry has one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Files of a TLS server: its certificate chain, its key, and the root that clients need.
pub struct ServerFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub root: PathBuf,
}

/// Makes a root and a server certificate for `names` (DNS names or addresses) in `dir`.
pub fn make(dir: &Path, names: &[&str]) -> Result<ServerFiles> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "Skerry demo registry root");
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Skerry demo registry");
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &root)?;

    let files = ServerFiles {
        certificate: dir.join("server.pem"),
        key: dir.join("server.key"),
        root: dir.join("root.pem"),
    };
    for (path, text) in [
        (&files.certificate, certificate.pem()),
        (&files.key, key.serialize_pem()),
        (&files.root, root.as_ref().pem()),
    ] {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(files)
}
