use std::io::Write as _;
use std::path::PathBuf;

use hypervisor_api::config::{Disk, DiskFormat};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::virtio::fake_driver::{Part, Rig};

struct Bench {
    _folder: tempfile::TempDir,
    path: PathBuf,
    rig: Rig<Block>,
}

fn disk(path: PathBuf, format: DiskFormat) -> Disk {
    Disk {
        path,
        format,
        readonly: false,
        serial: None,
    }
}

fn bench(readonly: bool) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&[0xaa; 64 << 10]).unwrap();
    let disk = Disk {
        readonly,
        ..disk(path.clone(), DiskFormat::Raw)
    };
    let image = open(&disk).unwrap();
    Bench {
        _folder: folder,
        path,
        rig: Rig::new(Block::new(image, readonly, "skerry-0", Arc::default())),
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

impl Bench {
    /// One request: its status is the last byte that comes back.
    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> Vec<u8> {
        ask(&mut self.rig, kind, sector, data, room)
    }
}

fn ask(rig: &mut Rig<Block>, kind: u32, sector: u64, data: &[u8], room: u32) -> Vec<u8> {
    let header = header(kind, sector);
    let mut parts = vec![Part::Read(&header)];
    if !data.is_empty() {
        parts.push(Part::Read(data));
    }
    if room > 0 {
        parts.push(Part::Write(room));
    }
    parts.push(Part::Write(1));
    rig.driver.put(0, &parts);
    rig.ring(0).unwrap();
    rig.driver.take_used(0).unwrap()
}

#[test]
fn what_was_written_is_read() {
    let mut bench = bench(false);
    assert_eq!(bench.ask(VIRTIO_BLK_T_OUT, 3, &[7; 1024], 0), [OK]);
    let answer = bench.ask(VIRTIO_BLK_T_IN, 2, &[], 2048);
    assert_eq!(answer.len(), 2049);
    assert_eq!(
        (answer[511], answer[512], answer[1535], answer[1536]),
        (0xaa, 7, 7, 0xaa)
    );
    assert_eq!(answer[2048], OK);
    assert_eq!(bench.ask(VIRTIO_BLK_T_FLUSH, 0, &[], 0), [OK]);
    assert_eq!(std::fs::read(&bench.path).unwrap()[1536..2560], [7; 1024]);
    let counted = bench.rig.device.counters.read();
    assert_eq!((counted.rx_bytes, counted.tx_bytes), (2048, 1024));
}

#[test]
fn nothing_beyond_the_end_is_touched() {
    let mut bench = bench(false);
    assert_eq!(bench.ask(VIRTIO_BLK_T_OUT, 127, &[1; 1024], 0), [FAILED]);
    assert_eq!(
        bench.ask(VIRTIO_BLK_T_OUT, u64::MAX, &[1; 512], 0),
        [FAILED]
    );
    assert_eq!(bench.ask(VIRTIO_BLK_T_OUT, 0, &[1; 100], 0), [FAILED]);
    assert_eq!(std::fs::read(&bench.path).unwrap(), vec![0xaa; 64 << 10]);
}

#[test]
fn a_failed_read_does_not_claim_to_have_written() {
    let mut bench = bench(false);
    let answer = bench.ask(VIRTIO_BLK_T_IN, 1 << 40, &[], 512);
    assert_eq!(answer, Vec::<u8>::new());
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut bench = bench(true);
    assert_ne!(bench.rig.device.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(bench.ask(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0), [FAILED]);
    assert_eq!(bench.ask(VIRTIO_BLK_T_DISCARD, 0, &[0; 16], 0), [FAILED]);
    assert_eq!(bench.ask(VIRTIO_BLK_T_IN, 0, &[], 512)[512], OK);
}

#[test]
fn zeroes_and_discards_take_ranges() {
    let mut bench = bench(false);
    let range = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    let two = [range(0, 1, 0), range(4, 8, 1)].concat();
    assert_eq!(bench.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &two, 0), [OK]);
    let bytes = std::fs::read(&bench.path).unwrap();
    assert_eq!((bytes[0], bytes[511], bytes[512]), (0, 0, 0xaa));
    assert_eq!((bytes[2048], bytes[6143], bytes[6144]), (0, 0, 0xaa));
    assert_eq!(
        bench.ask(VIRTIO_BLK_T_DISCARD, 0, &range(0, 128, 0), 0),
        [OK]
    );
    assert_eq!(
        bench.ask(VIRTIO_BLK_T_DISCARD, 0, &range(127, 2, 0), 0),
        [FAILED]
    );
    assert_eq!(
        bench.ask(VIRTIO_BLK_T_DISCARD, 0, &range(0, u32::MAX, 0), 0),
        [FAILED]
    );
    assert_eq!(
        bench.ask(VIRTIO_BLK_T_DISCARD, 0, &range(0, 1, 8), 0),
        [UNSUPPORTED]
    );
    assert_eq!(bench.ask(VIRTIO_BLK_T_DISCARD, 0, &[0; 17], 0), [FAILED]);
}

#[test]
fn the_serial_is_told_and_the_unknown_is_refused() {
    let mut bench = bench(false);
    let answer = bench.ask(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!(&answer[..9], b"skerry-0\0");
    assert_eq!(answer[20], OK);
    assert_eq!(bench.ask(77, 0, &[], 0), [UNSUPPORTED]);
}

#[test]
fn malformed_requests_come_back() {
    let mut bench = bench(false);
    // Without room for a status; with a header too short; empty but for the status.
    bench
        .rig
        .driver
        .put(0, &[Part::Read(&header(VIRTIO_BLK_T_IN, 0))]);
    bench
        .rig
        .driver
        .put(0, &[Part::Read(b"short"), Part::Write(1)]);
    bench.rig.driver.put(0, &[Part::Write(1)]);
    bench.rig.ring(0).unwrap();
    assert_eq!(bench.rig.driver.take_used(0).unwrap(), b"");
    assert_eq!(bench.rig.driver.take_used(0).unwrap(), [FAILED]);
    assert_eq!(bench.rig.driver.take_used(0).unwrap(), [FAILED]);
}

#[test]
fn one_disk_belongs_to_one_writer() {
    let bench = bench(false);
    let again = open(&disk(bench.path.clone(), DiskFormat::Raw));
    assert!(matches!(again.err(), Some(ImageError::InUse { .. })));
}

#[test]
fn a_raw_disk_is_not_taken_for_qcow2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![0; 4096]).unwrap();
    let error = open(&disk(path, DiskFormat::Qcow2)).err().unwrap();
    assert!(error.to_string().contains("format raw"), "{error}");
}

