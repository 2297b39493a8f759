//! PID 1 in a container's microVM.
