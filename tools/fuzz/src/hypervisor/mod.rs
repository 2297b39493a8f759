//! What a guest, its disk image and the monitor's callers say.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hypervisor::arch::{boot, layout};
use hypervisor::control::Handles;
use hypervisor::lifecycle::Lifecycle;
use hypervisor::memory::{self, Memory};
use hypervisor::virtio::block::check_header;
use hypervisor::virtio::block::request::{self, Geometry};
use hypervisor::virtio::queue::{MAX_BUFFERS, Virtqueue};
use hypervisor::virtio::vsock::packet::{HEADER_SIZE, Header};
use hypervisor::virtio::vsock::parse_connect;
use hypervisor_api::control::{Answer, Phase, Request, State, Transfer};
use hypervisor_api::report::LastWords;
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_queue::QueueT as _;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

use crate::Target;
use crate::feed::{Feed, survives};

mod devices;
mod world;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "virtqueue",
        about: "descriptor tables, indirect ones and rings of a guest: a chain's buffers lie in its memory, readable first",
        run: virtqueue,
        seeds: virtqueue_seeds,
    },
    Target {
        name: "virtio-block",
        about: "a guest and its disk: registers, rings and requests; no access goes beyond the image",
        run: devices::block,
        seeds: devices::block_seeds,
    },
    Target {
        name: "virtio-net",
        about: "a guest, its network card and the wire: registers, rings and frames",
        run: devices::net,
        seeds: devices::net_seeds,
    },
    Target {
        name: "virtio-console",
        about: "a guest and its console: registers, rings and text",
        run: devices::console,
        seeds: devices::console_seeds,
    },
    Target {
        name: "virtio-rng",
        about: "a guest and its entropy source: registers and rings",
        run: devices::rng,
        seeds: devices::rng_seeds,
    },
    Target {
        name: "virtio-vsock",
        about: "a guest, its sockets and programs on the host: registers, rings, packets and CONNECT lines",
        run: devices::vsock,
        seeds: devices::vsock_seeds,
    },
    Target {
        name: "ports",
        about: "port accesses of a guest: UART, PCI configuration space, power registers",
        run: devices::ports,
        seeds: devices::ports_seeds,
    },
    Target {
        name: "block-request",
        about: "headers and ranges of block requests: what is inside the disk does not overflow",
        run: block_request,
        seeds: block_request_seeds,
    },
    Target {
        name: "vsock-packet",
        about: "a packet's header, which is written as the same bytes, and a CONNECT line",
        run: vsock_packet,
        seeds: || vec![(0..44).collect(), b"CONNECT 1024".to_vec()],
    },
    Target {
        name: "qcow2",
        about: "a qcow2 image: refused by its header, or opened, read and written within what its guest sees",
        run: qcow2,
        seeds: devices::qcow2_seeds,
    },
    Target {
        name: "kernel",
        about: "a bzImage or ELF kernel, put into memory with itself as initial RAM file system",
        run: kernel,
        seeds: kernel_seeds,
    },
    Target {
        name: "vm-config",
        about: "a machine's description: what is accepted keeps its bounds and is written and read as itself",
        run: vm_config,
        seeds: vm_config_seeds,
    },
    Target {
        name: "control-request",
        about: "lines on the control socket: each has an answer that can be read",
        run: control_request,
        seeds: || {
            vec![
                b"{\"request\":\"state\"}\n{\"request\":\"pause\"}\n{\"request\":\"kill\"}"
                    .to_vec(),
            ]
        },
    },
    Target {
        name: "monitor-answer",
        about: "answers and last words of a monitor: what is understood is written and read as itself",
        run: monitor_answer,
        seeds: monitor_answer_seeds,
    },
];

/// A guest's memory for targets that need not start from an empty one; made once a thread.
pub(crate) fn guest_memory(bytes: usize) -> Memory {
    memory::create(&[(GuestAddress(0), bytes)]).unwrap()
}

