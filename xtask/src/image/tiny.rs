//! A tiny image: a stock cloud kernel, GRUB's configuration as Debian writes it, and a userland of busybox, OpenSSH and
//! sudo. It reads the same seed as cloud-init, but only JSON, and only users, keys, hostname, mounts, files, commands
//! and DHCP.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::disk::{self, Ids, Loaders, put};
use crate::cache::Key;
use crate::cpio::Archive;
use crate::debian;
use crate::emulate::{decompress, kernel_parts, load_order};
use crate::error::{Context, Error, Result};
use crate::run::{Cmd, step};

/// Packages that are unpacked, but not configured. The configuration that they need is written below.
const PACKAGES: &str = "base-files,base-passwd,libc6,busybox-static,openssh-server,openssh-client,sudo,jq,\
    libpam-modules,netbase,grub-common,grub-pc-bin,grub-efi-amd64-signed,shim-signed";

/// Removed afterwards: documentation, and files for other uses of the packages.
const USELESS: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/perl5",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/python3",
    "usr/lib/grub",
    "usr/lib/shim",
    "usr/share/grub",
    "usr/lib/systemd",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "usr/share/mokutil",
    "usr/share/bash-completion",
    "etc/grub.d",
    "usr/lib/x86_64-linux-gnu/gconv",
];

/// Modules that the initial ramdisk loads.
const EARLY: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_intel"];

/// Other modules of the image.
const LATE: &[&str] = &[
    "virtio_net",
    "virtio_rng",
    "button",
    "evdev",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "isofs",
    "rtc_cmos",
];

/// Size of the disk in MiB.
const SIZE: u64 = 1024;

/// Every user who can log in may use sudo without a password.
const PERMIT: &str =
    "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n";

/// Files of the userland: path, mode, content.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/inittab", 0o644, include_str!("tiny/inittab")),
    ("etc/init.d/rcS", 0o755, include_str!("tiny/rcS")),
    ("etc/init.d/rcK", 0o755, include_str!("tiny/rcK")),
    ("etc/seed.jq", 0o644, include_str!("tiny/seed.jq")),
    ("usr/bin/cloud-init", 0o755, include_str!("tiny/cloud-init")),
    ("etc/udhcpc/script", 0o755, include_str!("tiny/udhcpc")),
    (
        "etc/acpi/PWRF/00000080",
        0o755,
        "#!/bin/sh\nexec poweroff\n",
    ),
    (
        "etc/ssh/sshd_config",
        0o644,
        include_str!("tiny/sshd_config"),
    ),
    ("etc/pam.d/sudo", 0o644, PERMIT),
    ("etc/pam.d/sudo-i", 0o644, PERMIT),
    ("etc/pam.d/other", 0o644, PERMIT),
    (
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    ),
    ("etc/hostname", 0o644, "tiny\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost tiny\n"),
    ("etc/shells", 0o644, "/bin/sh\n"),
    (
        "etc/profile",
        0o644,
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    ),
    (
        "usr/sbin/update-grub",
        0o755,
        include_str!("tiny/update-grub"),
    ),
];

pub(super) fn key() -> Result<String> {
    let (kernel, version) = debian::cloud_kernel()?;
    let mut key = Key::new("tiny")
        .with(debian::sources_list(
            &debian::sources(&debian::codename()?)?,
        ))
        .with(debian::candidates(
            &PACKAGES.split(',').collect::<Vec<_>>(),
        )?)
        .with(kernel)
        .with(version)
        .with(include_str!("tiny.rs"))
        .with(include_str!("tiny/init"))
        .with(include_str!("disk.rs"));
    for (_, _, content) in FILES {
        key = key.with(content);
    }
    Ok(key.finish())
}

pub(super) fn build(dir: &Path, target: &Path) -> Result<()> {
    let codename = debian::codename()?;
    let (package, version) = debian::cloud_kernel()?;
    let kernel = debian::unpacked(&package, &version)?;
    let root = dir.join("root");
    step("mmdebstrap", || {
        Cmd::new("mmdebstrap")
            .args(["--mode=root", "--variant=extract", "--format=directory"])
            .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
            .arg(format!("--include={PACKAGES}"))
            .arg(&codename)
            .args([root.as_os_str(), "-".as_ref()])
            .input(debian::sources_list(&debian::sources(&codename)?))
            .limit(600)
            .run()
    })?;
    let ids = Ids::new();
    let loaders = Loaders::take(&root, &ids)?;
    step("GRUB's modules", || {
        fs::create_dir_all(root.join("boot/grub")).context(|| "cannot create /boot/grub")?;
        Cmd::new("cp")
            .arg("-r")
            .args([root.join("usr/lib/grub/i386-pc"), root.join("boot/grub")])
            .run()
    })?;
    for path in USELESS {
        // Not every release has all of them.
        let _ = fs::remove_dir_all(root.join(path));
    }
    userland(&root, &ids)?;
    boot(&root, &kernel, &ids)?;
    step("disk", || {
        disk::assemble(&root, &loaders, &ids, SIZE, dir, target)
    })?;
    fs::remove_dir_all(&root).context(|| "cannot remove the root directory")
}

