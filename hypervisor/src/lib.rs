//! One virtual machine, one process, on KVM.
