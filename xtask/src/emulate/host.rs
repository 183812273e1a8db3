//! The emulated host itself: its kernel, its modules and its root file system, made from Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bail;
use crate::cache::{self, Key};
use crate::debian;
use crate::error::{Context, Result};
use crate::kernel;
use crate::run::{Cmd, step};

/// The paths of the host's parts.
#[derive(Debug)]
pub(super) struct Host {
    /// The uncompressed kernel.
    pub(super) vmlinux: PathBuf,
    /// An ext4 file system with the root.
    pub(super) root: PathBuf,
    /// The kernel's modules: `/lib/modules/VERSION`.
    pub(super) modules: PathBuf,
}

/// The packages of the root, besides the kernel's modules. They are unpacked, but not configured.
const PACKAGES: &str = "base-files,base-passwd,libc6,libgcc-s1,bash,coreutils,grep,sed,busybox-static,iproute2,\
                        iputils-ping,procps,util-linux,openssh-client,curl,git,netbase,strace";

/// Size of the root, which limits what a command can write besides its files.
const ROOT_SIZE: &str = "24G";

/// Makes the host's parts, or finds them in the cache.
pub(super) fn prepare() -> Result<Host> {
    let codename = debian::codename()?;
    let sources = debian::sources(&codename)?;
    let (package, version) = debian::cloud_kernel()?;
    let key = Key::new("host")
        .with(&package)
        .with(&version)
        .with(debian::sources_list(&sources))
        .with(PACKAGES)
        .with(ROOT_SIZE)
        .with(include_str!("host.rs"))
        .finish();
    let dir = cache::artefact("host", &key, |dir| {
        step(
            &format!("making the emulated host ({package} {version})"),
            || build(dir, &package, &version, &codename, &sources),
        )
    })?;
    let modules = fs::read_to_string(dir.join("modules"))
        .context(|| "cannot read the emulated host's parts")?;
    Ok(Host {
        vmlinux: dir.join("vmlinux"),
        root: dir.join("root.ext4"),
        modules: modules.into(),
    })
}

fn build(
    dir: &Path,
    package: &str,
    version: &str,
    codename: &str,
    sources: &[debian::Source],
) -> Result<()> {
    let kernel = debian::unpacked(package, version)?;
    let (image, modules) = kernel_parts(&kernel)?;
    let bzimage = fs::read(&image).context(|| format!("cannot read {}", image.display()))?;
    fs::write(dir.join("vmlinux"), kernel::vmlinux(&bzimage)?)
        .context(|| "cannot write the kernel")?;
    fs::write(dir.join("modules"), modules.as_os_str().as_encoded_bytes())
        .context(|| "cannot write")?;

    let root = dir.join("root");
    debian::extract(
        &root,
        codename,
        PACKAGES,
        &debian::sources_list(sources),
        &[],
    )?;
    for useless in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "var/cache",
        "var/lib/apt",
    ] {
        let _ = fs::remove_dir_all(root.join(useless));
    }
    let write = |path: &str, text: &str| -> Result<()> {
        fs::write(root.join(path), text)
            .context(|| format!("cannot write {path} of the emulated host"))
    };
    for name in ["passwd", "group"] {
        fs::copy(
            root.join(format!("usr/share/base-passwd/{name}.master")),
            root.join("etc").join(name),
        )
        .context(|| "cannot set up the emulated host's users")?;
    }
    write("etc/hostname", "emulated\n")?;
    write("etc/hosts", "127.0.0.1 localhost emulated\n")?;
    write("etc/resolv.conf", "nameserver 10.0.2.3\n")?;
    write(
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )?;
    for name in ["var/cache", "var/lib/apt", "images"] {
        fs::create_dir_all(root.join(name)).context(|| "cannot set up the emulated host")?;
    }

    let target = root.join("usr/lib/modules");
    fs::create_dir_all(&target).context(|| "cannot set up the emulated host")?;
    Cmd::new("cp").arg("-a").args([&modules, &target]).run()?;
    let release = modules.file_name().unwrap_or_default();
    Cmd::new(crate::deps::find("depmod").unwrap_or_default())
        .args(["-b".as_ref(), root.as_os_str(), release])
        .run()?;

    let mke2fs = crate::deps::find("mke2fs").unwrap_or_default();
    Cmd::new(mke2fs)
        .args([
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=1",
            "-d",
        ])
        .args([&root, &dir.join("root.ext4")])
        .arg(ROOT_SIZE)
        .limit(120)
        .run()?;
    fs::remove_dir_all(&root).context(|| "cannot remove the unpacked root")
}

/// The bzImage and the modules' directory of an unpacked kernel package.
pub(crate) fn kernel_parts(package: &Path) -> Result<(PathBuf, PathBuf)> {
    let only = |dir: PathBuf, prefix: &str| -> Result<PathBuf> {
        let found = fs::read_dir(&dir)
            .context(|| format!("cannot list {}", dir.display()))?
            .flatten()
            .find(|e| e.file_name().to_string_lossy().starts_with(prefix));
        match found {
            Some(entry) => Ok(entry.path()),
            None => bail!("the kernel package has no {}/{prefix}*", dir.display()),
        }
    };
    let lib = if package.join("usr/lib/modules").is_dir() {
        "usr/lib/modules"
    } else {
        "lib/modules"
    };
    Ok((
        only(package.join("boot"), "vmlinuz-")?,
        only(package.join(lib), "")?,
    ))
}
