//! Where things lie in a guest's physical memory and port space.
//!
//! ```text
//! 0x0000_0500  GDT, boot papers (start info, zero page, page tables, command line)
//! 0x0009_fc00  end of conventional memory
//! 0x000e_0000  ACPI tables, RSDP first (where firmware-less kernels look for it)
//! 0x0010_0000  kernel; the rest of low memory, initial RAM file systems at its end
//! 0xc000_0000  window of PCI memory BARs
//! 0xfec0_0000  IOAPIC, 0xfee0_0000 local APICs
//! 0x1_0000_0000  what memory did not fit below the window
//! ```

use vm_memory::GuestAddress;

/// Descriptor table of the first vCPU's boot state.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// Empty interrupt descriptor table of the same.
pub const IDT: GuestAddress = GuestAddress(0x520);
/// `hvm_start_info` for a PVH kernel, followed by its module list and memory map.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// The PVH module list: one entry, 32 bytes.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// The PVH memory map, 24 bytes an entry.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6080);
/// `boot_params`, "the zero page", 4 KiB.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// First of three page tables (4 KiB each) that map the first GiB onto itself.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line in bytes, without its terminating zero (x86's COMMAND_LINE_SIZE is 2,048).
pub const COMMAND_LINE_MAX: usize = 2047;
/// End of conventional memory; above it lies what a PC calls the extended BIOS data area.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables, at most [`ACPI_TABLES_SIZE`] bytes.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// Room for ACPI tables in bytes.
pub const ACPI_TABLES_SIZE: u64 = 0x2_0000;
/// Where memory beyond the PC's first megabyte begins, and kernels are loaded.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);

/// Memory stops here and goes on at [`ABOVE_4G`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First address above the 32-bit hole.
pub const ABOVE_4G: u64 = 0x1_0000_0000;
/// Window of PCI memory BARs.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// Size of that window in bytes; it ends below the IOAPIC.
pub const PCI_WINDOW_SIZE: u64 = 0x3e00_0000;
/// The IOAPIC's registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM wants for itself on Intel processors.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// The 16550 UART, eight ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The UART's interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// ACPI PM1 event block: status and enable, two bytes each.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// ACPI PM1 control block, two bytes.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// The interrupt line of ACPI events (SCI), level-triggered.
pub const SCI_GSI: u32 = 9;
/// Reset control register, as chipsets have it.
pub const RESET_PORT: u16 = 0xcf9;
/// Value that resets the machine when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 6;
/// Keyboard controller: status and command. Its only command here is "pulse the reset line".
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// PCI configuration mechanism 1: address.
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// PCI configuration mechanism 1: data, four ports.
pub const PCI_DATA_PORT: u16 = 0xcfc;

/// Memory ranges (start, length in bytes) of a machine with `bytes` of memory.
pub fn memory_ranges(bytes: u64) -> Vec<(GuestAddress, usize)> {
    if bytes <= LOW_RAM_END {
        vec![(GuestAddress(0), bytes as usize)]
    } else {
        vec![
            (GuestAddress(0), LOW_RAM_END as usize),
            (GuestAddress(ABOVE_4G), (bytes - LOW_RAM_END) as usize),
        ]
    }
}

/// Kind of a range in the map that a kernel gets (e820 type numbers, ACPI 6.5 table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Free for use.
    Memory = 1,
    /// To be left alone.
    Reserved = 2,
}

/// The memory map of a machine with `bytes` of memory: start, length, kind.
pub fn memory_map(bytes: u64) -> Vec<(u64, u64, RangeKind)> {
    let low = bytes.min(LOW_RAM_END);
    let mut map = vec![
        (0, LOW_MEMORY_END, RangeKind::Memory),
        (
            LOW_MEMORY_END,
            0xa_0000 - LOW_MEMORY_END,
            RangeKind::Reserved,
        ),
        (ACPI_TABLES.0, ACPI_TABLES_SIZE, RangeKind::Reserved),
        (HIGH_MEMORY.0, low - HIGH_MEMORY.0, RangeKind::Memory),
    ];
    if bytes > LOW_RAM_END {
        map.push((ABOVE_4G, bytes - LOW_RAM_END, RangeKind::Memory));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_three_gib_continues_above_four() {
        assert_eq!(memory_ranges(64 << 20), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(
            memory_ranges(5 << 30),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]
        );
    }

    #[test]
    fn the_map_covers_all_memory_without_overlap() {
        for bytes in [16 << 20, 3 << 30, 8_u64 << 30] {
            let map = memory_map(bytes);
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
            }
            let free: u64 = map
                .iter()
                .filter(|range| range.2 == RangeKind::Memory)
                .map(|range| range.1)
                .sum();
            assert_eq!(free, bytes - (HIGH_MEMORY.0 - LOW_MEMORY_END));
        }
    }
}