fn userland(root: &Path, ids: &Ids) -> Result<()> {
    for name in ["passwd", "group"] {
        let master = root.join(format!("usr/share/base-passwd/{name}.master"));
        let mut text =
            fs::read_to_string(&master).context(|| format!("cannot read {}", master.display()))?;
        if name == "passwd" {
            text = text.replace("/root:/bin/bash", "/root:/bin/sh");
            text.push_str("sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n");
        }
        put(root, &format!("etc/{name}"), 0o644, text)?;
    }
    put(
        root,
        "etc/shadow",
        0o600,
        "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n",
    )?;
    put(root, "etc/fstab", 0o644, ids.fstab())?;
    for (path, mode, content) in FILES {
        put(root, path, *mode, content)?;
    }
    for path in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "boot/efi",
        "mnt",
        "var/lib/tiny",
        "var/log",
        "var/tmp",
    ] {
        fs::create_dir_all(root.join(path)).context(|| format!("cannot create /{path}"))?;
    }
    // Every applet of busybox that no package has a program for.
    let busybox = crate::deps::find("busybox").ok_or_else(|| Error::new("busybox is missing"))?;
    for applet in Cmd::new(busybox).arg("--list").text()?.lines() {
        if applet != "busybox"
            && !root.join("usr/bin").join(applet).exists()
            && !root.join("usr/sbin").join(applet).exists()
        {
            symlink("busybox", root.join("usr/bin").join(applet))
                .context(|| format!("cannot link {applet}"))?;
        }
    }
    symlink("../bin/busybox", root.join("usr/sbin/init")).context(|| "cannot link init")
}

/// The kernel, its modules, the initial ramdisk, and GRUB's configuration.
fn boot(root: &Path, kernel: &Path, ids: &Ids) -> Result<()> {
    let (image, modules) = kernel_parts(kernel)?;
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    fs::copy(&image, root.join(format!("boot/vmlinuz-{release}")))
        .context(|| "cannot copy the kernel")?;
    put(
        root,
        &format!("boot/initrd.img-{release}"),
        0o644,
        initrd(&modules)?,
    )?;

    let target = root.join("usr/lib/modules").join(&release);
    let wanted = [EARLY, LATE].concat();
    for (name, path) in load_order(&modules, &wanted)? {
        let within = path
            .strip_prefix(&modules)
            .context(|| format!("the module {name} is in an unexpected directory"))?;
        let copy = target.join(within);
        fs::create_dir_all(copy.parent().unwrap_or(&target))
            .context(|| "cannot create a modules' directory")?;
        fs::copy(&path, &copy).context(|| format!("cannot copy the module {name}"))?;
    }
    for list in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        fs::copy(modules.join(list), target.join(list))
            .context(|| format!("cannot copy {list}"))?;
    }
    let depmod = crate::deps::find("depmod").ok_or_else(|| Error::new("depmod is missing"))?;
    Cmd::new(depmod)
        .arg("-b")
        .args([root.as_os_str(), release.as_ref()])
        .run()?;
    let script = root.join("usr/sbin/update-grub");
    Cmd::new("sh")
        .arg(script)
        .arg(root.join("boot"))
        .arg(ids.root_fs.to_string())
        .run()
}

/// Writes it uncompressed, because decompression takes longer than reading if every instruction is emulated.
fn initrd(modules: &Path) -> Result<Vec<u8>> {
    let busybox = crate::deps::find("busybox").ok_or_else(|| Error::new("busybox is missing"))?;
    let read = |path: &Path| fs::read(path).context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::new();
    for path in ["bin", "proc", "sys", "dev", "root", "modules"] {
        archive.dir(path);
    }
    archive.file("bin/busybox", 0o755, &read(&busybox)?);
    archive.file("init", 0o755, include_bytes!("tiny/init"));
    let mut order = String::new();
    for (name, path) in load_order(modules, EARLY)? {
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
