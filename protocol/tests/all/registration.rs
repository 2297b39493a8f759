use prost::Message as _;
use protocol::eve::register::ZRegisterMsg;
use protocol::registration::{Registration, RegistrationError};

use crate::support::{Device, Vectors};

#[test]
fn an_eve_devices_registration_is_read_and_written_the_same() {
    let vectors = Vectors::signed_containers();
    let payload = vectors.bytes("/registration/payload");
    let read = Registration::from_wire(&ZRegisterMsg::decode(payload.as_slice()).unwrap()).unwrap();
    assert_eq!(
        read.device_cert_pem,
        vectors.text("/registration/device_certificate").as_bytes()
    );
    assert_eq!(read.serial, "SER1");
    assert_eq!(read.to_wire().encode_to_vec(), payload);
}

#[test]
fn limits_are_kept() {
    let good = Registration {
        device_cert_pem: Device::new().pem.into_bytes(),
        serial: "0".repeat(256),
        soft_serial: "a_B-9".into(),
    };
    let check = |change: &dyn Fn(&mut ZRegisterMsg)| {
        let mut message = good.to_wire();
        change(&mut message);
        Registration::from_wire(&message)
    };
    assert_eq!(check(&|_| ()), Ok(good.clone()));
    assert_eq!(
        check(&|m| m.pem_cert = vec![b'A'; 96]),
        Err(RegistrationError::CertificateSize(96))
    );
    assert_eq!(
        check(&|m| m.pem_cert = vec![b'A'; 10_241]),
        Err(RegistrationError::CertificateSize(10_241))
    );
    assert_eq!(
        check(&|m| m.pem_cert[3] = b'!'),
        Err(RegistrationError::CertificateText)
    );
    for serial in ["0".repeat(257), "a\nb".into(), "\0".into()] {
        let refused = check(&|m| m.serial.clone_from(&serial));
        assert!(
            matches!(
                refused,
                Err(RegistrationError::Serial {
                    which: "serial",
                    ..
                })
            ),
            "{refused:?}"
        );
    }
    for soft in ["x".repeat(257), "a b".into(), "\u{e9}".into(), "a/b".into()] {
        let refused = check(&|m| m.soft_serial.clone_from(&soft));
        assert!(
            matches!(
                refused,
                Err(RegistrationError::Serial {
                    which: "soft serial",
                    ..
                })
            ),
            "{refused:?}"
        );
    }
}
