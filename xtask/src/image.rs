//! Disk images for tests, made from Debian's packages.

use std::path::PathBuf;

use crate::error::Result;

/// The images built so far, as names (`tiny.raw`) and paths.
///
/// # Errors
/// The cache cannot be read.
pub fn built() -> Result<Vec<(String, PathBuf)>> {
    Ok(Vec::new())
}
