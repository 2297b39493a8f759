//! Disk images without root: GPT, FAT, UKI, installer stick.