/// A file without a name, made once a thread: its path for programs that want one.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let fd = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(fd);
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Self { file, path }
    }

    fn fill(&self, bytes: &[u8]) {
        self.file.set_len(0).unwrap();
        self.file.write_all_at(bytes, 0).unwrap();
    }
}

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
    static QUEUE_MEMORY: Memory = guest_memory(QUEUE_BYTES);
    static KERNEL_MEMORY: Memory = guest_memory(KERNEL_BYTES as usize);
}

const QUEUE_BYTES: usize = 64 << 10;
const QUEUE_SIZE: u16 = 16;
/// Where the input's bytes go: a descriptor table, a ring of what is available, and at the same place buffers and
/// indirect tables.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x8000;

fn virtqueue(data: &[u8]) {
    QUEUE_MEMORY.with(|memory| {
        let Some((flags, bytes)) = data.split_first() else {
            return;
        };
        memory
            .write_slice(&[0; QUEUE_BYTES], GuestAddress(0))
            .unwrap();
        let bytes = bytes.get(..USED as usize).unwrap_or(bytes);
        memory
            .write_slice(bytes, GuestAddress(DESCRIPTORS))
            .unwrap();
        let mut queue = Virtqueue::new(QUEUE_SIZE).unwrap();
        queue.vector = 1;
        queue.ring.set_size(QUEUE_SIZE);
        queue
            .ring
            .set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue
            .ring
            .set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.ring.set_used_ring_address(Some(USED as u32), Some(0));
        queue.ring.set_event_idx(flags & 1 != 0);
        queue.ring.set_ready(true);
        assert!(queue.ring.is_valid(memory));
        let start = memory.get_host_address(GuestAddress(0)).unwrap() as usize;
        let inside = start..=start + QUEUE_BYTES;
        for turn in 0..64 {
            let Ok(Some(mut chain)) = queue.pop(memory) else {
                break;
            };
            let slices = [chain.readable.slices(), chain.writable.slices()].concat();
            assert!(slices.len() <= MAX_BUFFERS);
            let total: usize = slices.iter().map(vm_memory::VolatileSlice::len).sum();
            assert_eq!(total, chain.readable.len() + chain.writable.len());
            for slice in &slices {
                let at = slice.ptr_guard().as_ptr() as usize;
                assert!(inside.contains(&at) && inside.contains(&(at + slice.len())));
            }
            if turn == 3 && flags & 2 != 0 {
                queue.unpop();
                continue;
            }
            let header = chain.read_array::<16>();
            assert!(header.is_none() || total >= 16);
            let (before, cut) = (chain.writable.len(), usize::from(*flags));
            let tail = chain.writable.split_tail(cut);
            assert_eq!(chain.writable.len() + tail.len(), before);
            let written = chain.write(&[0x5a; 100]);
            assert!(written <= before);
            if queue.complete(memory, chain).is_err() {
                break;
            }
            if queue.wants_interrupt(memory).is_err() {
                break;
            }
        }
    });
}

/// A descriptor's bytes.
pub(crate) fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

fn virtqueue_seeds() -> Vec<Vec<u8>> {
    let table = |descriptors: &[Vec<u8>], heads: &[u16]| {
        let mut bytes: Vec<u8> = descriptors.concat();
        bytes.resize(AVAILABLE as usize, 0);
        bytes.extend([0, 0]);
        bytes.extend((heads.len() as u16).to_le_bytes());
        bytes.extend(heads.iter().flat_map(|head| head.to_le_bytes()));
        bytes
    };
    let plain = table(
        &[
            descriptor(0x4000, 16, 1, 1),
            descriptor(0x5000, 100, 3, 2),
            descriptor(0x6000, 1, 2, 0),
        ],
        &[0, 1],
    );
    let mut indirect = table(&[descriptor(0x200, 48, 4, 0)], &[0, 0, 0]);
    indirect.resize(0x200, 0);
    indirect.extend(descriptor(0x4000, 16, 1, 1));
    indirect.extend(descriptor(0x5000, 0x1000, 3, 2));
    indirect.extend(descriptor(0x6000, 1, 2, 0));
    let prefixed = |flags: u8, bytes: &[u8]| [&[flags], bytes].concat();
    vec![
        prefixed(0, &plain),
        prefixed(3, &plain),
        prefixed(1, &indirect),
    ]
}

