//! The device's side of the attest exchange.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;
use protocol::eve::attest::{
    AttestStorageKeys, AttestVersionInfo, AttestVersionType, AttestVolumeKey, TpmHashAlgo,
    TpmPcrValue, ZAttestQuote, ZAttestReq, ZAttestReqType, ZAttestRespType, ZAttestResponse,
};
use protocol::eve::certs::{ZCert, ZCertAttr, ZCertMetaData, ZCertMetaDataType, ZCertType};
use protocol::eve::common::HashAlgorithm;

use super::{AttestError, MAX_QUOTE_REQUEST, NONCE_BYTES, QuoteAnswer, StoreKeysAnswer, Versions};
use crate::keys::{Certificate, Identity, Protection};
use crate::quote::{Evidence, Statement, parse};
use crate::tpm::PcrSelection;

/// How often to read and quote again because a PCR changed in between.
const ATTEMPTS: usize = 5;

/// Shows the device's certificates: ECDH always; attestation and endorsement with a TPM.
#[must_use]
pub fn certs_request(identity: &Identity) -> ZAttestReq {
    let is_tpm = identity.protection() == Protection::Tpm;
    let mut certs = vec![z_cert(
        identity.ecdh_certificate(),
        ZCertType::CertTypeDeviceEcdhExchange,
        is_tpm,
    )];
    if let Some(certificate) = identity.attestation_certificate() {
        certs.push(z_cert(
            certificate,
            ZCertType::CertTypeDeviceRestrictedSigning,
            is_tpm,
        ));
    }
    if let Some(endorsement) = identity.endorsement()
        && let Some(certificate) = &endorsement.certificate
    {
        let mut cert = z_cert(certificate, ZCertType::CertTypeDeviceEndorsementRsa, is_tpm);
        cert.meta_data_items.push(ZCertMetaData {
            r#type: ZCertMetaDataType::Tpm2Public.into(),
            meta_data: endorsement.public.to_sized_bytes(),
        });
        certs.push(cert);
    }
    ZAttestReq {
        req_type: ZAttestReqType::AttestReqCert.into(),
        certs,
        ..ZAttestReq::default()
    }
}

fn z_cert(certificate: &Certificate, kind: ZCertType, is_tpm: bool) -> ZCert {
    ZCert {
        hash_algo: HashAlgorithm::Sha25616bytes.into(),
        cert_hash: certificate.short_hash().as_bytes().to_vec(),
        r#type: kind.into(),
        cert: certificate.pem().as_bytes().to_vec(),
        attributes: Some(ZCertAttr {
            is_mutable: false,
            is_tpm,
        }),
        meta_data_items: vec![],
    }
}

/// Asks for a nonce.
#[must_use]
pub fn nonce_request() -> ZAttestReq {
    ZAttestReq {
        req_type: ZAttestReqType::AttestReqNonce.into(),
        ..ZAttestReq::default()
    }
}

/// Quotes the PCRs over `nonce` and puts everything into a request. Without a TPM the request tells versions only.
///
/// # Errors
/// [`AttestError::Tpm`], [`AttestError::Unsteady`].
pub fn quote_request(
    identity: &Identity,
    nonce: &[u8],
    versions: &Versions,
    event_log: Option<&[u8]>,
) -> Result<ZAttestReq, AttestError> {
    let mut quote = match make_evidence(identity, nonce, event_log)? {
        Some(evidence) => wire_quote(evidence),
        None => ZAttestQuote::default(),
    };
    quote.versions = [
        (AttestVersionType::Eve, &versions.system),
        (AttestVersionType::Firmware, &versions.firmware),
    ]
    .into_iter()
    .filter(|(_, version)| !version.is_empty())
    .map(|(kind, version)| AttestVersionInfo {
        version_type: kind.into(),
        version: version.clone(),
    })
    .collect();
    let mut request = ZAttestReq {
        req_type: ZAttestReqType::AttestReqQuote.into(),
        quote: Some(quote),
        ..ZAttestReq::default()
    };
    if request.encoded_len() > MAX_QUOTE_REQUEST
        && let Some(quote) = &mut request.quote
    {
        tracing::warn!(
            "the packed event log of {} bytes is too long for a request; sent without",
            quote.tpm_binary_event_log.len()
        );
        quote.tpm_binary_event_log = vec![];
    }
    Ok(request)
}

