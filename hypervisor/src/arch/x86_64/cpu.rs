//! A vCPU's identity (CPUID) and first state (registers).

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::Bytes;

use super::boot::Entry;
use super::layout;
use crate::memory::Memory;

/// CPUID leaf 1, ECX: x2APIC, TSC deadline timer, "runs under a hypervisor".
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 1, EDX: more than one logical processor in a package.
const HYPER_THREADING: u32 = 1 << 28;

/// What the host's KVM can offer; read once, made personal for each vCPU by [`identity`].
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        if entry.function == 1 {
            // KVM on AMD leaves the hypervisor bit clear, and Linux looks for KVM's clock only where it is set.
            entry.ecx |= HYPERVISOR;
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
        }
    }
    Ok(cpuid)
}

/// The identity of vCPU `index` of `count`: one package, one thread a core, APIC id = index.
///
/// Leaf meanings: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
pub fn identity(supported: &CpuId, index: u8, count: u8) -> Result<CpuId, kvm_ioctls::Error> {
    let id = u32::from(index);
    let cores = u32::from(count);
    // Bits of the APIC id that number cores.
    let core_bits = u32::from(count.max(1)).next_power_of_two().trailing_zeros();
    let mut entries: Vec<kvm_cpuid_entry2> = Vec::with_capacity(KVM_MAX_CPUID_ENTRIES);
    let mut topology: Option<kvm_cpuid_entry2> = None;
    for entry in supported.as_slice() {
        let mut entry = *entry;
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | cores << 16 | id << 24;
                entry.ecx |= X2APIC;
                if count > 1 {
                    entry.edx |= HYPER_THREADING;
                } else {
                    entry.edx &= !HYPER_THREADING;
                }
            }
            // Intel's cache leaves: levels 1 and 2 belong to one core, level 3 to the package.
            0x4 => {
                let level = entry.eax >> 5 & 0b111;
                let sharing = if level >= 3 { cores - 1 } else { 0 };
                entry.eax = entry.eax & 0x0000_3fff | sharing << 14 | (cores - 1).min(63) << 26;
            }
            // Extended topology is written anew below; the newer forms of the leaf are left out.
            0xb => {
                topology = Some(entry);
                continue;
            }
            0x1f | 0x8000_0026 => continue,
            // AMD: number of cores less one, and how many bits number them.
            0x8000_0008 => {
                entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (cores - 1);
            }
            0x8000_001d => {
                let level = entry.eax >> 5 & 0b111;
                let sharing = if level >= 3 { cores - 1 } else { 0 };
                entry.eax = entry.eax & 0x0000_3fff | sharing << 14;
            }
            // AMD: extended APIC id; core id, one thread; node id, one node.
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = id;
                entry.ecx = 0;
            }
            _ => {}
        }
        entries.push(entry);
    }
    if let Some(mut entry) = topology {
        entry.flags |= kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        entry.edx = id;
        // Level "thread": one a core.
        entries.push(kvm_cpuid_entry2 {
            index: 0,
            eax: 0,
            ebx: 1,
            ecx: 1 << 8,
            ..entry
        });
        // Level "core".
        entries.push(kvm_cpuid_entry2 {
            index: 1,
            eax: core_bits,
            ebx: cores,
            ecx: 2 << 8 | 1,
            ..entry
        });
        // No further level.
        entries.push(kvm_cpuid_entry2 {
            index: 2,
            eax: 0,
            ebx: 0,
            ecx: 2,
            ..entry
        });
    }
    entries.sort_by_key(|entry| (entry.function, entry.index));
    entries.dedup_by_key(|entry| (entry.function, entry.index, entry.flags));
    CpuId::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// Brings the first vCPU to the kernel's door. The others wait for the first one's call (INIT, SIPI) as KVM makes them.
