//! Checks the structure of this repository: the order of the rooms, the files that depend on an operating system or
//! architecture, the number of packages, the public API, the published packages, and the words.

mod api;
mod cfg_files;
mod imports;
mod layers;
mod packages;
mod publish;
mod rooms;
mod stops;
mod tree;
mod words;

use std::path::PathBuf;

use crate::error::{Context, Error, Result};
use crate::run::Cmd;
use crate::{cargo, workspace};

pub use api::run as api;
pub(crate) use packages::run as packages;
pub(crate) use publish::{build as package_and_build, list as package};
pub(crate) use words::run as words;

/// The document with the rooms, and the files that may test for an operating system.
const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";

/// The step `layers`.
pub(crate) fn layers() -> Result<String> {
    let path = workspace().join(ARCHITECTURE);
    let text = std::fs::read_to_string(&path).context(|| format!("cannot read {ARCHITECTURE}"))?;
    let mut complaints = Vec::new();
    let mut imports = 0;
    let mut rooms = 0;
    let blocks = rooms::blocks(&text, "rooms")?;
    if blocks.is_empty() {
        return Err(Error::new(format!("{ARCHITECTURE} has no block of rooms")));
    }
    for block in &blocks {
        let list = rooms::Rooms::parse(block)?;
        let checked = layers::check(&workspace(), &list)?;
        rooms += list.count();
        imports += checked.imports;
        complaints.extend(checked.complaints);
    }
    for package in cargo::packages()?.iter().filter(|p| p.is_published()) {
        let dir = package.source_dir();
        if !blocks
            .iter()
            .any(|block| workspace().join(block.argument) == dir)
        {
            complaints.push(format!(
                "{ARCHITECTURE} has no block of rooms for the package {}",
                package.name
            ));
        }
    }
    let (missing, stops) = stops::check(&workspace(), &text)?;
    if stops == 0 {
        return Err(Error::new(format!("{ARCHITECTURE} names no stops")));
    }
    complaints.extend(missing);
    let files = tracked(&["*.rs"])?;
    complaints.extend(cfg_files::check(
        &workspace(),
        &rooms::blocks(&text, "cfg-files")?,
        &files,
    )?);
    report(&complaints)?;
    Ok(format!(
        "{imports} imports between {rooms} rooms of {} packages, {stops} stops",
        blocks.len()
    ))
}

/// Prints problems, and fails if there are any.
fn report(complaints: &[String]) -> Result<()> {
    for complaint in complaints {
        eprintln!("  {complaint}");
    }
    match complaints {
        [] => Ok(()),
        [one] => Err(Error::new(one.clone())),
        [first, rest @ ..] => Err(Error::new(format!("{first}, and {} more", rest.len()))),
    }
}

/// The files whose names match and that git tracks or would add, relative to the workspace.
fn tracked(patterns: &[&str]) -> Result<Vec<PathBuf>> {
    let list = Cmd::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .args(["--"])
        .args(patterns)
        .dir(workspace())
        .output()?;
    let list = String::from_utf8(list).context(|| "a file's name is not UTF-8")?;
    // A file that was removed, but not yet in git, is listed all the same.
    Ok(list
        .split('\0')
        .filter(|name| !name.is_empty() && workspace().join(name).is_file())
        .map(PathBuf::from)
        .collect())
}
