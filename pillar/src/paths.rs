//! Where things lie on the device.
//!
//! One value that is handed around, so that a test can put a whole device into a temporary directory. The names below
//! the three roots are the contract of the docs page "Contracts between the parts".

use std::path::{Path, PathBuf};

use protocol::ids::AppId;

/// The directories that the agent works in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The bundle of the installer stick, read-only.
    pub config: PathBuf,
    /// What outlives a power cut.
    pub persist: PathBuf,
    /// What is gone after a restart.
    pub run: PathBuf,
    /// What the image brings: monitor, guest kernel, guest initramfs, version.
    pub lib: PathBuf,
}

impl Default for Paths {
    /// The places on a real device.
    fn default() -> Self {
        Self {
            config: "/config".into(),
            persist: "/persist".into(),
            run: "/run/skerry".into(),
            lib: "/usr/lib/skerry".into(),
        }
    }
}

impl Paths {
    /// The agent's own lasting files: identity, checkpoint, counters.
    #[must_use]
    pub fn pillar(&self) -> PathBuf {
        self.persist.join("pillar")
    }

    /// Verified blobs by SHA-256; unfinished ones end in `.part`.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.persist.join("content/blobs/sha256")
    }

    /// Container root file systems by manifest digest.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.persist.join("content/rootfs")
    }

    /// Volumes.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.persist.join("volumes")
    }

    /// The run-time directory of one app.
    #[must_use]
    pub fn app(&self, app: AppId) -> PathBuf {
        self.run.join("apps").join(app.to_string())
    }

    /// What outlives a power cut of each app: how often it was started again.
    #[must_use]
    pub fn app_counters(&self) -> PathBuf {
        self.pillar().join("apps")
    }

    /// The same of one app.
    #[must_use]
    pub fn app_counter(&self, app: AppId) -> PathBuf {
        self.app_counters().join(app.to_string())
    }

    /// The monitor.
    #[must_use]
    pub fn vmm(&self) -> PathBuf {
        self.lib.join("skerry-vmm")
    }

    /// Guest kernel for containers in microVMs.
    #[must_use]
    pub fn guest_kernel(&self) -> PathBuf {
        self.lib.join("guest/vmlinuz")
    }

    /// Guest initramfs for containers in microVMs.
    #[must_use]
    pub fn guest_initrd(&self) -> PathBuf {
        self.lib.join("guest/initrd.img")
    }

    /// Version of the image, the file's one line; `unknown` where there is none (a build machine).
    #[must_use]
    pub fn version(&self) -> String {
        std::fs::read_to_string(self.lib.join("version"))
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    }

    /// A file of the bundle.
    #[must_use]
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.config.join(name)
    }

    /// Whether `path` lies below the run-time directory of the apps; used before anything there is taken away.
    #[must_use]
    pub fn is_app_dir(&self, path: &Path) -> bool {
        path.parent()
            .is_some_and(|parent| parent == self.run.join("apps"))
    }
}