pub fn enter(vcpu: &VcpuFd, memory: &Memory, entry: Entry) -> Result<(), EnterError> {
    let mut sregs = vcpu.get_sregs()?;
    let (code, rip) = match entry {
        Entry::Long(rip) => (segment(0x10, 0xb, true), rip),
        Entry::Pvh(rip) => (segment(0x10, 0xb, false), rip),
    };
    let data = segment(0x18, 0x3, false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: 0x20,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };

    let table: [u64; 5] = [
        0,
        0,
        descriptor(&code),
        descriptor(&data),
        descriptor(&sregs.tr),
    ];
    for (index, entry) in table.iter().enumerate() {
        memory.write_obj(
            *entry,
            vm_memory::GuestAddress(layout::GDT.0 + 8 * index as u64),
        )?;
    }
    memory.write_obj(0_u64, layout::IDT)?;
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = (size_of_val(&table) - 1) as u16;
    sregs.idt.base = layout::IDT.0;
    sregs.idt.limit = 7;

    const CR0_PE: u64 = 1;
    const CR0_ET: u64 = 1 << 4;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME: u64 = 1 << 8;
    const EFER_LMA: u64 = 1 << 10;
    let mut regs = kvm_regs {
        rip: rip.0,
        // Bit 1 is always set.
        rflags: 2,
        ..Default::default()
    };
    match entry {
        Entry::Long(_) => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rsi = layout::ZERO_PAGE.0;
        }
        Entry::Pvh(_) => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rbx = layout::PVH_START_INFO.0;
        }
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    Ok(())
}

/// Model-specific registers that firmware would have set, on every vCPU.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        // Memory is write-back where nothing else is said (enable bit 11, type 6); without it Linux switches PAT off.
        entry(MTRR_DEFAULT_TYPE, 1 << 11 | 6),
        // Fast string operations.
        entry(IA32_MISC_ENABLE, 1),
    ])
    .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    // KVM stops at the first one that it does not know and says how many it took; both are only hints.
    vcpu.set_msrs(&msrs).map(|_| ())
}

/// The first vCPU could not be brought to its start.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// KVM refused registers.
    #[error("setting registers: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
    /// The descriptor table has no place.
    #[error("writing the descriptor table: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A flat 4 GiB segment.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// A segment in the form in which it stands in a descriptor table (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let base = segment.base;
    let bit = |value: u8, at: u32| u64::from(value) << at;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_form_that_processors_read() {
        assert_eq!(descriptor(&segment(0x10, 0xb, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(
            descriptor(&segment(0x10, 0xb, false)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&segment(0x18, 0x3, false)),
            0x00cf_9300_0000_ffff
        );
    }

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    #[test]
    fn every_vcpu_has_its_own_id_in_one_package() {
        let supported =
            CpuId::from_entries(&[leaf(1, 0), leaf(0xb, 0), leaf(0xb, 1), leaf(0x8000_001e, 0)])
                .unwrap();
        let cpuid = identity(&supported, 2, 3).unwrap();
        let find = |function, index| {
            *cpuid
                .as_slice()
                .iter()
                .find(|entry| entry.function == function && entry.index == index)
                .unwrap()
        };
        assert_eq!(find(1, 0).ebx >> 16, 2 << 8 | 3);
        assert_eq!(find(1, 0).edx & HYPER_THREADING, HYPER_THREADING);
        let core = find(0xb, 1);
        assert_eq!(
            (core.eax, core.ebx, core.edx),
            (2, 3, 2),
            "3 cores need 2 bits"
        );
        assert_eq!(find(0xb, 2).ecx, 2);
        assert_eq!(find(0x8000_001e, 0).eax, 2);
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let supported = CpuId::from_entries(&[leaf(1, 0), leaf(0xb, 0)]).unwrap();
        let cpuid = identity(&supported, 0, 1).unwrap();
        assert_eq!(cpuid.as_slice()[0].edx & HYPER_THREADING, 0);
        assert_eq!(cpuid.as_slice()[2].eax, 0);
    }
}
