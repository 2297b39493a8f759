use prost::Message as _;
use protocol::cipher::{
    BlockKey, CipherError, KeyAgreement, Point, SoftwareAgreement, context, decrypt,
    decrypt_secrets, encrypt, find_context, unwrap_volume_key, wrap_volume_key,
};
use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock};
use protocol::keys::{CertHash, pem_to_der};

use crate::support::Vectors;

/// The two ends of the vector and its block.
struct Pair {
    controller: SoftwareAgreement,
    device: SoftwareAgreement,
    block: CipherBlock,
    vectors: Vectors,
}

impl Pair {
    fn new() -> Self {
        let vectors = Vectors::cipher_block();
        Self {
            controller: SoftwareAgreement::from_scalar(&vectors.array("/controller_scalar"))
                .unwrap(),
            device: SoftwareAgreement::from_scalar(&vectors.array("/device_scalar")).unwrap(),
            block: CipherBlock {
                cipher_context_id: "context".into(),
                initial_value: vectors.bytes("/initial_value"),
                cipher_data: vectors.bytes("/cipher_text"),
                clear_text_sha256: vectors.bytes("/clear_text_sha256"),
            },
            vectors,
        }
    }

    fn key(&self) -> BlockKey {
        BlockKey::agree(&self.device, &self.controller.public_point().unwrap()).unwrap()
    }

    fn point_of(&self, pointer: &str) -> Point {
        Point::from_certificate_der(&pem_to_der(self.vectors.text(pointer).as_bytes()).unwrap())
            .unwrap()
    }
}

#[test]
fn both_ends_reach_the_vectors_point() {
    let pair = Pair::new();
    let (x, y) = (
        pair.vectors.array("/shared_x"),
        pair.vectors.array("/shared_y"),
    );
    for (own, peer) in [
        (&pair.device, pair.point_of("/controller_certificate")),
        (&pair.controller, pair.point_of("/device_certificate")),
    ] {
        let shared = own.agree(&peer).unwrap();
        assert_eq!((shared.x(), shared.y()), (&x, &y));
    }
    assert_eq!(
        pair.device.public_point().unwrap(),
        pair.point_of("/device_certificate")
    );
    assert_eq!(Point::from_coordinates(x, y).unwrap().x(), &x);
}

#[test]
fn the_vectors_block_decrypts() {
    let pair = Pair::new();
    let clear = decrypt(&pair.key(), &pair.block).unwrap();
    assert_eq!(clear, pair.vectors.bytes("/clear_text"));
    let secrets = decrypt_secrets(&pair.key(), &pair.block).unwrap();
    assert_eq!(secrets, EncryptionBlock::decode(clear.as_slice()).unwrap());
    assert_eq!(secrets.protected_user_data, "I2Nsb3VkLWNvbmZpZwo=");
}

#[test]
fn certificates_are_named_as_in_the_vector() {
    let vectors = Vectors::cipher_block();
    let controller = vectors.text("/controller_certificate").trim();
    assert_eq!(
        CertHash::of_pem_text(controller.as_bytes())
            .short()
            .to_string(),
        vectors.text("/controller_certificate_hash")
    );
    let device = vectors.text("/device_certificate");
    assert_eq!(
        CertHash::of_pem_text(device.as_bytes()).short().to_string(),
        vectors.text("/device_certificate_hash")
    );
}

#[test]
fn what_is_encrypted_decrypts_and_never_looks_the_same() {
    let pair = Pair::new();
    for clear in [
        Vec::new(),
        vec![1],
        vec![2; 15],
        vec![3; 16],
        vec![4; 17],
        vec![5; 10_000],
    ] {
        let first = encrypt(&pair.key(), "context", &clear).unwrap();
        let second = encrypt(&pair.key(), "context", &clear).unwrap();
        assert_eq!(decrypt(&pair.key(), &first).unwrap(), clear);
        assert_eq!(first.cipher_data.len(), clear.len());
        assert_ne!(first.initial_value, second.initial_value);
    }
}

#[test]
fn no_change_of_a_block_is_accepted() {
    let pair = Pair::new();
    let key = pair.key();
    let each = |change: &dyn Fn(&mut CipherBlock, usize, u8), size: usize| {
        for index in 0..size {
            for bit in 0..8 {
                let mut block = pair.block.clone();
                change(&mut block, index, 1 << bit);
                assert!(
                    matches!(decrypt(&key, &block), Err(CipherError::ClearText)),
                    "{index} {bit}"
                );
            }
        }
    };
    each(
        &|block, index, bit| block.cipher_data[index] ^= bit,
        pair.block.cipher_data.len(),
    );
    each(
        &|block, index, bit| block.clear_text_sha256[index] ^= bit,
        32,
    );
    each(&|block, index, bit| block.initial_value[index] ^= bit, 16);
    for size in [0, 12, 15, 17, 32] {
        let block = CipherBlock {
            initial_value: vec![0; size],
            ..pair.block.clone()
        };
        assert!(
            matches!(decrypt(&key, &block), Err(CipherError::InitialValue(found)) if found == size)
        );
    }
    let unhashed = CipherBlock {
        clear_text_sha256: Vec::new(),
        ..pair.block.clone()
    };
    assert!(matches!(
        decrypt(&key, &unhashed),
        Err(CipherError::ClearText)
    ));
    let cut = CipherBlock {
        clear_text_sha256: pair.block.clear_text_sha256[..16].to_vec(),
        ..pair.block.clone()
    };
    assert!(matches!(decrypt(&key, &cut), Err(CipherError::ClearText)));
}

