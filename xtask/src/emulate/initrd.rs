//! The emulated host's initial ramdisk: busybox, the modules that its disks and ports need, and the run's script.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::host::Host;
use crate::bail;
use crate::cpio::Archive;
use crate::error::{Context, Error, Result};

/// Modules that are loaded before the root is mounted, together with their dependencies. ext4 is built in.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "crc32c_intel",
    // For the bridge network.
    "tun",
    "bridge",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
];

/// Builds the archive.
pub(super) fn build(host: &Host, script: &str) -> Result<Vec<u8>> {
    let busybox = crate::deps::find("busybox").ok_or_else(|| Error::new("busybox is missing"))?;
    let read = |path: &Path| fs::read(path).context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::new();
    for dir in ["bin", "proc", "sys", "dev", "host", "modules"] {
        archive.dir(dir);
    }
    archive.file("bin/busybox", 0o755, &read(&busybox)?);
    archive.file("init", 0o755, include_bytes!("init.sh"));
    archive.file("host.sh", 0o644, include_bytes!("host.sh"));
    archive.file("command.sh", 0o644, script.as_bytes());
    let mut order = String::new();
    for (name, path) in load_order(&host.modules, MODULES)? {
        archive.file(
            &format!("modules/{name}.ko"),
            0o644,
            &decompress(&path, read(&path)?)?,
        );
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// A module in the form that the kernel accepts.
pub(crate) fn decompress(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|e| e == "xz") {
        return crate::run::Cmd::new("xz").arg("-dc").input(bytes).output();
    }
    Ok(bytes)
}

/// The modules `wanted` and all their dependencies, as names and files, in an order in which they can be loaded.
/// Modules that are built in or missing in the kernel are left out.
pub(crate) fn load_order(modules: &Path, wanted: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let files = module_files(modules)?;
    let mut order = Vec::new();
    let mut done = BTreeSet::new();
    for name in wanted {
        visit(&files, name, &mut done, &mut order, 0)?;
    }
    Ok(order)
}

/// File names of modules use either `-` or `_`. The kernel treats them as the same.
fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

fn module_files(modules: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut todo = vec![modules.join("kernel")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)
            .context(|| format!("cannot list {}", dir.display()))?
            .flatten()
        {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                todo.push(path);
            } else if let Some((stem, "ko" | "ko.xz")) = name.split_once('.') {
                found.push((normalise(stem), path));
            }
        }
    }
    Ok(found)
}

fn visit(
    files: &[(String, PathBuf)],
    name: &str,
    done: &mut BTreeSet<String>,
    order: &mut Vec<(String, PathBuf)>,
    depth: u8,
) -> Result<()> {
    let Some((name, path)) = files.iter().find(|(n, _)| *n == normalise(name)) else {
        return Ok(());
    };
    if !done.insert(name.clone()) {
        return Ok(());
    }
    if depth > 16 {
        bail!("the dependencies of the module {name} are too deep");
    }
    let bytes = decompress(
        path,
        fs::read(path).context(|| format!("cannot read {}", path.display()))?,
    )?;
    for dependency in dependencies(&bytes) {
        visit(files, &dependency, done, order, depth + 1)?;
    }
    order.push((name.clone(), path.clone()));
    Ok(())
}

/// The modules that a module names in the `depends=` entry of its `.modinfo` section, whose entries are
/// NUL-terminated strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else {
        return Vec::new();
    };
    let rest = &module[at + key.len()..];
    let end = rest.iter().position(|b| *b == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&rest[..end]);
    names
        .split(',')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(
            kernel.join("virtio_net.ko"),
            b"ELF\0depends=net-failover,virtio\0",
        )
        .unwrap();
        fs::write(kernel.join("net_failover.ko"), b"ELF\0depends=failover\0").unwrap();
        fs::write(kernel.join("failover.ko"), b"ELF\0depends=\0").unwrap();
        fs::write(kernel.join("virtio.ko"), b"ELF\0license=GPL\0depends=\0").unwrap();
        let order = load_order(dir.path(), &["virtio-net", "built_in", "virtio"]).unwrap();
        let names: Vec<_> = order.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio", "virtio_net"]);
    }
}
