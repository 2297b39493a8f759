//! Whether a guest runs at all on this machine's KVM: a few bytes of program, nothing of ours in between. The testbed asks
//! this of the machine that it emulates before anybody looks for a fault elsewhere.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::outer::load_modules;
use crate::system::{self, Result};

/// Where the guest's program lies, below 1 MiB since it runs in real mode.
const PROGRAM_AT: u16 = 0x1000;
/// The serial port's data register.
const PORT: u16 = 0x3f8;
/// `mov dx, 0x3f8; mov al, 7; add al, 35; out dx, al; hlt`: something that only a processor can answer.
const PROGRAM: [u8; 9] = [0xba, 0xf8, 0x03, 0xb0, 7, 0x04, 35, 0xee, 0xf4];
const ANSWER: u8 = 42;

/// Says `nested: a guest ran on KVM` or `nested: FAILED` with the reason, and powers off.
pub fn run() {
    match load_modules().and_then(|()| guest()) {
        Ok(()) => println!("nested: a guest ran on KVM"),
        Err(error) => println!("nested: FAILED {error}"),
    }
    system::power_off();
}

fn guest() -> Result<()> {
    let kvm = Kvm::new().map_err(|error| format!("opening /dev/kvm: {error}"))?;
    let vm = kvm.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 10)])?;
    memory.write_slice(&PROGRAM, GuestAddress(PROGRAM_AT.into()))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 64 << 10,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: the mapping is 64 KiB long and outlives the virtual machine, which is dropped before it.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut special = vcpu.get_sregs()?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = PROGRAM_AT.into();
    // Bit 1 is always set (Intel SDM volume 1, section 3.4.3).
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    let mut said = Vec::new();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(PORT, bytes) => said.extend_from_slice(bytes),
            VcpuExit::Hlt => break,
            exit => return Err(format!("the guest left with {exit:?}").into()),
        }
    }
    if said == [ANSWER] {
        Ok(())
    } else {
        Err(format!("the guest said {said:?} instead of {ANSWER}").into())
    }
}
