//! A rugged PC as a Rust value: QEMU, UEFI, TPM, disks, stick, power button, cables to pull.