#[test]
fn a_block_of_another_pair_does_not_decrypt() {
    let pair = Pair::new();
    let other = BlockKey::agree(&pair.device, &pair.device.public_point().unwrap()).unwrap();
    assert!(matches!(
        decrypt(&other, &pair.block),
        Err(CipherError::ClearText)
    ));
}

#[test]
fn points_off_the_curve_are_refused() {
    let pair = Pair::new();
    let point = pair.device.public_point().unwrap();
    let mut y = *point.y();
    y[31] ^= 1;
    assert!(matches!(
        Point::from_coordinates(*point.x(), y),
        Err(CipherError::Point)
    ));
    assert!(matches!(
        Point::from_coordinates([0; 32], [0; 32]),
        Err(CipherError::Point)
    ));
    assert!(matches!(
        Point::from_coordinates([255; 32], [255; 32]),
        Err(CipherError::Point)
    ));
    assert!(matches!(Point::from_sec1(&[0]), Err(CipherError::Point)));
    assert!(matches!(Point::from_sec1(&[]), Err(CipherError::Point)));
    assert!(matches!(
        SoftwareAgreement::from_scalar(&[0; 32]),
        Err(CipherError::PrivateKey)
    ));
    assert!(matches!(
        SoftwareAgreement::from_scalar(&[255; 32]),
        Err(CipherError::PrivateKey)
    ));
}

#[test]
fn keys_are_read_from_pem() {
    let vectors = Vectors::openssl();
    let key = SoftwareAgreement::from_pkcs8_pem(vectors.text("/device_key")).unwrap();
    let der = pem_to_der(vectors.text("/device_certificate").as_bytes()).unwrap();
    assert_eq!(
        key.public_point().unwrap(),
        Point::from_certificate_der(&der).unwrap()
    );
    assert!(SoftwareAgreement::from_pkcs8_pem(vectors.text("/device_certificate")).is_err());
}

#[test]
fn contexts_are_found_and_checked() {
    let pair = Pair::new();
    let (controller, device) = (
        CertHash::of_pem_text(b"controller"),
        CertHash::of_pem_text(b"device"),
    );
    let good = context("context", &controller, &device);
    assert_eq!(good.device_cert_hash.len(), 16);
    let contexts = [context("another", &controller, &controller), good.clone()];
    assert_eq!(
        find_context(&contexts, &pair.block, &device).unwrap(),
        &good
    );
    assert_eq!(
        find_context(&contexts, &pair.block, &device.short()).unwrap(),
        &good
    );

    let stray = CipherBlock {
        cipher_context_id: "nowhere".into(),
        ..pair.block.clone()
    };
    assert!(
        matches!(find_context(&contexts, &stray, &device), Err(CipherError::NoContext(id)) if id == "nowhere")
    );
    assert!(matches!(
        find_context(&contexts, &pair.block, &controller),
        Err(CipherError::OtherCertificate { .. })
    ));
    for odd in [
        CipherContext {
            key_exchange_scheme: 0,
            ..good.clone()
        },
        CipherContext {
            encryption_scheme: 7,
            ..good.clone()
        },
        CipherContext {
            hash_scheme: 0,
            ..good.clone()
        },
    ] {
        assert!(matches!(
            find_context(&[odd], &pair.block, &device),
            Err(CipherError::Scheme { .. })
        ));
    }
    let unhashed = CipherContext {
        device_cert_hash: Vec::new(),
        ..good
    };
    assert!(matches!(
        find_context(&[unhashed], &pair.block, &device),
        Err(CipherError::OtherCertificate { .. })
    ));
}

#[test]
fn vault_keys_come_back_whole_or_not_at_all() {
    let key = Pair::new().key();
    let vault = [9; 32];
    let wrapped = wrap_volume_key(&key, &vault);
    assert_ne!(wrapped.encrypted_key, vault);
    assert_eq!(unwrap_volume_key(&key, &wrapped).unwrap(), vault);
    let mut changed = wrapped.clone();
    changed.encrypted_key[31] ^= 1;
    assert!(matches!(
        unwrap_volume_key(&key, &changed),
        Err(CipherError::ClearText)
    ));
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let pair = Pair::new();
    let shown = format!(
        "{:?} {:?} {:?}",
        pair.key(),
        pair.device,
        pair.device.public_point().unwrap()
    );
    assert_eq!(shown, "BlockKey(..) SoftwareAgreement(..) Point(..)");
}
