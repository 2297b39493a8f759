use super::*;
use crate::keys::SoftwareSigner;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

struct Key {
    signer: SoftwareSigner,
    point: [u8; 65],
}

fn key() -> Key {
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .unwrap();
    let signer = SoftwareSigner::from_pkcs8_der(der.as_ref()).unwrap();
    let point = signer.public_point().try_into().unwrap();
    Key { signer, point }
}

fn delegate(root: &Key, epoch: u64, serial: u64, key: &Key) -> OwnerStatement {
    let payload = DelegationPayload {
        epoch,
        serial,
        signing_key: key.point.to_vec(),
        not_after: 1000,
    };
    delegation(&root.signer, &root.point, &payload).unwrap()
}

fn succeed_to(root: &Key, epoch: u64, before: &Key, next: &Key) -> OwnerStatement {
    let payload = SuccessionPayload {
        epoch,
        predecessor: root_hash(&before.point).bytes().to_vec(),
        next: root_hash(&next.point).bytes().to_vec(),
    };
    succession(&root.signer, &root.point, &payload).unwrap()
}

fn pinned(root: &Key, next: &Key) -> Pinned {
    Pinned {
        epoch: 1,
        root: root_hash(&root.point),
        next: root_hash(&next.point),
        delegation: 0,
    }
}

fn chain(successions: Vec<OwnerStatement>, delegation: OwnerStatement) -> OwnerChain {
    OwnerChain {
        successions,
        delegation: Some(delegation),
    }
}

#[test]
fn the_images_root_delegates() {
    let (root, next, controller) = (key(), key(), key());
    let chain = chain(vec![], delegate(&root, 1, 3, &controller));
    let found = verify(&chain, &pinned(&root, &next), 1000).unwrap();
    assert_eq!(found.key, controller.point);
    assert_eq!(found.pinned.delegation, 3);
    let signature = sign_challenge(&controller.signer, b"challenge").unwrap();
    found.check_challenge(b"challenge", &signature).unwrap();
    assert!(found.check_challenge(b"challengf", &signature).is_err());
    // A signature for one purpose is none for another.
    let transcript = Transcript::new(b"", b"", b"", b"");
    assert!(
        found
            .check_grant(&transcript, b"challenge", &signature)
            .is_err()
    );
    let signature = sign_grant(&controller.signer, &transcript, b"grant").unwrap();
    found
        .check_grant(&transcript, b"grant", &signature)
        .unwrap();
    let other = Transcript::new(b"x", b"", b"", b"");
    assert!(found.check_grant(&other, b"grant", &signature).is_err());
}

#[test]
fn others_do_not() {
    let (root, next, controller, rogue) = (key(), key(), key(), key());
    let mine = pinned(&root, &next);
    let by_rogue = chain(vec![], delegate(&rogue, 1, 9, &controller));
    assert!(matches!(
        verify(&by_rogue, &mine, 0),
        Err(OwnerError::OtherRoot { .. })
    ));
    // The right name over a foreign signature.
    let mut forged = delegate(&rogue, 1, 9, &controller);
    forged.signer = root.point.to_vec();
    assert!(matches!(
        verify(&chain(vec![], forged), &mine, 0),
        Err(OwnerError::Signature("delegation"))
    ));
    assert!(matches!(
        verify(&OwnerChain::default(), &mine, 0),
        Err(OwnerError::Missing)
    ));
    let good = delegate(&root, 1, 2, &controller);
    let seen = Pinned {
        delegation: 3,
        ..mine
    };
    assert!(matches!(
        verify(&chain(vec![], good.clone()), &seen, 0),
        Err(OwnerError::Withdrawn { seen: 3, found: 2 })
    ));
    assert!(matches!(
        verify(&chain(vec![], good), &mine, 1001),
        Err(OwnerError::Expired { .. })
    ));
    assert!(matches!(
        verify(&chain(vec![], delegate(&root, 2, 1, &controller)), &mine, 0),
        Err(OwnerError::Epoch { .. })
    ));
}

#[test]
fn roots_follow_each_other_and_never_go_back() {
    let roots: Vec<Key> = (0..4).map(|_| key()).collect();
    let controller = key();
    let successions = vec![
        succeed_to(&roots[1], 2, &roots[0], &roots[2]),
        succeed_to(&roots[2], 3, &roots[1], &roots[3]),
    ];
    let now = chain(successions.clone(), delegate(&roots[2], 3, 1, &controller));
    // A device that slept through both, and one that has seen the first.
    let old = pinned(&roots[0], &roots[1]);
    let found = verify(&now, &old, 0).unwrap().pinned;
    assert_eq!((found.epoch, found.root), (3, root_hash(&roots[2].point)));
    assert_eq!(found.next, root_hash(&roots[3].point));
    let first = chain(
        successions[..1].to_vec(),
        delegate(&roots[1], 2, 1, &controller),
    );
    let second = verify(&first, &old, 0).unwrap().pinned;
    assert_eq!(verify(&now, &second, 0).unwrap().pinned, found);
    // The old root speaks for nobody any more.
    let back = chain(vec![], delegate(&roots[0], 1, 99, &controller));
    assert!(matches!(
        verify(&back, &found, 0),
        Err(OwnerError::OtherRoot { .. })
    ));
    // A gap, and a successor whom nobody named.
    let gap = chain(
        successions[1..].to_vec(),
        delegate(&roots[2], 3, 1, &controller),
    );
    assert!(matches!(
        verify(&gap, &old, 0),
        Err(OwnerError::Order { epoch: 1, found: 3 })
    ));
    let usurper = key();
    let stolen = chain(
        vec![succeed_to(&usurper, 2, &roots[0], &usurper)],
        delegate(&usurper, 2, 1, &controller),
    );
    assert!(matches!(
        verify(&stolen, &old, 0),
        Err(OwnerError::OtherRoot { .. })
    ));
}

#[test]
fn what_is_too_long_is_refused() {
    let (root, next, controller) = (key(), key(), key());
    let good = delegate(&root, 1, 1, &controller);
    let many = chain(vec![good.clone(); MAX_SUCCESSIONS + 1], good.clone());
    assert!(matches!(
        verify(&many, &pinned(&root, &next), 0),
        Err(OwnerError::TooLong { .. })
    ));
    let mut long = good;
    long.payload = vec![0; MAX_PAYLOAD + 1];
    assert!(matches!(
        verify(&chain(vec![], long), &pinned(&root, &next), 0),
        Err(OwnerError::TooLong { .. })
    ));
}
