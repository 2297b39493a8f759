//! A maker of TPMs or of machines, with authorities of its own.

use onboarding::wire::Public;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData,
    RevokedCertParams, SerialNumber, SignatureAlgorithm, date_time_ymd,
};

/// An authority: its certificate and its key.
pub struct Authority {
    pub certificate: Certificate,
    params: CertificateParams,
    key: KeyPair,
}

struct Subject([u8; 65]);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn authority_params(name: &str, path: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(match path {
        Some(most) => BasicConstraints::Constrained(most),
        None => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// A root on P-384.
    pub fn root(name: &str, path: Option<u8>) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let params = authority_params(name, path);
        Self {
            certificate: params.self_signed(&key).unwrap(),
            params,
            key,
        }
    }

    /// A root that may sign certificates and no revocation lists.
    pub fn unable_to_revoke(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = authority_params(name, None);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self {
            certificate: params.self_signed(&key).unwrap(),
            params,
            key,
        }
    }

    /// An authority below this one, on P-256.
    pub fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = authority_params(name, None);
        let issuer = Issuer::from_params(&self.params, &self.key);
        Self {
            certificate: params.signed_by(&key, &issuer).unwrap(),
            params,
            key,
        }
    }

    /// The certificate of an endorsement key on P-256, long out of date; `change` makes another of it.
    pub fn endorse(&self, public: &Public, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        // The subject is empty; what the TPM is stands in a critical alternative name: tcg-at-tpmManufacturer, "id:54455354".
        let mut name = vec![
            0x30, 0x1c, 0xa4, 0x1a, 0x30, 0x18, 0x31, 0x16, 0x30, 0x14, 0x06, 0x05, 0x67, 0x81,
            0x05, 0x02, 0x01, 0x0c, 0x0b,
        ];
        name.extend(b"id:54455354");
        let mut name = CustomExtension::from_oid_content(&[2, 5, 29, 17], name);
        name.set_criticality(true);
        params.custom_extensions = vec![name];
        change(&mut params);
        self.sign(&params, public)
    }

    fn sign(&self, params: &CertificateParams, public: &Public) -> Vec<u8> {
        let point = public.p256_point().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        params
            .signed_by(&Subject(point.to_sec1()), &issuer)
            .unwrap()
            .der()
            .to_vec()
    }

    /// The certificate of the initial attestation key of a machine with this serial number, which never ends; `change` makes another of it.
    pub fn name_machine(
        &self,
        public: &Public,
        serial: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "Acme Box 9");
        name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), serial);
        params.not_before = date_time_ymd(2024, 1, 1);
        params.not_after = date_time_ymd(9999, 12, 31);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3])];
        change(&mut params);
        self.sign(&params, public)
    }

    /// A list of what this authority has revoked, by serial numbers, DER; the next one is due in 2002 (`change` makes another of it).
    pub fn revoke(
        &self,
        serials: &[&[u8]],
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> Vec<u8> {
        let mut params = CertificateRevocationListParams {
            this_update: date_time_ymd(2001, 1, 1),
            next_update: date_time_ymd(2002, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: date_time_ymd(2001, 2, 3),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut params);
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(&issuer).unwrap().der().to_vec()
    }

    pub fn der(&self) -> Vec<u8> {
        self.certificate.der().to_vec()
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }
}
