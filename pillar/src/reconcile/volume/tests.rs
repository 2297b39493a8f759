use std::fs;

use uuid::Uuid;

use super::*;
use crate::domain::desired::{Content, ContentKind, Desired};
use crate::reconcile::ledger::Ledger;
use protocol::ids::{ContentId, DatastoreId};

const GOOD: VolumeId = VolumeId(Uuid::from_u128(2));
const BAD: VolumeId = VolumeId(Uuid::from_u128(1));
const CONTAINER: ContentId = ContentId(Uuid::from_u128(3));
const MACHINE: ContentId = ContentId(Uuid::from_u128(4));

/// The reconciler at work in a folder of its own.
struct Place {
    dir: tempfile::TempDir,
    status: Status,
    volumes: watch::Receiver<Arc<Volumes>>,
    /// What would end it, when dropped.
    _sources: (watch::Sender<Arc<Allocated>>, watch::Sender<Arc<Contents>>),
}

impl Place {
    /// Starts it with two volumes: the disk of a machine, and a container's.
    fn start(dir: tempfile::TempDir) -> Self {
        let content = |kind| Content {
            name: "image".into(),
            datastore: DatastoreId(Uuid::nil()),
            repository: "hello".parse().unwrap(),
            digest: protocol::digest::Digest::of(b"image"),
            kind,
        };
        let volume = |content| Volume {
            name: "disk".into(),
            content,
            generation: 0,
            size_bytes: 32 << 20,
            readonly: false,
        };
        let desired = Desired {
            contents: BTreeMap::from([
                (CONTAINER, content(ContentKind::Container)),
                (MACHINE, content(ContentKind::MachineQcow2)),
            ]),
            volumes: BTreeMap::from([(BAD, volume(MACHINE)), (GOOD, volume(CONTAINER))]),
            ..Desired::default()
        };
        let (allocated_told, allocated) = watch::channel(Arc::new(Allocated {
            desired: Arc::new(desired),
            ledger: Ledger::default(),
        }));
        let (contents_told, contents) = watch::channel(Arc::new(Contents::new()));
        let (told, volumes) = watch::channel(Arc::new(Volumes::new()));
        let (status, _lines) = Status::to_memory();
        let paths = Paths {
            persist: dir.path().to_owned(),
            ..Paths::default()
        };
        tokio::spawn(run(allocated, contents, paths, status.clone(), told));
        Self {
            dir,
            status,
            volumes,
            _sources: (allocated_told, contents_told),
        }
    }

    /// Waits until the volumes are as they should be.
    async fn until(&mut self, what: &str, mut fits: impl FnMut(&Volumes) -> bool) -> Volumes {
        let wait = self.volumes.wait_for(|volumes| fits(volumes));
        let seen = tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .is_ok();
        let volumes = self.volumes.borrow().clone();
        assert!(seen, "{what}: {volumes:?}");
        (*volumes).clone()
    }
}

fn bad_file() -> String {
    FileName {
        volume: BAD,
        generation: 0,
        format: DiskFormat::Qcow2,
    }
    .text()
}

#[tokio::test]
async fn a_volume_that_cannot_be_measured_tells_why_and_leaves_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("volumes").join(bad_file());
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, b"QFI").unwrap();
    let mut place = Place::start(dir);
    let volumes = place
        .until("the good volume is made", |all| {
            all.get(&GOOD).is_some_and(|volume| volume.status.ready)
        })
        .await;
    let bad = &volumes[&BAD].status;
    assert!(!bad.ready && bad.path.is_none());
    let trouble = bad.trouble.as_ref().unwrap();
    assert!(
        trouble.message.contains("qcow2 header") && trouble.message.contains(&bad_file()),
        "{}",
        trouble.message
    );
    assert!(trouble.retry_at.is_some());
    assert!(
        file.exists(),
        "a file that cannot be read is not thrown away"
    );
    // It is looked at again by itself.
    let mut whole = vec![0u8; 32];
    whole[31] = 9;
    fs::write(&file, &whole).unwrap();
    let volumes = place
        .until("the volume is whole again", |all| all[&BAD].status.ready)
        .await;
    assert_eq!(volumes[&BAD].status.size_bytes, 9);
    assert_eq!(volumes[&BAD].status.trouble, None);
    assert!(place.status.troubles().borrow().is_empty());
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_told_by_the_device_and_by_every_volume() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("volumes");
    fs::write(&folder, b"in the way").unwrap();
    let mut place = Place::start(dir);
    let volumes = place
        .until("the volumes tell why", |all| all.len() == 2)
        .await;
    for volume in volumes.values() {
        let trouble = volume.status.trouble.as_ref().unwrap();
        assert!(!volume.status.ready);
        assert!(
            trouble.message.contains(&folder.display().to_string()),
            "{}",
            trouble.message
        );
    }
    let board = place.status.troubles();
    assert!(board.borrow().contains_key(&Topic::Volumes));
    fs::remove_file(place.dir.path().join("volumes")).unwrap();
    let volumes = place
        .until("the container's volume is made", |all| {
            all[&GOOD].status.ready
        })
        .await;
    assert_eq!(volumes[&GOOD].status.trouble, None);
    // What the machine's volume waits for is its image, and no longer the folder.
    assert_eq!(volumes[&BAD].status.trouble, None);
    let mut board = board;
    tokio::time::timeout(
        Duration::from_secs(10),
        board.wait_for(|board| board.is_empty()),
    )
    .await
    .unwrap()
    .unwrap();
}
