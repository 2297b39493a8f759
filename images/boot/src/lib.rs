//! What runs before systemd: the initramfs of the host image and the installer of the stick.
