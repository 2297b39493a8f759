//! Who this machine is and whether it can be trusted: TPM, device keys, event log, quotes.
