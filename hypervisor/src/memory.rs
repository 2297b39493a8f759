//! A guest's memory: private anonymous pages, taken from the host as the guest touches them.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The memory of one guest.
pub type Memory = GuestMemoryMmap<()>;

/// Maps memory at the given ranges of guest physical addresses: start, length in bytes.
pub fn create(ranges: &[(GuestAddress, usize)]) -> Result<Memory, MemoryError> {
    Memory::from_ranges(ranges).map_err(|source| MemoryError {
        mib: ranges.iter().map(|(_, length)| length >> 20).sum(),
        source,
    })
}

/// The host did not give the memory.
#[derive(Debug, thiserror::Error)]
#[error("mapping {mib} MiB of guest memory: {source}")]
pub struct MemoryError {
    mib: usize,
    source: vm_memory::mmap::FromRangesError,
}

/// Makes the memory visible to the guest, one KVM slot a range.
pub fn register(vm: &kvm_ioctls::VmFd, memory: &Memory) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is mapped for as long as `memory` lives, and the machine keeps it until the process ends.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(())
}
