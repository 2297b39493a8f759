//! Keys and certificates of a made-up controller.

use std::sync::Arc;

use protocol::certs;
use protocol::cipher::SoftwareAgreement;
use protocol::envelope::SoftwareSigner;
use protocol::eve::certs::ZControllerCert;
use protocol::keys::CertHash;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A root that signs the rest.
pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Root {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A leaf for `localhost`, valid in the years given.
    pub fn leaf(&self, years: (i32, i32)) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A certificate for somebody's key on P-256, DER.
    pub fn certify(&self, point: &[u8], years: (i32, i32)) -> Vec<u8> {
        // SubjectPublicKeyInfo of id-ecPublicKey on prime256v1 (RFC 5480), up to the point.
        let head: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let key = SubjectPublicKeyInfo::from_der(&[&head, point].concat()).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }

    pub fn tls(&self, years: (i32, i32)) -> Arc<rustls::ServerConfig> {
        let (certificate, key) = self.leaf(years);
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }

    pub fn signing(&self, years: (i32, i32)) -> Signing {
        let (certificate, key) = self.leaf(years);
        let (exchange, exchange_key) = self.leaf(years);
        let exchange_pem = exchange.pem().trim().to_owned();
        let pem = certificate.pem().trim().to_owned();
        Signing {
            signer: SoftwareSigner::from_pkcs8_der(&key.serialize_der()).unwrap(),
            set: certs::build(&pem, &[&exchange_pem], &[]),
            exchange: SoftwareAgreement::from_pkcs8_pem(&exchange_key.serialize_pem()).unwrap(),
            exchange_name: CertHash::of_pem_text(exchange_pem.as_bytes()),
            pem,
        }
    }
}

/// The key that replies are signed with.
pub struct Signing {
    pub signer: SoftwareSigner,
    pub pem: String,
    pub set: ZControllerCert,
    /// The key that cipher blocks are made with, and its certificate's name.
    pub exchange: SoftwareAgreement,
    pub exchange_name: CertHash,
}
