//! The description of a virtual machine and the control protocol of its monitor.
