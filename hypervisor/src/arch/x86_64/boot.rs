//! Puts a kernel, its initial RAM file systems and its papers into memory.
//!
//! Two doors lead into Linux. A bzImage, and an ELF kernel without a PVH note, are entered in 64-bit mode with the zero
//! page in RSI (Documentation/arch/x86/boot.rst, "64-bit boot protocol"). An ELF kernel with a PVH note is entered in
//! 32-bit mode with `hvm_start_info` in EBX (Xen's docs/misc/pvh.pandoc).

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress};

use super::layout::{self, RangeKind};
use crate::memory::Memory;

/// Where and in which mode the first vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, zero page in RSI.
    Long(GuestAddress),
    /// 32-bit protected mode, start info in EBX.
    Pvh(GuestAddress),
}

/// A kernel that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be read.
    #[error("reading {path}: {source}")]
    Read {
        /// The kernel or initial RAM file system.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel file is not a kernel.
    #[error(
        "loading the kernel {path}: {source}; it must be a bzImage or a 64-bit ELF file, and fit into memory"
    )]
    Kernel {
        /// The kernel file.
        path: PathBuf,
        /// What is wrong with it.
        source: linux_loader::loader::Error,
    },
    /// Kernel and initial RAM file systems together are too big.
    #[error(
        "{memory_mib} MiB of memory do not hold the kernel (ends at {kernel_end:#x}) and {initrd_bytes} bytes of initial RAM file systems; give the machine more memory"
    )]
    TooSmall {
        /// Guest memory in MiB.
        memory_mib: u64,
        /// End of what the kernel needs while it unpacks itself, as an address.
        kernel_end: u64,
        /// All initial RAM file systems together, in bytes.
        initrd_bytes: u64,
    },
    /// Writing to guest memory failed.
    #[error("writing boot parameters into guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What is to be started.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The kernel file.
    pub kernel: &'a Path,
    /// Initial RAM file systems, in order.
    pub initrds: &'a [PathBuf],
    /// Command line, at most [`layout::COMMAND_LINE_MAX`] bytes (checked by the configuration's reader).
    pub command_line: &'a str,
}

/// Loads everything into `memory` (of `bytes` size) and returns where to begin. ACPI tables must be there already.
pub fn load(
    memory: &Memory,
    bytes: u64,
    source: &Source<'_>,
    rsdp: GuestAddress,
) -> Result<Entry, BootError> {
    let kernel = load_kernel(memory, source.kernel)?;
    let kernel_end = kernel_needs_until(&kernel);
    let limit = kernel
        .setup_header
        .map_or(0x7fff_ffff, |header| u64::from(header.initrd_addr_max))
        .saturating_add(1)
        .min(layout::LOW_RAM_END)
        .min(bytes);
    let initrd = load_initrds(memory, source.initrds, limit, |initrd_bytes| {
        BootError::TooSmall {
            memory_mib: bytes >> 20,
            kernel_end,
            initrd_bytes,
        }
    })?;
    if initrd.start < kernel_end {
        return Err(BootError::TooSmall {
            memory_mib: bytes >> 20,
            kernel_end,
            initrd_bytes: initrd.length,
        });
    }

    let mut line = source.command_line.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, layout::COMMAND_LINE)?;

    match kernel.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            write_start_info(memory, bytes, &initrd, rsdp)?;
            Ok(Entry::Pvh(entry))
        }
        _ => {
            let entry = match kernel.setup_header {
                // A bzImage's 64-bit entry lies 512 bytes into its protected-mode part.
                Some(_) => GuestAddress(kernel.kernel_load.0 + 0x200),
                None => kernel.kernel_load,
            };
            write_zero_page(memory, bytes, &kernel, &initrd, line.len() - 1, rsdp)?;
            write_page_tables(memory)?;
            Ok(Entry::Long(entry))
        }
    }
}

