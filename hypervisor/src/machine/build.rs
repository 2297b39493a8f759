//! Puts the parts of a machine together, in the order in which they need each other.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypervisor_api::config::{Boot, Console as ConsoleConfig, VmConfig};
use hypervisor_api::mac::{MacAddress, MacError};
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::Parts;
use super::signals::Signals;
use super::vcpu::Vcpu;
use crate::arch::{self, acpi, boot, cpu, layout, ports::Ports};
use crate::console::Backend;
use crate::control::{Handles, Server};
use crate::event_loop::{EventLoop, Subscriber};
use crate::lifecycle::Lifecycle;
use crate::memory::{self, Memory, MemoryError};
use crate::pci::{PciBus, PciFunction};
use crate::platform::{KvmPlatform, Platform};
use crate::serial::Uart;
use crate::socket::SocketError;
use crate::virtio::block::{self, Block, ImageError};
use crate::virtio::console::Console;
use crate::virtio::net::{Net, Settings, Tap, TapError};
use crate::virtio::rng::Rng;
use crate::virtio::transport::{BAR_SIZE, VirtioPci};
use crate::virtio::vsock::Vsock;
use crate::virtio::{Counters, Device};

/// A machine that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A system call failed.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// KVM refused.
    #[error("{operation}: {source}")]
    Kvm {
        /// What was tried.
        operation: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel cannot be started.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The ACPI tables have no place.
    #[error("writing ACPI tables into guest memory: {0}")]
    Acpi(vm_memory::GuestMemoryError),
    /// The first vCPU cannot be set up.
    #[error("setting up the first vCPU: {0}")]
    Enter(#[from] cpu::EnterError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] ImageError),
    /// A tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A hardware address has a wrong form.
    #[error("the hardware address {0}")]
    Mac(#[from] MacError),
    /// A socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl BuildError {
    /// For `map_err`.
    pub(super) fn system(operation: &'static str) -> impl Fn(io::Error) -> BuildError {
        move |source| BuildError::System { operation, source }
    }

    fn kvm(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
        move |source| BuildError::Kvm { operation, source }
    }
}

/// Builds everything; nothing runs yet.
pub(super) fn build(config: &VmConfig, lifecycle: Arc<Lifecycle>) -> Result<Parts, BuildError> {
    let kvm = Kvm::new().map_err(BuildError::kvm("opening /dev/kvm"))?;
    let vm = create_vm(&kvm)?;
    let bytes = u64::from(config.memory_mib) << 20;
    let memory = memory::create(&layout::memory_ranges(bytes))?;
    memory::register(&vm, &memory).map_err(BuildError::kvm("giving the guest its memory"))?;
    arch::create_interrupt_controller(&vm)
        .map_err(BuildError::kvm("creating the interrupt controller"))?;

    let rsdp = acpi::write_tables(&memory, config.vcpus, config.serial.is_some())
        .map_err(BuildError::Acpi)?;
    let Boot::Kernel {
        kernel,
        initrds,
        cmdline,
    } = &config.boot;
    let source = boot::Source {
        kernel,
        initrds,
        command_line: cmdline,
    };
    let entry = boot::load(&memory, bytes, &source, rsdp)?;

    let platform: Arc<dyn Platform> = Arc::new(KvmPlatform::new(vm.clone()));
    let mut devices = Devices::new(memory.clone(), platform.clone())?;
    devices.add_all(config)?;
    let uart = match &config.serial {
        Some(serial) => Some(devices.uart(serial, &vm)?),
        None => None,
    };

    let pci = Arc::new(devices.pci);
    let ports = Arc::new(Ports::new(platform, pci.clone(), uart));
    let button = || {
        let ports = ports.clone();
        Box::new(move || ports.press_power_button())
    };
    let grace = Duration::from_secs(config.shutdown_grace_seconds.into());
    let signals = Signals::new(lifecycle.clone(), button(), grace)
        .map_err(BuildError::system("waiting for signals"))?;
    devices
        .main_loop
        .add(Arc::new(Mutex::new(signals)))
        .map_err(BuildError::system("waiting for signals"))?;
    let handles = Handles {
        lifecycle: lifecycle.clone(),
        power_button: button(),
        disks: devices.disk_counters,
        nets: devices.net_counters,
    };
    let server = Server::new(&config.control_socket, handles)?;
    devices
        .main_loop
        .add(Arc::new(Mutex::new(server)))
        .map_err(BuildError::system("registering the control socket"))?;

    let supported = cpu::supported(&kvm).map_err(BuildError::kvm("reading what KVM supports"))?;
    let mut vcpus = Vec::new();
    for index in 0..config.vcpus {
        let fd = vm
            .create_vcpu(index.into())
            .map_err(BuildError::kvm("creating a vCPU"))?;
        let identity = cpu::identity(&supported, index, config.vcpus)
            .map_err(BuildError::kvm("composing a vCPU's CPUID"))?;
        fd.set_cpuid2(&identity)
            .map_err(BuildError::kvm("setting a vCPU's CPUID"))?;
        cpu::set_msrs(&fd).map_err(BuildError::kvm("setting a vCPU's registers"))?;
        if index == 0 {
            cpu::enter(&fd, &memory, entry)?;
        }
        vcpus.push(Vcpu::new(index, fd, ports.clone(), pci.clone()));
    }

    Ok(Parts {
        lifecycle,
        main_loop: devices.main_loop,
        disk_loop: devices.disk_loop,
        disks: devices.disks,
        consoles: devices.consoles,
        vcpus,
    })
}

fn create_vm(kvm: &Kvm) -> Result<Arc<VmFd>, BuildError> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(Arc::new(vm)),
            // KVM gives up when a signal comes while it sets up, and wants to be asked again.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(source) => return Err(BuildError::kvm("creating the machine")(source)),
        }
    }
}