/// Reads and quotes PCRs of one and the same moment; `None` without a TPM.
///
/// # Errors
/// [`AttestError::Tpm`], [`AttestError::Unsteady`].
pub fn make_evidence(
    identity: &Identity,
    nonce: &[u8],
    event_log: Option<&[u8]>,
) -> Result<Option<Evidence>, AttestError> {
    let Some(tpm) = identity.tpm() else {
        return Ok(None);
    };
    for _ in 0..ATTEMPTS {
        let pcrs = tpm.pcr_read(PcrSelection::BOOT)?;
        let Some(quoted) = identity.quote(nonce)? else {
            return Ok(None);
        };
        let values: Vec<u8> = pcrs.iter().flat_map(|(_, value)| *value).collect();
        let same = match parse(&quoted.attest).map(|attest| attest.statement) {
            Ok(Statement::Quote { digest, .. }) => digest == protocol::keys::sha256(&values),
            // What the TPM says is for the verifier to judge.
            _ => true,
        };
        if same {
            return Ok(Some(Evidence {
                attest: quoted.attest,
                signature: quoted.signature.to_der(),
                pcrs,
                event_log: event_log.map(<[u8]>::to_vec),
            }));
        }
    }
    Err(AttestError::Unsteady)
}

fn wire_quote(evidence: Evidence) -> ZAttestQuote {
    ZAttestQuote {
        attest_data: evidence.attest,
        signature: evidence.signature,
        pcr_values: evidence
            .pcrs
            .into_iter()
            .map(|(index, value)| TpmPcrValue {
                index,
                hash_algo: TpmHashAlgo::Sha256.into(),
                value: value.to_vec(),
            })
            .collect(),
        tpm_binary_event_log: evidence.event_log.map(|log| gzip(&log)).unwrap_or_default(),
        ..ZAttestQuote::default()
    }
}

/// Packs an event log.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing into a vector does not fail; if it did, the log would be left out as a missing one is.
    match encoder.write_all(bytes).and_then(|()| encoder.finish()) {
        Ok(packed) => packed,
        Err(error) => {
            tracing::warn!("packing the event log: {error}");
            vec![]
        }
    }
}

/// Gives wrapped keys to the controller to keep.
#[must_use]
pub fn store_keys_request(integrity_token: Vec<u8>, keys: Vec<AttestVolumeKey>) -> ZAttestReq {
    ZAttestReq {
        req_type: ZAttestReqType::StoreKeys.into(),
        storage_keys: Some(AttestStorageKeys {
            integrity_token,
            keys,
        }),
        ..ZAttestReq::default()
    }
}

fn of_type(
    response: &ZAttestResponse,
    wanted: ZAttestRespType,
    expected: &'static str,
) -> Result<(), AttestError> {
    if response.resp_type == i32::from(wanted) {
        return Ok(());
    }
    Err(AttestError::OtherAnswer {
        expected,
        seen: response.resp_type,
    })
}

/// Reads the answer to [`certs_request`].
///
/// # Errors
/// [`AttestError::OtherAnswer`].
pub fn read_certs_answer(response: &ZAttestResponse) -> Result<(), AttestError> {
    of_type(
        response,
        ZAttestRespType::AttestRespCert,
        "certificates taken",
    )
}

/// Reads the nonce, 12 to 32 bytes.
///
/// # Errors
/// [`AttestError`].
pub fn read_nonce(response: &ZAttestResponse) -> Result<Vec<u8>, AttestError> {
    of_type(response, ZAttestRespType::AttestRespNonce, "a nonce")?;
    let nonce = response
        .nonce
        .as_ref()
        .map(|nonce| nonce.nonce.clone())
        .ok_or(AttestError::Missing("the nonce"))?;
    if !NONCE_BYTES.contains(&nonce.len()) {
        return Err(AttestError::Size {
            what: "the nonce",
            size: nonce.len(),
        });
    }
    Ok(nonce)
}

/// Reads the answer to a quote.
///
/// # Errors
/// [`AttestError`].
pub fn read_quote_answer(response: &ZAttestResponse) -> Result<QuoteAnswer, AttestError> {
    of_type(
        response,
        ZAttestRespType::AttestRespQuoteResp,
        "an answer to a quote",
    )?;
    let answer = response
        .quote_resp
        .as_ref()
        .ok_or(AttestError::Missing("the answer to the quote"))?;
    QuoteAnswer::from_wire(answer)
}

/// Reads the answer to keys given.
///
/// # Errors
/// [`AttestError`].
pub fn read_store_keys_answer(response: &ZAttestResponse) -> Result<StoreKeysAnswer, AttestError> {
    of_type(response, ZAttestRespType::StoreKeys, "an answer to keys")?;
    let answer = response
        .storage_keys_resp
        .as_ref()
        .ok_or(AttestError::Missing("the answer to keys"))?;
    StoreKeysAnswer::from_wire(answer)
}
