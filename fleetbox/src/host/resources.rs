//! Checks that this host has the resources that a VM asks for.

use std::fs;
use std::path::Path;

use crate::disk::extra_disk::ExtraDisk;
use crate::host::budget;
use crate::model::defaults::{DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_MEMORY};
use crate::model::size::Size;
use crate::store::VmRecord;
use crate::util::readable::readable_debug;

/// A VM asked for more than this host has.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("not enough {what}: asked for {asked}, {available}; ask for less")]
pub struct InsufficientResources {
    /// The kind of resource.
    pub what: &'static str,
    /// How much was asked for.
    pub asked: String,
    /// How much the host has.
    pub available: String,
}

readable_debug!(InsufficientResources);

/// The resources that a VM asks for. Defaults are not checked: they are small, and the host
/// provides memory only when the guest touches it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) cpus: Option<u8>,
    pub(crate) memory: Option<Size>,
    /// Sizes of all disks together.
    pub(crate) disks: Option<Size>,
}

impl Request {
    /// The request of an existing VM. Its record does not say which values the user gave, so values
    /// up to the defaults are not checked.
    pub(crate) fn of(record: &VmRecord) -> Self {
        let empty = record.extra_disks.iter().filter_map(ExtraDisk::empty_size);
        let own = Some(record.disk).filter(|disk| *disk > DEFAULT_DISK);
        Self {
            disks: own.into_iter().chain(empty).reduce(Size::plus),
            ..Self::changed(Some(record.cpus), Some(record.memory))
        }
    }

    /// The request of an existing VM that is resized. Values up to the defaults are not checked
    /// here, either.
    pub(crate) fn changed(cpus: Option<u8>, memory: Option<Size>) -> Self {
        Self {
            cpus: cpus.filter(|cpus| u32::from(*cpus) > DEFAULT_CPUS),
            memory: memory.filter(|memory| *memory > DEFAULT_MEMORY),
            disks: None,
        }
    }
}

/// What the host has; `None` where the operating system does not report it.
#[derive(Debug, Clone)]
pub(crate) struct HostResources {
    cpus: Option<u32>,
    memory: Option<Size>,
    disk: Option<Disk>,
}

#[derive(Debug, Clone)]
struct Disk {
    path: String,
    size: Size,
    free: Size,
}

impl HostResources {
    /// The resources of this host, with the file system of the state directory.
    pub(crate) fn of_host(home: &Path) -> Self {
        let disk = nix::sys::statvfs::statvfs(home).ok().map(|stat| {
            let block = stat.fragment_size();
            let bytes = |blocks: u64| Size::from_bytes(blocks.saturating_mul(block));
            Disk {
                path: home.display().to_string(),
                size: bytes(stat.blocks()),
                free: bytes(stat.blocks_available()),
            }
        });
        Self {
            cpus: fs::read_to_string("/sys/devices/system/cpu/online")
                .ok()
                .and_then(|list| count(&list)),
            memory: budget::host_memory(),
            disk,
        }
    }

    /// Checks that the host has the requested resources.
    ///
    /// # Errors
    /// [`InsufficientResources`] says what the host has.
    pub(crate) fn check(&self, asked: &Request) -> Result<(), InsufficientResources> {
        let lacking = |what, asked: String, available: String| {
            Err(InsufficientResources {
                what,
                asked,
                available,
            })
        };
        if let (Some(asked), Some(there)) = (asked.cpus, self.cpus)
            && u32::from(asked) > there
        {
            return lacking("CPUs", asked.to_string(), format!("this host has {there}"));
        }
        if let (Some(asked), Some(there)) = (asked.memory, self.memory)
            && asked > there
        {
            let there = format!("this host has {}", mib(there));
            return lacking("memory", asked.to_string(), there);
        }
        if let (Some(asked), Some(there)) = (asked.disks, &self.disk)
            && asked > there.size
        {
            let there = format!(
                "the file system of {} has {}, of which {} are free",
                there.path,
                mib(there.size),
                mib(there.free)
            );
            return lacking("disk space", asked.to_string(), there);
        }
        Ok(())
    }
}

fn mib(size: Size) -> String {
    Size::mib(size.bytes() >> 20).to_string()
}

/// How many CPUs a list such as `0-3,6` has.
fn count(list: &str) -> Option<u32> {
    let mut count = 0u32;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_is_there() {
        let there = HostResources {
            cpus: Some(2),
            memory: Some(Size::gib(4)),
            disk: Some(Disk {
                path: "/home".into(),
                size: Size::gib(100),
                free: Size::gib(7),
            }),
        };
        let ask = |cpus, memory, disks| {
            let asked = Request {
                cpus,
                memory,
                disks,
            };
            there.check(&asked).map_err(|error| error.to_string())
        };
        ask(Some(2), Some(Size::gib(4)), Some(Size::gib(100))).unwrap();
        ask(None, None, None).unwrap();
        assert_eq!(
            ask(Some(3), None, None).unwrap_err(),
            "not enough CPUs: asked for 3, this host has 2; ask for less"
        );
        let error = ask(None, Some(Size::gib(5)), None).unwrap_err();
        assert_eq!(
            error,
            "not enough memory: asked for 5G, this host has 4G; ask for less"
        );
        let error = ask(None, None, Some(Size::gib(101))).unwrap_err();
        assert!(
            error.contains("/home has 100G, of which 7G are free"),
            "{error}"
        );
    }

    #[test]
    fn this_host_has_something() {
        let there = HostResources::of_host(Path::new("/"));
        assert!(there.cpus.is_some_and(|n| n > 0), "{there:?}");
        assert!(
            there.disk.as_ref().is_some_and(|d| d.size.bytes() > 0),
            "{there:?}"
        );
        let asked = Request {
            cpus: Some(1),
            memory: Some(Size::mib(32)),
            disks: Some(Size::mib(1)),
        };
        there.check(&asked).unwrap();
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, n) in [("0\n", 1), ("0-3", 4), ("0-1,4,6-7\n", 5)] {
            assert_eq!(count(list), Some(n), "{list}");
        }
        for bad in ["", "x", "3-1", "0-4294967295"] {
            assert_eq!(count(bad), None, "{bad}");
        }
    }
}
