//! Whatever comes as a signed message is refused or opened, without a panic; and what opens is a message again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::certs::ControllerCerts;
use protocol::envelope::{Certificate, Envelope, MAX_REQUEST, decode};
use protocol::eve::certs::ZControllerCert;
use protocol::logs::Bundle;
use protocol::registration::Registration;

fuzz_target!(|data: &[u8]| {
    let Ok(envelope) = Envelope::parse(data, MAX_REQUEST) else { return };
    // The two replies and requests that are looked into before, or without, a signature check.
    if let Ok(set) = decode::<ZControllerCert>(envelope.payload_unchecked(), "ZControllerCert") {
        let _ = ControllerCerts::verify(&set, data, std::time::UNIX_EPOCH);
    }
    if let Ok(message) = decode(envelope.payload_unchecked(), "ZRegisterMsg") {
        if let Ok(registration) = Registration::from_wire(&message) {
            let _ = Certificate::of_device_pem(&registration.device_cert_pem);
        }
    }
    let _ = Bundle::decode(envelope.payload_unchecked());
    if let Some(Ok(certificate)) = envelope.sender_cert_pem().map(Certificate::of_device_pem) {
        let _ = envelope.open(&certificate);
    }
});
