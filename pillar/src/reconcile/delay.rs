//! How long reconcilers wait after a failure, by what failed.

use std::time::Duration;

use crate::backoff::Growth;

/// Downloads: 5 s to 10 min, give or take a fifth.
pub const DOWNLOAD: Growth = Growth {
    floor: Duration::from_secs(5),
    ceiling: Duration::from_secs(600),
    jitter_percent: 20,
};

/// Apps that ended by themselves: 1 s to 5 min.
pub const APP: Growth = Growth {
    floor: Duration::from_secs(1),
    ceiling: Duration::from_secs(300),
    jitter_percent: 0,
};

/// Work on the device itself that failed (a disk is full, a program is missing): 2 s to 2 min.
pub const LOCAL: Growth = Growth {
    floor: Duration::from_secs(2),
    ceiling: Duration::from_secs(120),
    jitter_percent: 10,
};
