//! Where work that was done once is kept: a folder of the user's, shared by all clones on the machine.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// `$SKERRY_CACHE`, or `skerry` in the user's cache folder (XDG Base Directory Specification). Made if missing.
pub fn dir() -> Result<PathBuf> {
    let dir = std::env::var_os("SKERRY_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            std::env::var_os("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("skerry"))
        })
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/skerry")))
        .context("there is no home folder to keep a cache in; set SKERRY_CACHE to a folder")?;
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("making the cache folder {}", dir.display()))?;
    Ok(dir)
}