fn load_kernel(memory: &Memory, path: &Path) -> Result<KernelLoaderResult, BootError> {
    let read = |source| BootError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(read)?;
    file.rewind().map_err(read)?;
    let start = Some(layout::HIGH_MEMORY);
    if &magic == b"\x7fELF" {
        Elf::load(memory, None, &mut file, start)
    } else {
        BzImage::load(memory, start, &mut file, start)
    }
    .map_err(|source| BootError::Kernel {
        path: path.to_owned(),
        source,
    })
}

/// End of the memory that the kernel uses before it knows of its initial RAM file system.
fn kernel_needs_until(kernel: &KernelLoaderResult) -> u64 {
    match kernel.setup_header {
        // It unpacks itself at its preferred address and needs `init_size` bytes there.
        Some(header) => {
            let preferred = { header.pref_address }.max(kernel.kernel_load.0);
            preferred
                .saturating_add(u64::from(header.init_size))
                .max(kernel.kernel_end)
        }
        None => kernel.kernel_end,
    }
}

struct Initrd {
    start: u64,
    length: u64,
}

fn load_initrds(
    memory: &Memory,
    paths: &[PathBuf],
    limit: u64,
    too_small: impl Fn(u64) -> BootError,
) -> Result<Initrd, BootError> {
    let mut files = Vec::new();
    let mut length = 0_u64;
    for path in paths {
        let read = |source| BootError::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        files.push((path, file, size, length));
        // Each archive starts on a multiple of 4 (Documentation/driver-api/early-userspace/buffer-format.rst).
        length = length
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(4))
            .ok_or_else(|| too_small(u64::MAX))?;
    }
    if files.is_empty() {
        return Ok(Initrd {
            start: limit,
            length: 0,
        });
    }
    let start = limit
        .checked_sub(length)
        .map(|start| start & !0xfff)
        .filter(|start| *start >= layout::HIGH_MEMORY.0)
        .ok_or_else(|| too_small(length))?;
    for (path, mut file, size, offset) in files {
        memory
            .read_exact_volatile_from(GuestAddress(start + offset), &mut file, size as usize)
            .map_err(|source| BootError::Read {
                path: path.clone(),
                source: std::io::Error::other(source),
            })?;
    }
    Ok(Initrd { start, length })
}

fn write_zero_page(
    memory: &Memory,
    bytes: u64,
    kernel: &KernelLoaderResult,
    initrd: &Initrd,
    line_length: usize,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    let mut page = boot_params {
        acpi_rsdp_addr: rsdp.0,
        ..Default::default()
    };
    if let Some(header) = kernel.setup_header {
        page.hdr = header;
    } else {
        page.hdr.boot_flag = 0xaa55;
        page.hdr.header = u32::from_le_bytes(*b"HdrS");
        page.hdr.kernel_alignment = 0x100_0000;
    }
    // "Undefined" boot loader: we have no number assigned.
    page.hdr.type_of_loader = 0xff;
    page.hdr.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
    page.hdr.cmdline_size = line_length as u32;
    if initrd.length > 0 {
        page.hdr.ramdisk_image = initrd.start as u32;
        page.hdr.ramdisk_size = initrd.length as u32;
    }
    let map = layout::memory_map(bytes);
    page.e820_entries = map.len() as u8;
    for (entry, (addr, size, kind)) in page.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr,
            size,
            r#type: kind as u32,
        };
    }
    memory.write_obj(page, layout::ZERO_PAGE)?;
    Ok(())
}

/// Maps the first GiB onto itself in 2 MiB pages, which is what the 64-bit entry expects at least.
fn write_page_tables(memory: &Memory) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let tables = layout::PAGE_TABLES.0;
    memory.write_obj((tables + 0x1000) | PRESENT_WRITABLE, GuestAddress(tables))?;
    memory.write_obj(
        (tables + 0x2000) | PRESENT_WRITABLE,
        GuestAddress(tables + 0x1000),
    )?;
    let mut directory = Vec::with_capacity(4096);
    for index in 0..512_u64 {
        directory.extend_from_slice(&(index << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes());
    }
    memory.write_slice(&directory, GuestAddress(tables + 0x2000))?;
    Ok(())
}

