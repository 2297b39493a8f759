use super::*;

fn days(count: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * count)
}

/// What a device makes of the owner, from what it knew before.
fn device(owner: &Owner, pinned: &Pinned) -> Result<Pinned, String> {
    let chain = owner.authority().chain.clone();
    owner::verify(&chain, pinned, Timestamp::now().as_second())
        .map(|delegate| delegate.pinned)
        .map_err(|error| error.to_string())
}

fn fresh() -> (tempfile::TempDir, Owner) {
    let directory = tempfile::tempdir().unwrap();
    let owner = Owner::open(directory.path(), Timestamp::now()).unwrap();
    (directory, owner)
}

#[test]
fn what_was_made_is_found_again() {
    let (directory, first) = fresh();
    let second = Owner::open(directory.path(), Timestamp::now()).unwrap();
    assert_eq!(first.authority().pinned(), second.authority().pinned());
    assert_eq!(first.sealing().1, second.sealing().1);
    assert_eq!(
        device(&first, &first.authority().pinned()).unwrap(),
        first.authority().pinned()
    );
}

#[test]
fn the_delegation_is_renewed_while_the_root_is_there_and_not_after() {
    let (directory, first) = fresh();
    let begun = first.authority().pinned();
    let now = Timestamp::now();
    first.refresh(now + days(200)).unwrap();
    assert_eq!(
        first.authority().pinned(),
        begun,
        "most of its life is left"
    );
    first.refresh(now + days(300)).unwrap();
    assert_eq!(first.authority().pinned().delegation, 2);
    assert_eq!(device(&first, &begun).unwrap().delegation, 2);

    // The root's key goes into a safe: the controller goes on with what it has.
    let file = first.standing().unwrap().root_file.0;
    let safe = directory.path().join("safe.pem");
    std::fs::rename(&file, &safe).unwrap();
    assert!(!first.standing().unwrap().root_file.1);
    first.refresh(now + days(900)).unwrap();
    assert_eq!(first.authority().pinned().delegation, 2);
    Owner::open(directory.path(), now + days(900)).unwrap();
    assert!(matches!(
        first.delegate(None, 30, now),
        Err(OwnerKeyError::Away { .. })
    ));
    first.delegate(Some(&safe), 30, now + days(900)).unwrap();
    assert_eq!(first.authority().pinned().delegation, 3);
}

#[test]
fn another_key_is_not_taken_for_the_root() {
    let (_directory, owner) = fresh();
    let next = owner.standing().unwrap().next_file.0;
    assert!(matches!(
        owner.delegate(Some(&next), 30, Timestamp::now()),
        Err(OwnerKeyError::OtherKey { .. })
    ));
}

#[test]
fn what_was_withdrawn_is_not_believed_any_more() {
    let (_directory, owner) = fresh();
    let stolen = owner.authority();
    owner.withdraw(None, 30, Timestamp::now()).unwrap();
    let now = owner.authority();
    assert_ne!(stolen.signer.public_point(), now.signer.public_point());
    let seen = device(&owner, &stolen.pinned()).unwrap();
    assert!(owner::verify(&stolen.chain, &seen, 0).is_err());
}

#[test]
fn the_next_root_takes_over_and_old_devices_follow() {
    let (directory, owner) = fresh();
    let first = owner.authority().pinned();
    let old = owner.authority();
    for epoch in 2..4 {
        owner.rotate(None, 30, Timestamp::now()).unwrap();
        assert_eq!(owner.authority().pinned().epoch, epoch);
    }
    let now = device(&owner, &first).unwrap();
    assert_eq!(now, owner.authority().pinned());
    assert!(
        owner::verify(&old.chain, &now, 0).is_err(),
        "the former root has no say any more"
    );
    // A controller that serves meanwhile takes it up.
    let serving = Owner::open(directory.path(), Timestamp::now()).unwrap();
    owner.rotate(None, 30, Timestamp::now()).unwrap();
    assert_eq!(serving.authority().pinned().epoch, 3);
    serving.refresh(Timestamp::now()).unwrap();
    assert_eq!(serving.authority().pinned().epoch, 4);
}

#[test]
fn keys_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, _owner) = fresh();
    let mut keys = 0;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().contains("key") {
            keys += 1;
            assert_eq!(
                entry.metadata().unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }
    assert_eq!(keys, 4);
}

#[test]
fn what_is_damaged_is_named() {
    let (directory, _owner) = fresh();
    std::fs::write(directory.path().join("owner.json"), "{}").unwrap();
    let error = Owner::open(directory.path(), Timestamp::now())
        .err()
        .unwrap();
    assert!(error.to_string().contains("owner.json"), "{error}");
}