fn block_request(data: &[u8]) {
    let mut feed = Feed::new(data);
    let disk = Geometry {
        size: u64::from(feed.u32()) * request::SECTOR,
        readonly: false,
    };
    while !feed.is_empty() {
        let length = u64::from(feed.u32());
        match request::parse(&feed.array()) {
            request::Request::Read(offset) | request::Request::Write(offset)
                if disk.contains(offset, length) =>
            {
                assert!(offset + length <= disk.size);
                assert!(length.is_multiple_of(request::SECTOR));
            }
            _ => {}
        }
        if let Some(range) = request::parse_range(&feed.array())
            && disk.contains(range.offset, range.length)
        {
            assert!(range.offset + range.length <= disk.size);
        }
    }
}

fn block_request_seeds() -> Vec<Vec<u8>> {
    let mut seed = 128_u32.to_le_bytes().to_vec();
    for kind in [0_u32, 1, 4, 8, 11, 13] {
        seed.extend(512_u32.to_le_bytes());
        seed.extend(kind.to_le_bytes());
        seed.extend([0; 4]);
        seed.extend(3_u64.to_le_bytes());
        seed.extend(1_u64.to_le_bytes());
        seed.extend(8_u32.to_le_bytes());
        seed.extend(1_u32.to_le_bytes());
    }
    vec![seed]
}

fn vsock_packet(data: &[u8]) {
    if let Some(bytes) = data.first_chunk::<HEADER_SIZE>() {
        assert_eq!(Header::parse(bytes).encode(), *bytes);
    }
    if let Some(port) = parse_connect(data) {
        let line = format!("CONNECT {port}");
        assert_eq!(parse_connect(line.as_bytes()), Some(port));
    }
}

fn qcow2(data: &[u8]) {
    let head = data.get(..104).unwrap_or(data);
    if check_header(head).is_err() {
        return;
    }
    SCRATCH.with(|scratch| {
        scratch.fill(data);
        devices::image(&scratch.path);
    });
}

const KERNEL_BYTES: u64 = 32 << 20;

fn kernel(data: &[u8]) {
    KERNEL_MEMORY.with(|memory| {
        SCRATCH.with(|scratch| {
            scratch.fill(data);
            let initrds = [scratch.path.clone()];
            let source = boot::Source {
                kernel: &scratch.path,
                initrds: &initrds,
                command_line: "console=hvc0",
            };
            let loaded = boot::load(memory, KERNEL_BYTES, &source, layout::ACPI_TABLES);
            if let Ok(boot::Entry::Long(_)) = loaded {
                // Where the zero page says that the initial RAM file system is, there it is.
                let place =
                    |at: u64| memory.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE.0 + at));
                let start = u64::from(place(0x218).unwrap());
                let length = place(0x21c).unwrap() as usize;
                let mut found = vec![0; data.len()];
                assert!(length >= data.len() && start >= layout::HIGH_MEMORY.0);
                memory.read_slice(&mut found, GuestAddress(start)).unwrap();
                assert_eq!(found, data);
            }
        });
    });
}

