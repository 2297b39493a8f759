//! The devices of a [`World`]: what they are made of without KVM, and inputs that each of them understands.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use hypervisor::arch::ports::Ports;
use hypervisor::console::Backend;
use hypervisor::serial::Uart;
use hypervisor::virtio::block::{Block, Image, open};
use hypervisor::virtio::console::Console;
use hypervisor::virtio::net::{Net, Settings, Tap};
use hypervisor::virtio::queue::Buffers;
use hypervisor::virtio::rng::Rng;
use hypervisor::virtio::vsock::Vsock;
use hypervisor_api::config::{self, Disk, DiskFormat};
use vmm_sys_util::eventfd::EventFd;

use super::world::{MEMORY, STEPS, Script, Silent, Step, World, drive, registers};
use crate::feed::Feed;

const GUEST_CID: u32 = 3;

/// A disk in memory that checks what the device promises it.
struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn range(&self, offset: u64, length: usize) -> std::ops::Range<usize> {
        let start = usize::try_from(offset).unwrap();
        let end = start.checked_add(length).unwrap();
        assert!(end <= self.0.borrow().len(), "{offset} + {length}");
        start..end
    }
}

impl Image for Ram {
    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn read(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        let mut at = self.range(offset, buffers.len()).start;
        for slice in buffers.slices() {
            slice.copy_from(self.0.borrow().get(at..at + slice.len()).unwrap());
            at += slice.len();
        }
        Ok(())
    }

