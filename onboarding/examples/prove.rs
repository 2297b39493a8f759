//! Lets this machine prove itself to itself: makes an identity below a directory, goes through the whole attest exchange and
//! through enrolment with the verifier in the same process, and prints every verdict. The messages of the enrolment are left below the
//! directory: the seeds of the fuzz targets are such recordings, so the controller's keys here are fixed and no secret.
//!
//! ```text
//! prove DIRECTORY [TPM DEVICE, OR SOCKET OF AN EMULATOR [SERIAL NUMBER TO SAY]]
//! ```

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use onboarding::attest::{QuoteAnswer, Versions, device, verifier};
use onboarding::enrol::endorsement::Makers;
use onboarding::enrol::verifier::{CookieKey, Delegation, Known, read_evidence, read_hello};
use onboarding::enrol::{device as enrolling, verifier as enrolled};
use onboarding::eventlog;
use onboarding::keys::Identity;
use onboarding::smbios::Machine;
use onboarding::tpm::Tpm;
use p256::SecretKey;
use p256::pkcs8::EncodePrivateKey as _;
use prost::Message as _;
use protocol::digest::Digest;
use protocol::enrolment::owner::{self, Delegate, Pinned, root_hash};
use protocol::enrolment::wire::{DelegationPayload, GrantPayload, OwnerChain};
use protocol::keys::SoftwareSigner;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match prove() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("prove: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prove() -> Result<bool, Failure> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .ok_or("usage: prove DIRECTORY [TPM DEVICE [SERIAL NUMBER]]")?;
    let path = arguments.next().unwrap_or_else(|| Tpm::DEVICE.to_owned());

    let mut machine = Machine::read(Path::new("/"));
    machine.serial = arguments.next().unwrap_or(machine.serial);
    println!("machine: {machine:?}");
    let tpm = match Path::new(&path).exists() {
        true if fs::metadata(&path)?.file_type().is_socket() => {
            Some(Tpm::connect_unix(Path::new(&path))?)
        }
        true => Some(Tpm::open(Path::new(&path))?),
        false => None,
    };
    if let Some(tpm) = &tpm {
        println!("tpm: {:?}", tpm.properties()?);
        println!("tpm: {:?}", tpm.capabilities()?);
    }
    let started = Instant::now();
    let identity = Identity::open_or_create(Path::new(&directory), tpm)?;
    println!(
        "identity: {:?} in {:?}, device certificate {}, endorsement by {:?}",
        identity.protection(),
        started.elapsed(),
        identity.device_certificate().hash(),
        identity.endorsement().map(|endorsement| endorsement.maker),
    );

    let verifier::Request::Certificates(certificates) =
        verifier::read(&device::certs_request(&identity))?
    else {
        return Err("the request with certificates was read as another".into());
    };
    certificates.check(identity.device_certificate().der())?;

    let log = std::fs::read(eventlog::PATH).ok();
    let nonce = device::read_nonce(&verifier::nonce_answer(&verifier::nonce()?))?;
    let versions = Versions {
        system: String::new(),
        firmware: machine.firmware(),
    };
    let started = Instant::now();
    let request = device::quote_request(&identity, &nonce, &versions, log.as_deref())?;
    println!("quote: made in {:?}", started.elapsed());
    let verifier::Request::Quote(submission) = verifier::read(&request)? else {
        return Err("the request with a quote was read as another".into());
    };
    let attestation = certificates.attestation.as_ref().map(|c| c.der.as_slice());
    let report = verifier::verify(&submission, attestation, Some(&nonce));
    for verdict in &report.verdicts {
        println!("verdict: {verdict}");
    }
    println!("boot: {:?}", report.boot);
    if let Some(log) = &log {
        for event in eventlog::parse(log)?.events {
            let described = eventlog::describe(&event);
            println!("event: {:?} {}", described.vouched, described.text);
        }
    }
    println!("conclusion: {:?}", report.conclusion());
    let enrolled = enrol(&identity, &machine, log.as_deref(), Path::new(&directory))?;
    Ok(enrolled
        && !matches!(
            verifier::refusal(&report),
            Some(QuoteAnswer::Refused | QuoteAnswer::NonceMismatch | QuoteAnswer::NoCertificate)
        ))
}

/// The controller's clock.
const NOW_MS: i64 = 1_800_000_000_000;

fn signer(scalar: u8) -> Result<(SoftwareSigner, [u8; 65]), Failure> {
    let key = SecretKey::from_slice(&[scalar; 32])?.to_pkcs8_der()?;
    let signer = SoftwareSigner::from_pkcs8_der(key.as_bytes())?;
    let point = signer.public_point().try_into()?;
    Ok((signer, point))
}

/// Both flights of enrolment, with a controller of fixed keys.
fn enrol(
    identity: &Identity,
    machine: &Machine,
    log: Option<&[u8]>,
    directory: &Path,
) -> Result<bool, Failure> {
    let ((root, root_point), (signer, point)) = (signer(8)?, signer(9)?);
    let payload = DelegationPayload {
        epoch: 1,
        serial: 1,
        signing_key: point.to_vec(),
        not_after: NOW_MS / 1000 + 86_400,
    };
    let chain = OwnerChain {
        successions: vec![],
        delegation: Some(owner::delegation(&root, &root_point, &payload)?),
    };
    let pinned = Pinned {
        epoch: 1,
        root: root_hash(&root_point),
        next: Digest::of(b"the next root"),
        delegation: 0,
    };
    let keep = |name: &str, bytes: &[u8]| fs::write(directory.join(name), bytes);
    let cookie_key = CookieKey::new([7; 32]);

    let started = Instant::now();
    let session = enrolling::hello(identity, machine, "prove")?;
    println!("enrolment: hello made in {:?}", started.elapsed());
    keep("hello", session.bytes())?;
    let delegation = Delegation {
        signer: &signer,
        chain: &chain,
    };
    let started = Instant::now();
    let challenge = enrolled::challenge(
        &read_hello(session.bytes())?,
        &cookie_key,
        &delegation,
        NOW_MS,
        Duration::from_secs(300),
    )?;
    println!("enrolment: challenge made in {:?}", started.elapsed());
    keep("challenge", &challenge.encode_to_vec())?;
    let started = Instant::now();
    let answering = session.challenged(identity, &challenge, &pinned, 0, log)?;
    println!("enrolment: evidence made in {:?}", started.elapsed());
    keep("evidence", answering.evidence())?;
    let known = Known {
        cookie_key: &cookie_key,
        delegate: &Delegate::known(point, pinned),
        now_ms: NOW_MS,
        makers: &Makers::none(),
        machine_makers: &Makers::none(),
        warn: &[],
    };
    let started = Instant::now();
    let judged = enrolled::verify(&read_evidence(answering.evidence())?, &known);
    println!("enrolment: judged in {:?}", started.elapsed());
    for verdict in &judged.report.verdicts {
        println!("verdict: {verdict}");
    }
    println!("level: {}", judged.level.as_str_name());
    let Some(proven) = judged.proven else {
        return Ok(false);
    };
    println!("machine: {} ({})", proven.machine, proven.machine.words());
    let payload = GrantPayload {
        device_id: "7b1f4f5e-6f0e-4b39-9f0b-0f1d1b0d2c11".to_owned(),
        device_certificate: identity.device_certificate().der().to_vec(),
        level: judged.level.into(),
        server_time_ms: NOW_MS,
        ..GrantPayload::default()
    };
    let grant = enrolled::grant(&proven, &payload, &signer)?;
    keep("grant", &grant.encode_to_vec())?;
    Ok(answering.granted(identity, &grant)? == payload)
}
