use super::*;
use crate::cipher::SoftwareAgreement;

/// One of RFC 9180's vectors, appendix A.3: first message and exports.
struct Vector {
    recipient: &'static str,
    recipient_point: &'static str,
    encapsulated: &'static str,
    psk: Option<(&'static str, &'static str)>,
    ciphertext: &'static str,
    /// Contexts and what they give.
    exports: &'static [(&'static str, &'static str)],
}

const INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
const CLEAR: &str = "4265617574792069732074727574682c20747275746820626561757479";
const AAD: &str = "436f756e742d30";

/// A.3.1.
const BASE: Vector = Vector {
    recipient: "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2",
    recipient_point: "04fe8c19ce0905191ebc298a9245792531f26f0cece2460639e8bc39cb7f706a826a779b4cf969b8a0e539c7f62fb3d30ad6aa8f80e30f1d128aafd68a2ce72ea0",
    encapsulated: "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4",
    psk: None,
    ciphertext: "5ad590bb8baa577f8619db35a36311226a896e7342a6d836d8b7bcd2f20b6c7f9076ac232e3ab2523f39513434",
    exports: &[
        (
            "",
            "5e9bc3d236e1911d95e65b576a8a86d478fb827e8bdfe77b741b289890490d4d",
        ),
        (
            "00",
            "6cff87658931bda83dc857e6353efe4987a201b849658d9b047aab4cf216e796",
        ),
        (
            "54657374436f6e74657874",
            "d8f1ea7942adbba7412c6d431c62d01371ea476b823eb697e1f6e6cae1dab85a",
        ),
    ],
};

/// A.3.2.
const PSK: Vector = Vector {
    recipient: "438d8bcef33b89e0e9ae5eb0957c353c25a94584b0dd59c991372a75b43cb661",
    recipient_point: "040d97419ae99f13007a93996648b2674e5260a8ebd2b822e84899cd52d87446ea394ca76223b76639eccdf00e1967db10ade37db4e7db476261fcc8df97c5ffd1",
    encapsulated: "04305d35563527bce037773d79a13deabed0e8e7cde61eecee403496959e89e4d0ca701726696d1485137ccb5341b3c1c7aaee90a4a02449725e744b1193b53b5f",
    psk: Some((
        "0247fd33b913760fa1fa51e1892d9f307fbe65eb171e8132c2af18555a738b82",
        "456e6e796e20447572696e206172616e204d6f726961",
    )),
    ciphertext: "90c4deb5b75318530194e4bb62f890b019b1397bbf9d0d6eb918890e1fb2be1ac2603193b60a49c2126b75d0eb",
    exports: &[],
};

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

#[test]
fn the_rfcs_vectors_open() {
    for vector in [BASE, PSK] {
        let scalar: [u8; 32] = bytes(vector.recipient).try_into().unwrap();
        let own = SoftwareAgreement::from_scalar(&scalar).unwrap();
        let point = own.public_point().unwrap();
        assert_eq!(point.to_sec1().to_vec(), bytes(vector.recipient_point));
        let psk = vector.psk.map(|(secret, id)| (bytes(secret), bytes(id)));
        let psk = psk.as_ref().map(|(secret, id)| Psk { secret, id });
        let sealed =
            Sealed::from_parts(&bytes(vector.encapsulated), &bytes(vector.ciphertext)).unwrap();
        let (clear, exporter) = open_with(
            AES_128,
            &own,
            &point,
            &bytes(INFO),
            psk,
            &bytes(AAD),
            &sealed,
        )
        .unwrap();
        assert_eq!(clear, bytes(CLEAR));
        for (context, value) in vector.exports {
            assert_eq!(
                exporter.export(&bytes(context)).unwrap().to_vec(),
                bytes(value)
            );
        }
    }
}

#[test]
fn what_is_sealed_opens_with_the_same_words_only() {
    let own = SoftwareAgreement::from_scalar(&[3; 32]).unwrap();
    let point = own.public_point().unwrap();
    let psk = Psk {
        secret: &[9; 32],
        id: b"id",
    };
    for with in [None, Some(psk)] {
        let (sealed, sender) = seal(&point, b"info", with, b"aad", b"clear").unwrap();
        let (clear, receiver) = open(&own, &point, b"info", with, b"aad", &sealed).unwrap();
        assert_eq!(clear, b"clear");
        assert_eq!(sender.export(b"x").unwrap(), receiver.export(b"x").unwrap());
        assert_ne!(sender.export(b"x").unwrap(), sender.export(b"y").unwrap());
        let other = Psk {
            secret: &[8; 32],
            id: b"id",
        };
        let without = if with.is_none() { Some(psk) } else { None };
        for (info, psk, aad) in [
            (&b"other"[..], with, &b"aad"[..]),
            (b"info", with, b"other"),
            (b"info", without, b"aad"),
            (b"info", Some(other), b"aad"),
        ] {
            assert!(matches!(
                open(&own, &point, info, psk, aad, &sealed),
                Err(HpkeError::Open)
            ));
        }
    }
}

#[test]
fn a_point_off_the_curve_is_refused() {
    let own = SoftwareAgreement::from_scalar(&[3; 32]).unwrap();
    let point = own.public_point().unwrap();
    for encapsulated in [[0; 65], [4; 65], [0xff; 65]] {
        let sealed = Sealed {
            encapsulated,
            ciphertext: vec![0; 32],
        };
        assert!(matches!(
            open(&own, &point, b"", None, b"", &sealed),
            Err(HpkeError::Agreement(_))
        ));
    }
    assert!(Sealed::from_parts(&[4; 64], &[]).is_none());
}
