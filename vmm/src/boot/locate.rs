//! Finds the configuration file that the firmware and the boot loader would use.

use std::collections::HashMap;
use std::rc::Rc;

use super::budget::{Budget, Exceeded};
use super::devices::{Device, Devices, Location};
use super::error::BootError;
use super::fs::{FsError, Kind, Volume};
use super::limits::Limits;
use super::loaders;

/// The places of GRUB's configuration in distributions, on the root or on the `/boot` partition.
const WELL_KNOWN: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];
/// Maximum bytes of a boot loader binary that is searched for its directory's name.
const MAX_LOADER: usize = 8 << 20;
/// Maximum bytes of a directory's name in it.
const MAX_NAME: usize = 255;

/// The configuration to start with: the stub on the EFI system partition, or else the file at one
/// of its usual places.
///
/// # Errors
/// There is no configuration. The error says what the disk contains.
pub(super) fn configuration(devices: &Devices, limits: &Limits) -> Result<Location, BootError> {
    let typed = devices.iter().any(|(_, device)| device.esp);
    for (index, device) in devices.iter().filter(|(_, device)| device.esp || !typed) {
        if let Some(volume) = device.volume().filter(|volume| volume.kind_name() == "fat")
            && let Some(path) = stub(devices, device, volume, limits)?
        {
            return Ok(Location {
                device: index,
                path,
            });
        }
    }
    for path in WELL_KNOWN {
        for (index, device) in devices.iter() {
            match device.volume().map(|volume| volume.kind(path)) {
                Some(Ok(Some(Kind::File(_)))) => {
                    return Ok(Location {
                        device: index,
                        path: path.into(),
                    });
                }
                Some(Err(error)) => devices.note(format!("({}){path}: {error}", device.name)),
                _ => {}
            }
        }
    }
    let loaders = loaders::find(devices);
    devices.budget().check()?;
    let problems = devices.problems();
    if loaders.is_empty() && !problems.is_empty() {
        return Err(BootError::Unreadable {
            problems: problems.join("; "),
        });
    }
    let mut found = devices.summary();
    if !loaders.is_empty() {
        let loaders = loaders.join(", ");
        found.push_str(&format!(
            "; it boots with {loaders}, which is not supported"
        ));
    }
    Err(BootError::NoConfiguration { found })
}

/// The path of `EFI/*/grub.cfg` that the installed GRUB would read.
fn stub(
    devices: &Devices,
    device: &Device,
    volume: &dyn Volume,
    limits: &Limits,
) -> Result<Option<String>, Exceeded> {
    let budget = devices.budget();
    let note = |path: &str, problem: String| {
        devices.note(format!("({}){path}: {problem}", device.name));
    };
    let mut names = match volume.list("/EFI") {
        Ok(names) => names,
        Err(FsError::NotFound) => return Ok(None),
        Err(error) => {
            note("/EFI", error.to_string());
            return Ok(None);
        }
    };
    names.sort_unstable();
    names.retain(|name| {
        let path = format!("/EFI/{name}/grub.cfg");
        match volume.kind(&path) {
            Ok(Some(Kind::File(size))) if size <= limits.config => return true,
            Ok(Some(Kind::File(size))) => {
                let limit = limits.config;
                note(&path, FsError::TooLarge { size, limit }.to_string());
            }
            Ok(_) => {}
            Err(error) => note(&path, error.to_string()),
        }
        false
    });
    budget.check()?;
    // GRUB looks where it was installed from, the distribution's directory, even if it was started
    // from the directory for removable media.
    let (fallback, mut own): (Vec<String>, Vec<String>) = names
        .into_iter()
        .partition(|name| name.eq_ignore_ascii_case("BOOT"));
    if own.len() > 1 {
        let first = built_in(volume, &own, budget)?;
        own.rotate_left(first);
    }
    let name = own.into_iter().chain(fallback).next();
    Ok(name.map(|name| format!("/EFI/{name}/grub.cfg")))
}

/// The index of the first of `names` whose directory the loader for removable media has built in;
/// 0 if it has none of them.
fn built_in(volume: &dyn Volume, names: &[String], budget: &Rc<Budget>) -> Result<usize, Exceeded> {
    let _held = budget.hold(MAX_LOADER)?;
    let mut loader = Vec::new();
    for path in ["/EFI/BOOT/grubx64.efi", "/EFI/BOOT/BOOTX64.EFI"] {
        loader.clear();
        if volume.read(path, MAX_LOADER as u64, &mut loader).is_ok() {
            break;
        }
    }
    let indices: HashMap<String, usize> = (0..)
        .zip(names)
        .map(|(index, name)| (name.to_ascii_lowercase(), index))
        .collect();
    // The file is large and there may be many names, so that it is gone through once.
    let mut first = None;
    let mut after_efi = false;
    for part in loader.split(|byte| *byte == b'/') {
        budget.work(part.len() as u64)?;
        if after_efi {
            let head = part.get(..part.len().min(MAX_NAME)).unwrap_or_default();
            let end = head
                .iter()
                .position(|byte| byte.is_ascii_control() || b"\"')".contains(byte));
            let name = head.get(..end.unwrap_or(head.len())).unwrap_or_default();
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            if let Some(index) = indices.get(&name) {
                first = Some(first.unwrap_or(*index).min(*index));
            }
        }
        after_efi = part.eq_ignore_ascii_case(b"EFI");
    }
    Ok(first.unwrap_or(0))
}