    fn write(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        let mut at = self.range(offset, buffers.len()).start;
        for slice in buffers.slices() {
            slice.copy_to(self.0.borrow_mut().get_mut(at..at + slice.len()).unwrap());
            at += slice.len();
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let range = self.range(offset, usize::try_from(length).unwrap());
        self.0.borrow_mut().get_mut(range).unwrap().fill(0);
        Ok(())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, _unmap: bool) -> io::Result<()> {
        self.discard(offset, length)
    }
}

pub(super) fn block(data: &[u8]) {
    let image = Box::new(Ram(RefCell::new(vec![0xaa; 64 << 10])));
    drive(
        Block::new(image, false, "skerry-0", Arc::default()),
        data,
        &mut |_| {},
    );
}

fn request(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

/// A request of each kind.
fn disk_script() -> Vec<u8> {
    let range = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
    Script::default()
        .start()
        .offer(0, &[&request(0, 3)], &[512, 1])
        .offer(0, &[&request(1, 5), &[9; 200], &[8; 200]], &[1])
        .ring(0)
        .offer(0, &[&request(4, 0)], &[1])
        .offer(0, &[&request(8, 0)], &[20, 1])
        .ring(0)
        .offer(0, &[&request(11, 0), &range], &[1])
        .offer(0, &[&request(13, 0), &range], &[1])
        .ring(0)
        .0
}

pub(super) fn block_seeds() -> Vec<Vec<u8>> {
    let mut long = Script::default().start();
    let sectors: Vec<u8> = vec![7; 255];
    for _ in 0..3 {
        long = long
            .offer(0, &[&request(1, 1), &sectors, &sectors], &[1])
            .ring(0);
    }
    vec![registers(), disk_script(), long.0]
}

/// Opens a qcow2 image and does with it what a guest does with its disk.
pub(super) fn image(path: &Path) {
    let disk = Disk {
        path: path.to_owned(),
        format: DiskFormat::Qcow2,
        readonly: false,
        serial: None,
    };
    let Ok(image) = open(&disk) else {
        return;
    };
    let last = image.size() / 512;
    let mut script = Script(disk_script());
    for sector in [last.wrapping_sub(1), last / 2, 128] {
        script = script.offer(0, &[&request(0, sector)], &[512, 1]).ring(0);
    }
    let script = script.0;
    drive(
        Block::new(image, false, "skerry-0", Arc::default()),
        &script,
        &mut |_| {},
    );
}

/// An image of 64 KiB in clusters of 512 bytes: header, a table of refcounts and one block of it, L1 and L2 table, one
/// cluster of data.
pub(super) fn qcow2_seeds() -> Vec<Vec<u8>> {
    let image = |version: u32| {
        let mut bytes = b"QFI\xfb".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend([0; 12]);
        bytes.extend(9_u32.to_be_bytes());
        bytes.extend((64_u64 << 10).to_be_bytes());
        bytes.extend(0_u32.to_be_bytes());
        // L1 table: two entries of 64 clusters each, at 0x600.
        bytes.extend(2_u32.to_be_bytes());
        bytes.extend(0x600_u64.to_be_bytes());
        // Refcount table: one cluster at 0x200.
        bytes.extend(0x200_u64.to_be_bytes());
        bytes.extend(1_u32.to_be_bytes());
        bytes.extend([0; 12]);
        bytes.extend([0; 24]);
        bytes.extend(4_u32.to_be_bytes());
        bytes.extend(104_u32.to_be_bytes());
        bytes.resize(0x200, 0);
        bytes.extend(0x400_u64.to_be_bytes());
        bytes.resize(0x400, 0);
        for _ in 0..6 {
            bytes.extend(1_u16.to_be_bytes());
        }
        bytes.resize(0x600, 0);
        bytes.extend((0x800_u64 | 1 << 63).to_be_bytes());
        bytes.resize(0x800, 0);
        bytes.extend([0; 24]);
        bytes.extend((0xa00_u64 | 1 << 63).to_be_bytes());
        bytes.resize(0xa00, 0);
        bytes.extend([0x77; 0x200]);
        bytes
    };
    vec![image(3), image(2)]
}

pub(super) fn net(data: &[u8]) {
    let (wire, card) = UnixDatagram::pair().unwrap();
    card.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let settings = Settings {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1400),
    };
    let tap = Tap::from_file(File::from(OwnedFd::from(card)));
    drive(
        Net::new(tap, &settings, Arc::default()),
        data,
        &mut |frame| {
            let _ = wire.send(frame);
            let _ = wire.recv(&mut [0; 64]);
        },
    );
}

pub(super) fn net_seeds() -> Vec<Vec<u8>> {
    const MERGEABLE: u64 = 1 << 15;
    let traffic = |without: u64| {
        Script::default()
            .start_without(without)
            .offer(0, &[], &[100])
            .offer(0, &[], &[60, 60])
            .host(&[5; 140])
            .step(Step::Source, &[0])
            .offer(1, &[&[0; 12], &[6; 60]], &[])
            .ring(1)
            .host(&[5; 40])
            .ring(0)
            .0
    };
    vec![registers(), traffic(0), traffic(MERGEABLE)]
}

fn backend() -> Arc<Mutex<Backend>> {
    let config = config::Console {
        socket: None,
        stdout: false,
    };
    Arc::new(Mutex::new(Backend::new(&config).unwrap()))
}

pub(super) fn console(data: &[u8]) {
    drive(Console::new(backend()).unwrap(), data, &mut |_| {});
}

pub(super) fn console_seeds() -> Vec<Vec<u8>> {
    let talk = Script::default()
        .start()
        .offer(0, &[], &[64])
        .offer(1, &[b"hello\r\n", b"there"], &[])
        .ring(1)
        .step(Step::Source, &[0]);
    vec![registers(), talk.0]
}

pub(super) fn rng(data: &[u8]) {
    drive(Rng, data, &mut |_| {});
}

pub(super) fn rng_seeds() -> Vec<Vec<u8>> {
    let ask = Script::default()
        .start()
        .offer(0, &[], &[64, 300])
        .offer(0, &[b"odd"], &[8])
        .ring(0);
    vec![registers(), ask.0]
}

/// A folder with the device's socket and one that a guest can reach; made once a thread.
struct Sockets {
    folder: tempfile::TempDir,
    service: UnixListener,
}

thread_local! {
    static SOCKETS: Sockets = {
        let folder = tempfile::tempdir().unwrap();
        let service = UnixListener::bind(folder.path().join("vsock_1024")).unwrap();
        service.set_nonblocking(true).unwrap();
        Sockets { folder, service }
    };
}

pub(super) fn vsock(data: &[u8]) {
    SOCKETS.with(|sockets| {
        while sockets.service.accept().is_ok() {}
        let path = sockets.folder.path().join("vsock");
        let device = Vsock::new(GUEST_CID, &path).unwrap();
        let mut programs = Vec::new();
        drive(device, data, &mut |bytes| {
            // A first word of zero speaks on in the connection made last, any other makes a new one.
            let (again, bytes) = match bytes.split_first() {
                Some((0, rest)) => (true, rest),
                _ => (false, bytes),
            };
            if !again && programs.len() < 8 {
                programs.extend(UnixStream::connect(&path));
            }
            if let Some(mut program) = programs.last() {
                let _ = program.set_nonblocking(true);
                let _ = program.write(bytes);
            }
        });
    });
}

pub(super) fn vsock_seeds() -> Vec<Vec<u8>> {
    use hypervisor::virtio::vsock::packet::{HOST_CID, Header, Operation, STREAM};
    let packet = |operation, ports: (u32, u32), length: u32| {
        let header = Header {
            source_cid: GUEST_CID.into(),
            destination_cid: HOST_CID,
            source_port: ports.0,
            destination_port: ports.1,
            length,
            kind: STREAM,
            operation,
            flags: 3,
            buffer: 1 << 16,
            forwarded: 0,
        };
        header.encode()
    };
    let guest = (2000, 1024);
    let outgoing = Script::default()
        .start()
        .offer(0, &[], &[44, 200])
        .offer(0, &[], &[244])
        .offer(1, &[&packet(Operation::Request, guest, 0)], &[])
        .ring(1)
        .ring(0)
        .offer(1, &[&packet(Operation::Data, guest, 5), b"hello"], &[])
        .offer(1, &[&packet(Operation::CreditRequest, guest, 0)], &[])
        .ring(1)
        .offer(1, &[&packet(Operation::Shutdown, guest, 0)], &[])
        .ring(1);
    let host = (1024, 1 << 30);
    let incoming = Script::default()
        .start()
        .offer(0, &[], &[244])
        .offer(0, &[], &[244])
        .host(b"CONNECT 1024\n")
        .step(Step::Source, &[0])
        .ring(0)
        .offer(1, &[&packet(Operation::Response, host, 0)], &[])
        .ring(1)
        .host(b"\0data")
        .step(Step::Source, &[1])
        .ring(0)
        .offer(1, &[&packet(Operation::Reset, host, 0)], &[])
        .ring(1);
    let stray = Script::default()
        .start()
        .offer(1, &[&packet(Operation::Data, guest, 900)], &[])
        .offer(1, &[&packet(Operation::Unknown(77), guest, 0)], &[])
        .ring(1)
        .offer(0, &[], &[10])
        .ring(0);
    vec![registers(), outgoing.0, incoming.0, stray.0]
}

/// Each access: direction and width, port, value.
pub(super) fn ports(data: &[u8]) {
    MEMORY.with(|memory| {
        let world = World::new(memory, Rng);
        let uart = Uart::new(EventFd::new(0).unwrap(), backend()).unwrap();
        let ports = Ports::new(
            Arc::new(Silent),
            Arc::new(world.bus),
            Some(Arc::new(Mutex::new(uart))),
        );
        let mut feed = Feed::new(data);
        for _ in 0..4 * STEPS {
            if feed.is_empty() {
                break;
            }
            let how = feed.u8();
            let port = feed.u16();
            let mut value: [u8; 4] = feed.array();
            let value = value.get_mut(..1 << (how >> 1 & 3).min(2)).unwrap();
            if how & 0x80 != 0 {
                ports.press_power_button();
            } else if how & 1 != 0 {
                ports.read(port, value);
            } else {
                let _ = ports.write(port, value);
            }
        }
    });
}

pub(super) fn ports_seeds() -> Vec<Vec<u8>> {
    let access = |how: u8, port: u16, value: u32| {
        let mut bytes = vec![how];
        bytes.extend(port.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    };
    let mut seed = Vec::new();
    for slot in 0..2_u32 {
        for register in [0, 4, 16, 0x34, 0x40, 0x50, 0x60, 0x70] {
            seed.extend(access(4, 0xcf8, 1 << 31 | slot << 11 | register));
            seed.extend(access(5, 0xcfc, 0));
            seed.extend(access(4, 0xcfc, 0xffff_ffff));
            seed.extend(access(3, 0xcfe, 0));
        }
    }
    for register in 0x3f8..0x400 {
        seed.extend(access(1, register, 0));
        seed.extend(access(0, register, 0x41));
    }
    seed.extend(access(0x80, 0, 0));
    for register in 0x600..0x606 {
        seed.extend(access(3, register, 0));
        seed.extend(access(2, register, 0x3400));
    }
    seed.extend(access(0, 0xcf9, 6));
    seed.extend(access(0, 0x64, 0xfe));
    vec![seed]
}
