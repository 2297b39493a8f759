//! The agent on the device: what it should be, what it is, and the next step.