fn write_start_info(
    memory: &Memory,
    bytes: u64,
    initrd: &Initrd,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    let map = layout::memory_map(bytes);
    let mut info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if initrd.length > 0 {
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES.0;
        memory.write_obj(
            hvm_modlist_entry {
                paddr: initrd.start,
                size: initrd.length,
                ..Default::default()
            },
            layout::PVH_MODULES,
        )?;
    }
    let mut address = layout::PVH_MEMORY_MAP;
    for (addr, size, kind) in map {
        let entry = hvm_memmap_table_entry {
            addr,
            size,
            type_: match kind {
                RangeKind::Memory => 1,
                RangeKind::Reserved => 2,
            },
            reserved: 0,
        };
        memory.write_obj(entry, address)?;
        address.0 += size_of::<hvm_memmap_table_entry>() as u64;
    }
    memory.write_obj(info, layout::PVH_START_INFO)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryBackend;

    /// A bzImage as small as one can be: a setup sector pair with a header, and a few bytes of "kernel".
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0_u8; 1024];
        image[0x1f1] = 1; // setup_sects
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x211] = 1; // loadflags: loaded high
        image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        image.extend_from_slice(b"kernel");
        image
    }

    fn files(initrds: &[&[u8]]) -> (tempfile::TempDir, PathBuf, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, bzimage()).unwrap();
        let mut paths = Vec::new();
        for (index, bytes) in initrds.iter().enumerate() {
            let path = folder.path().join(format!("initrd-{index}"));
            std::fs::write(&path, bytes).unwrap();
            paths.push(path);
        }
        (folder, kernel, paths)
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_door_with_its_papers_in_order() {
        let bytes = 32 << 20;
        let memory = crate::memory::create(&layout::memory_ranges(bytes)).unwrap();
        let (_folder, kernel, initrds) = files(&[b"first", b"second!"]);
        let source = Source {
            kernel: &kernel,
            initrds: &initrds,
            command_line: "console=hvc0",
        };
        let entry = load(&memory, bytes, &source, GuestAddress(0xe_0000)).unwrap();
        assert_eq!(entry, Entry::Long(GuestAddress(0x10_0200)));
        let page: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
        let start = { page.hdr.ramdisk_image };
        assert_eq!(
            { page.hdr.ramdisk_size },
            16,
            "5 bytes padded to 8, then 7 padded to 8"
        );
        let mut initrd = [0; 16];
        memory
            .read_slice(&mut initrd, GuestAddress(start.into()))
            .unwrap();
        assert_eq!(&initrd, b"first\0\0\0second!\0");
        let mut line = [0; 13];
        memory.read_slice(&mut line, layout::COMMAND_LINE).unwrap();
        assert_eq!(&line, b"console=hvc0\0");
        assert_eq!({ page.e820_entries }, 4);
        assert_eq!({ page.acpi_rsdp_addr }, 0xe_0000);
    }

    #[test]
    fn an_initrd_that_would_be_overwritten_is_refused() {
        let bytes = 18 << 20;
        let memory = crate::memory::create(&layout::memory_ranges(bytes)).unwrap();
        let (_folder, kernel, initrds) = files(&[&vec![1; 1 << 20], &[2; 4096]]);
        let source = Source {
            kernel: &kernel,
            initrds: &initrds,
            command_line: "",
        };
        let error = load(&memory, bytes, &source, GuestAddress(0)).unwrap_err();
        assert!(
            error.to_string().contains("18 MiB of memory do not hold"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let memory = crate::memory::create(&layout::memory_ranges(16 << 20)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("nonsense");
        std::fs::write(&kernel, vec![0x5a; 4096]).unwrap();
        let source = Source {
            kernel: &kernel,
            initrds: &[],
            command_line: "",
        };
        let error = load(&memory, 16 << 20, &source, GuestAddress(0)).unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
        assert!(memory.check_address(GuestAddress(0)).is_some());
    }
}
