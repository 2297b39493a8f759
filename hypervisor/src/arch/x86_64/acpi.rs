//! ACPI tables: RSDP, XSDT, FADT, FACS, DSDT, MADT.
//!
//! The machine is of the fixed-hardware kind: power button and sleep through the PM1 blocks, reset through port 0xcf9,
//! one SCI on line 9. No PM timer, no GPEs, no AML methods: what Linux does not need costs only boot time.
//! Field meanings: ACPI specification 6.5, chapters 4.8 (registers) and 5.2 (tables).

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::Memory;

const OEM: [u8; 6] = *b"SKERRY";
const OEM_TABLE: [u8; 8] = *b"SKERRYVM";
const OEM_REVISION: u32 = 1;

/// FADT boot flag: the keyboard controller is there to be probed. We leave it clear: probing costs a second.
/// What we set instead: no VGA (bit 2), no CMOS clock (bit 5). ACPI 6.5, table 5.11.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// Writes all tables for a machine with `vcpus` processors into memory and returns the RSDP's address.
pub fn write_tables(
    memory: &Memory,
    vcpus: u8,
    serial: bool,
) -> Result<GuestAddress, GuestMemoryError> {
    // The RSDP comes first, so that kernels that get no pointer find it by searching the range for its signature.
    let rsdp_address = layout::ACPI_TABLES;
    let mut next = rsdp_address.0 + 64;
    let mut place = |bytes: &[u8]| -> Result<u64, GuestMemoryError> {
        let address = next;
        memory.write_slice(bytes, GuestAddress(address))?;
        // The FACS wants 64-byte alignment; so does everything, then.
        next = (address + bytes.len() as u64).next_multiple_of(64);
        Ok(address)
    };

    let facs = place(&bytes_of(&acpi_tables::facs::FACS::new()))?;
    let dsdt = place(dsdt(serial).as_slice())?;
    let fadt = place(&bytes_of(&fadt(facs, dsdt)))?;
    let madt = place(madt(vcpus).as_slice())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&bytes_of(&xsdt))?;
    memory.write_slice(&bytes_of(&Rsdp::new(OEM, xsdt)), rsdp_address)?;
    Ok(rsdp_address)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address.into())
}

fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .flag(Flags::Wbinvd)
        // A set bit means "no fixed sleep button"; the power button's bit stays clear, so that one exists.
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = port(layout::PM1_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(layout::PM1_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.reset_reg = port(layout::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    // C2 and C3 states do not exist: latencies beyond 100 and 1,000 microseconds say so.
    fadt.p_lvl2_lat = 101_u16.into();
    fadt.p_lvl3_lat = 1001_u16.into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&layout::LOCAL_APIC.to_le_bytes());
    // PCAT_COMPAT: there are 8259s too.
    madt.append_slice(&1_u32.to_le_bytes());
    for cpu in 0..vcpus {
        // Processor local APIC: uid, APIC id, enabled.
        madt.append_slice(&[0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    // IOAPIC, id 0, lines from 0.
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&layout::IOAPIC.to_le_bytes());
    madt.append_slice(&0_u32.to_le_bytes());
    // Interrupt source overrides: the PIT's IRQ 0 arrives on line 2 (as KVM wires it), the SCI is active high, level.
    madt.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    let sci = layout::SCI_GSI as u8;
    madt.append_slice(&[2, 10, 0, sci, sci, 0, 0, 0, 0x0d, 0]);
    // NMI on LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt.update_checksum();
    madt
}

fn dsdt(serial: bool) -> Sdt {
    let mut body = Vec::new();
    // Soft off: the sleep type that the guest writes into PM1 control.
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&SLEEP_TYPE_OFF, &SLEEP_TYPE_OFF, &0_u8, &0_u8]),
    )
    .to_aml_bytes(&mut body);

    let window_end = (layout::PCI_WINDOW + layout::PCI_WINDOW_SIZE - 1) as u32;
    aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &0_u8),
            &aml::Name::new("_BBN".into(), &0_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0_u16, 0_u16),
                    &aml::IO::new(layout::PCI_ADDRESS_PORT, layout::PCI_ADDRESS_PORT, 1, 8),
                    &aml::AddressSpace::new_memory(
                        aml::AddressSpaceCacheable::NotCacheable,
                        true,
                        layout::PCI_WINDOW as u32,
                        window_end,
                        None,
                    ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut body);

    if serial {
        aml::Device::new(
            "_SB_.COM1".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &1_u8),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8),
                        &aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(&mut body);
    }

    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt.update_checksum();
    dsdt
}

/// The sleep type that means "off" on this machine; see `_S5_` in the DSDT.
pub const SLEEP_TYPE_OFF: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn table(memory: &Memory, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_are_found_from_the_rsdp_and_their_sums_are_zero() {
        let memory = crate::memory::create(&layout::memory_ranges(16 << 20)).unwrap();
        let rsdp = write_tables(&memory, 16, true).unwrap();
        let mut bytes = [0; 36];
        memory.read_slice(&mut bytes, rsdp).unwrap();
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(sum(&bytes), 0);
        let xsdt = table(
            &memory,
            u64::from_le_bytes(bytes[24..32].try_into().unwrap()),
        );
        assert_eq!(&xsdt[..4], b"XSDT");
        assert_eq!(sum(&xsdt), 0);
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let table = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&table), 0);
            names.push(table[..4].to_vec());
            if &table[..4] == b"FACP" {
                let dsdt = u32::from_le_bytes(table[40..44].try_into().unwrap());
                let dsdt = super::tests::table(&memory, dsdt.into());
                assert_eq!(&dsdt[..4], b"DSDT");
                assert_eq!(sum(&dsdt), 0);
            }
        }
        assert_eq!(names, [b"FACP".to_vec(), b"APIC".to_vec()]);
    }

    #[test]
    fn every_processor_is_listed() {
        let madt = madt(3);
        let entries = madt.as_slice()[44..]
            .chunks(8)
            .take(3)
            .map(|entry| (entry[0], entry[3], entry[4]))
            .collect::<Vec<_>>();
        assert_eq!(entries, [(0, 0, 1), (0, 1, 1), (0, 2, 1)]);
    }
}