/// Devices on their bus and their event loops.
struct Devices {
    memory: Memory,
    platform: Arc<dyn Platform>,
    pci: PciBus,
    next_bar: u32,
    main_loop: EventLoop,
    disk_loop: EventLoop,
    disks: Vec<Arc<Mutex<VirtioPci<Block>>>>,
    consoles: Vec<Arc<Mutex<Backend>>>,
    disk_counters: Vec<Arc<Counters>>,
    net_counters: Vec<Arc<Counters>>,
}

impl Devices {
    fn new(memory: Memory, platform: Arc<dyn Platform>) -> Result<Self, BuildError> {
        let new_loop = || EventLoop::new().map_err(BuildError::system("making an event loop"));
        Ok(Devices {
            memory,
            platform,
            pci: PciBus::new(),
            next_bar: layout::PCI_WINDOW as u32,
            main_loop: new_loop()?,
            disk_loop: new_loop()?,
            disks: Vec::new(),
            consoles: Vec::new(),
            disk_counters: Vec::new(),
            net_counters: Vec::new(),
        })
    }

    /// All devices of the description, in an order that gives disks the lowest slots.
    fn add_all(&mut self, config: &VmConfig) -> Result<(), BuildError> {
        for disk in &config.disks {
            let counters = Arc::new(Counters::default());
            let image = block::open(disk)?;
            let serial = disk.serial.as_deref().unwrap_or_default();
            let block = Block::new(image, disk.readonly, serial, counters.clone());
            let function = self.function(block)?;
            self.disk_loop
                .add(function.clone())
                .map_err(BuildError::system("registering a disk"))?;
            self.disks.push(function);
            self.disk_counters.push(counters);
        }
        for net in &config.nets {
            let counters = Arc::new(Counters::default());
            let settings = Settings {
                mac: net.mac.parse::<MacAddress>()?.0,
                mtu: net.mtu,
            };
            let function =
                self.function(Net::new(Tap::open(&net.tap)?, &settings, counters.clone()))?;
            self.main(function)?;
            self.net_counters.push(counters);
        }
        for console in &config.consoles {
            let backend = self.backend(console)?;
            let console = Console::new(backend).map_err(BuildError::system("making a console"))?;
            let function = self.function(console)?;
            self.main(function)?;
        }
        if let Some(vsock) = &config.vsock {
            let function = self.function(Vsock::new(vsock.cid, &vsock.socket)?)?;
            self.main(function)?;
        }
        if config.rng {
            let function = self.function(Rng)?;
            self.main(function)?;
        }
        Ok(())
    }

    /// Puts a device into the next slot of the bus, its BAR behind the last one's.
    fn function<D: Device + 'static>(
        &mut self,
        device: D,
    ) -> Result<Arc<Mutex<VirtioPci<D>>>, BuildError> {
        let function = VirtioPci::new(
            device,
            self.next_bar,
            self.memory.clone(),
            self.platform.clone(),
        )
        .map_err(BuildError::system("making a device"))?;
        self.next_bar += BAR_SIZE;
        let function = Arc::new(Mutex::new(function));
        let on_bus: Arc<Mutex<dyn PciFunction>> = function.clone();
        self.pci.add(on_bus);
        Ok(function)
    }

    fn main(&mut self, subscriber: Arc<Mutex<dyn Subscriber>>) -> Result<(), BuildError> {
        self.main_loop
            .add(subscriber)
            .map_err(BuildError::system("registering a device"))
    }

    fn backend(&mut self, config: &ConsoleConfig) -> Result<Arc<Mutex<Backend>>, BuildError> {
        let backend = Arc::new(Mutex::new(Backend::new(config)?));
        self.main(backend.clone())?;
        self.consoles.push(backend.clone());
        Ok(backend)
    }

    fn uart(&mut self, config: &ConsoleConfig, vm: &VmFd) -> Result<Arc<Mutex<Uart>>, BuildError> {
        let backend = self.backend(config)?;
        let interrupt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(BuildError::system("making an event descriptor"))?;
        vm.register_irqfd(&interrupt, layout::SERIAL_GSI)
            .map_err(BuildError::kvm("connecting the UART's interrupt"))?;
        let uart = Uart::new(interrupt, backend).map_err(BuildError::system("making the UART"))?;
        let uart = Arc::new(Mutex::new(uart));
        self.main(uart.clone())?;
        Ok(uart)
    }
}
