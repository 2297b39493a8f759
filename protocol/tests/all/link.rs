use protocol::ids::DeviceId;
use protocol::link::{LinkError, Nonce, Proof, ServerMessage};

use crate::support::{Device, mutations};

#[test]
fn messages_read_as_the_contract_says() {
    let session = "11111111-2222-4333-8444-555555555555";
    let app = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
    let nonce = "000102030405060708090a0b0c0d0e0f";
    for (text, message) in [
        (
            format!(r#"{{"type":"hello","nonce":"{nonce}"}}"#),
            ServerMessage::Hello {
                nonce: nonce.parse().unwrap(),
            },
        ),
        (
            r#"{"type":"configChanged"}"#.to_owned(),
            ServerMessage::ConfigChanged,
        ),
        (
            format!(r#"{{"type":"openConsole","session":"{session}","app":"{app}"}}"#),
            ServerMessage::OpenConsole {
                session: session.parse().unwrap(),
                app: app.parse().unwrap(),
            },
        ),
    ] {
        assert_eq!(message.to_text().unwrap(), text);
        assert_eq!(ServerMessage::from_text(&text).unwrap(), message);
    }
}

#[test]
fn newer_messages_are_passed_over_and_broken_ones_refused() {
    let newer = ServerMessage::from_text(r#"{"type":"reboot","at":3}"#).unwrap();
    assert_eq!(newer, ServerMessage::Unknown);
    let more = ServerMessage::from_text(r#"{"type":"configChanged","epoch":3}"#).unwrap();
    assert_eq!(more, ServerMessage::ConfigChanged);
    for broken in [
        "",
        "null",
        "{}",
        r#"{"type":"hello"}"#,
        r#"{"type":"hello","nonce":"00"}"#,
        r#"{"type":"openConsole"}"#,
    ] {
        assert!(
            matches!(ServerMessage::from_text(broken), Err(LinkError::Message(_))),
            "{broken}"
        );
    }
}

#[test]
fn a_proof_is_good_for_one_connection_of_one_device() {
    let device = Device::new();
    let id = DeviceId::random();
    let nonce = Nonce::random().unwrap();
    let proof = Proof {
        device: id,
        time: 1_790_000_000,
        nonce,
    };
    let bytes = proof.seal(&device.hash, &device.signer).unwrap();
    let envelope = || Proof::parse(&bytes).unwrap();
    assert_eq!(envelope().sender(), &device.hash);
    assert_eq!(
        Proof::check(envelope(), &device.certificate, id, nonce).unwrap(),
        proof
    );

    let later = Nonce::random().unwrap();
    assert_ne!(later, nonce);
    assert!(matches!(
        Proof::check(envelope(), &device.certificate, id, later),
        Err(LinkError::Nonce { .. })
    ));
    let other = Proof::check(envelope(), &device.certificate, DeviceId::random(), nonce);
    assert!(matches!(other, Err(LinkError::Device { .. })));
    let stranger = Proof::check(envelope(), &Device::new().certificate, id, nonce);
    assert!(matches!(stranger, Err(LinkError::Envelope(_))));

    mutations(&bytes, |changed| {
        let Ok(envelope) = Proof::parse(changed) else {
            return;
        };
        assert!(Proof::check(envelope, &device.certificate, id, nonce).is_err());
    });
}

#[test]
fn the_proofs_text_is_the_contracts() {
    let proof = Proof {
        device: "3f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().unwrap(),
        time: 5,
        nonce: "000102030405060708090a0b0c0d0e0f".parse().unwrap(),
    };
    assert_eq!(
        serde_json::to_string(&proof).unwrap(),
        r#"{"device":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","time":5,"nonce":"000102030405060708090a0b0c0d0e0f"}"#
    );
}
