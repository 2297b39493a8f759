//! Lets this machine prove itself to itself: makes an identity below a directory, goes through the whole attest exchange
//! with the verifier in the same process, and prints every verdict.
//!
//! ```text
//! prove DIRECTORY [TPM DEVICE]
//! ```

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use onboarding::attest::{QuoteAnswer, Versions, device, verifier};
use onboarding::eventlog;
use onboarding::keys::Identity;
use onboarding::smbios::Machine;
use onboarding::tpm::Tpm;

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
        .ok_or("usage: prove DIRECTORY [TPM DEVICE]")?;
    let path = arguments.next().unwrap_or_else(|| Tpm::DEVICE.to_owned());

    let machine = Machine::read(Path::new("/"));
    println!("machine: {machine:?}");
    let tpm = match Path::new(&path).exists() {
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
    Ok(!matches!(
        verifier::refusal(&report),
        Some(QuoteAnswer::Refused | QuoteAnswer::NonceMismatch | QuoteAnswer::NoCertificate)
    ))
}
