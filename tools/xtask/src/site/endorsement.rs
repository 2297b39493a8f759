//! What a machine is called before anybody has switched it on: from the certificate of its TPM's endorsement key.

use anyhow::{Context, Result, bail};
use onboarding::enrol::MachineId;
use onboarding::tpm::template::{EkAlgorithm, endorsement_key};
use onboarding::wire::PublicKind;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

/// The machine's id, from the endorsement key's certificate (DER, RSA with 2048 bits, the TCG's template L-1).
pub fn machine_id(certificate: &[u8]) -> Result<MachineId> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).context("reading the endorsement certificate")?;
    let key = certificate
        .public_key()
        .parsed()
        .context("reading the endorsement key")?;
    let PublicKey::RSA(key) = key else {
        bail!("the endorsement certificate is not for an RSA key");
    };
    let mut public = endorsement_key(EkAlgorithm::Rsa2048);
    let PublicKind::Rsa { modulus, .. } = &mut public.kind else {
        bail!("the template is not of an RSA key");
    };
    // DER puts a zero before a number whose first bit is set.
    let digits = key.modulus.iter().copied().skip_while(|byte| *byte == 0);
    *modulus = digits.collect();
    Ok(MachineId::of_endorsement(&public))
}