/// An empty qcow2 image, version 3, 64 KiB clusters, 16 MiB: header, refcount table, one refcount block, L1 table.
fn empty_qcow2() -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let mut image = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(16_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes()); // L1 entries
    put(40, &(3 * CLUSTER as u64).to_be_bytes()); // L1 table
    put(48, &(CLUSTER as u64).to_be_bytes()); // refcount table
    put(56, &1_u32.to_be_bytes()); // its clusters
    put(96, &4_u32.to_be_bytes()); // refcounts of 16 bits
    put(100, &104_u32.to_be_bytes()); // header length
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    image
}

#[test]
fn a_qcow2_disk_without_counts_of_its_own_header_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let whole = empty_qcow2();
    let mut zeroed = whole.clone();
    zeroed[0x1_0000..0x1_0008].fill(0);
    for image in [&whole[..108], &zeroed] {
        std::fs::write(&path, image).unwrap();
        let error = open(&disk(path.clone(), DiskFormat::Qcow2)).err().unwrap();
        assert!(error.to_string().contains("no reference counts"), "{error}");
    }
}

#[test]
fn a_qcow2_disk_keeps_what_was_written_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    std::fs::write(&path, empty_qcow2()).unwrap();
    let start = || {
        let image = open(&disk(path.clone(), DiskFormat::Qcow2)).unwrap();
        Rig::new(Block::new(image, false, "", Arc::default()))
    };
    let mut rig = start();
    assert_eq!(rig.device.geometry.size, 16 << 20);
    assert_eq!(
        ask(&mut rig, VIRTIO_BLK_T_OUT, 300, &[9; 3000 / 512 * 512], 0),
        [OK]
    );
    assert_eq!(ask(&mut rig, VIRTIO_BLK_T_FLUSH, 0, &[], 0), [OK]);
    drop(rig);
    let mut rig = start();
    let answer = ask(&mut rig, VIRTIO_BLK_T_IN, 299, &[], 1024);
    assert_eq!((answer[511], answer[512], answer[1024]), (0, 9, OK));
    let range = [
        300_u64.to_le_bytes().to_vec(),
        1_u32.to_le_bytes().to_vec(),
        vec![0; 4],
    ]
    .concat();
    assert_eq!(ask(&mut rig, VIRTIO_BLK_T_WRITE_ZEROES, 0, &range, 0), [OK]);
    assert_eq!(ask(&mut rig, VIRTIO_BLK_T_IN, 300, &[], 512)[0], 0);
    rig.device.finish();
}