fn kernel_seeds() -> Vec<Vec<u8>> {
    let put = |image: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        image.splice(at..at + bytes.len(), bytes.iter().copied());
    };
    // A setup sector with a header, and a few bytes of kernel.
    let mut bzimage = vec![0; 1024];
    put(&mut bzimage, 0x1f1, &[1]);
    put(&mut bzimage, 0x1fe, &[0x55, 0xaa]);
    put(&mut bzimage, 0x202, b"HdrS");
    put(&mut bzimage, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut bzimage, 0x211, &[1]);
    put(&mut bzimage, 0x214, &0x10_0000_u32.to_le_bytes());
    put(&mut bzimage, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut bzimage, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut bzimage, 0x260, &0x10_0000_u32.to_le_bytes());
    bzimage.extend(b"kernel");
    // An ELF file with a loaded segment; the second one with a PVH note beside it.
    let elf = |note: bool| {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(2_u16.to_le_bytes());
        elf.extend(62_u16.to_le_bytes());
        elf.extend(1_u32.to_le_bytes());
        elf.extend(0x10_0000_u64.to_le_bytes());
        elf.extend(64_u64.to_le_bytes());
        elf.extend(0_u64.to_le_bytes());
        elf.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 1 + u16::from(note), 0, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        let segment = |kind: u32, offset: u64, size: u64| {
            let mut bytes = kind.to_le_bytes().to_vec();
            bytes.extend(5_u32.to_le_bytes());
            for word in [offset, 0x10_0000, 0x10_0000, size, size, 4] {
                bytes.extend(word.to_le_bytes());
            }
            bytes
        };
        let data = 64 + 56 * if note { 2 } else { 1 };
        elf.extend(segment(1, data, 16));
        if note {
            elf.extend(segment(4, data, 20));
        }
        elf.extend(4_u32.to_le_bytes());
        elf.extend(4_u32.to_le_bytes());
        elf.extend(18_u32.to_le_bytes());
        elf.extend(b"Xen\0");
        elf.extend(0x10_0000_u64.to_le_bytes());
        elf
    };
    vec![bzimage, elf(false), elf(true)]
}

fn vm_config(data: &[u8]) {
    let Ok(config) = hypervisor::config::parse(data, Path::new("fuzz")) else {
        return;
    };
    assert!((1..=16).contains(&config.vcpus));
    assert!(config.memory_mib <= 1 << 20);
    assert!(config.disks.len() + config.nets.len() + config.consoles.len() <= 31);
    survives(&config);
}

fn vm_config_seeds() -> Vec<Vec<u8>> {
    let whole = r#"{"name":"a","vcpus":2,"memoryMib":64,
        "boot":{"kind":"kernel","kernel":"/k","initrds":["/i"],"cmdline":"quiet"},
        "disks":[{"path":"/d","format":"qcow2","readonly":true,"serial":"s"}],
        "nets":[{"tap":"t","mac":"02:00:00:00:00:01","mtu":1400}],
        "serial":{"stdout":true},"consoles":[{"socket":"/c0"}],
        "vsock":{"cid":3,"socket":"/v"},"rng":true,"controlSocket":"/c","lastWords":"/w"}"#;
    vec![
        whole.as_bytes().to_vec(),
        br#"{"name":"a","vcpus":1,"memoryMib":64,"boot":{"kind":"kernel","kernel":"/k"},"controlSocket":"/c"}"#.to_vec(),
    ]
}

fn control_request(data: &[u8]) {
    let handles = Handles {
        lifecycle: Arc::new(Lifecycle::new(Instant::now()).unwrap()),
        power_button: Box::new(|| {}),
        disks: vec![Arc::default()],
        nets: vec![Arc::default()],
    };
    for line in data.split(|byte| *byte == b'\n') {
        survives::<Answer>(&handles.answer(line));
        if let Ok(request) = serde_json::from_slice::<Request>(line) {
            survives(&request);
        }
    }
}

fn monitor_answer(data: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<Answer>(data) {
        survives(&answer);
    }
    if let Ok(words) = serde_json::from_slice::<LastWords>(data) {
        assert!(words.exit_code() <= 4);
        survives(&words);
    }
}

fn monitor_answer_seeds() -> Vec<Vec<u8>> {
    let state = State {
        phase: Phase::Running,
        boot_micros: 90_000,
        disks: vec![Transfer {
            rx_bytes: 1,
            tx_bytes: 2,
        }],
        nets: vec![],
    };
    let refused = Answer::Refused {
        reason: "no".to_owned(),
    };
    let failed = LastWords::Failed {
        message: "no".to_owned(),
    };
    vec![
        serde_json::to_vec(&Answer::State(state)).unwrap(),
        serde_json::to_vec(&refused).unwrap(),
        serde_json::to_vec(&failed).unwrap(),
    ]
}
