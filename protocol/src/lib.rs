//! How device and controller speak: EVE API messages, signed envelope, encrypted blocks. No I/O.
