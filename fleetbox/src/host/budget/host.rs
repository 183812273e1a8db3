//! How much memory this host has for VMs.

use std::path::{Component, Path};

use crate::model::size::Size;

/// Memory of this host, or the limit of its control group if that is less, as in a container.
/// `None` if the operating system does not report it.
pub(super) fn memory() -> Option<Size> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = total(&meminfo)?;
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = group_limit(Path::new("/sys/fs/cgroup"), &group).unwrap_or(u64::MAX);
    Some(Size::from_bytes(total.min(limit)))
}

/// `MemTotal` of /proc/meminfo, which is in KiB.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least `memory.max` of the control group in /proc/self/cgroup and of those above it. This is
/// for cgroup v2; without it no line begins with `0::`.
fn group_limit(root: &Path, group: &str) -> Option<u64> {
    let path = group.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut dir = root.to_owned();
    let mut least = limit_of(&dir);
    for part in Path::new(path).components() {
        // A group outside of this namespace shows as `..`.
        let Component::Normal(part) = part else {
            return least;
        };
        dir.push(part);
        least = match (least, limit_of(&dir)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    least
}

fn limit_of(dir: &Path) -> Option<u64> {
    // "max" stands for no limit, and is no number.
    let text = std::fs::read_to_string(dir.join("memory.max")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        assert_eq!(
            total("MemTotal:       16309864 kB\nMemFree: 1 kB\n"),
            Some(16_309_864 << 10)
        );
        for wrong in [
            "",
            "MemTotal: x kB",
            "MemTotal: 5",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(total(wrong), None, "{wrong}");
        }
        assert!(memory().is_some_and(|memory| memory > Size::mib(64)));
    }

    #[test]
    fn the_least_limit_of_all_groups_holds() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("user/app");
        std::fs::create_dir_all(&inner).unwrap();
        let find = || group_limit(root.path(), "1:name=x:/y\n0::/user/app\n");
        assert_eq!(find(), None);
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(find(), None);
        std::fs::write(inner.join("memory.max"), "5000\n").unwrap();
        assert_eq!(find(), Some(5000));
        std::fs::write(root.path().join("user/memory.max"), "4000\n").unwrap();
        assert_eq!(find(), Some(4000));
        std::fs::write(root.path().join("user/memory.max"), "9000\n").unwrap();
        assert_eq!(find(), Some(5000));
        assert_eq!(group_limit(root.path(), "0::/../x\n"), None);
        assert_eq!(group_limit(root.path(), "4:memory:/user\n"), None);
    }
}
