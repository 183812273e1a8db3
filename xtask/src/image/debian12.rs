//! An image like Debian 12's generic cloud image.
//!
//! Known differences from the published one: the installers of boot loaders are not run (their files are copied
//! instead), and the package versions are those of the day of the build.

use std::fs;
use std::path::Path;

use super::disk::{self, Ids, Loaders, put};
use crate::cache::Key;
use crate::debian;
use crate::error::{Context, Result};
use crate::run::{Cmd, step};

/// Packages besides Debian's priority "important". Without ifupdown, cloud-init configures the network with netplan.
/// isc-dhcp-client is listed because cloud-init depends on it.
const PACKAGES: &str = "linux-image-cloud-amd64,grub-cloud-amd64,shim-signed,grub-efi-amd64-signed,cloud-init,\
    cloud-guest-utils,cloud-initramfs-growroot,openssh-server,sudo,netplan.io,systemd-timesyncd,libpam-systemd,dbus,\
    curl,ca-certificates,iputils-ping,apparmor,libnss-resolve,systemd-resolved,ethtool,pciutils,iproute2,nftables,\
    bash-completion,locales,unattended-upgrades,uuid-runtime,wget,vim,less,psmisc,screen,socat,tcpdump,traceroute,\
    file,man-db,python3,polkitd,openssh-client,lsb-release,gdisk,python3-apt";

const CODENAME: &str = "bookworm";

/// Size of the disk in MiB.
const SIZE: u64 = 3072;

/// The network before cloud-init has configured it, as in Debian's image.
const NETPLAN: &str = "network:
    version: 2
    ethernets:
        all-en:
            match:
                name: en*
            dhcp4: true
            dhcp6: true
            dhcp6-overrides:
                use-domains: true
            dhcp4-overrides:
                use-domains: true
        all-eth:
            match:
                name: eth*
            dhcp4: true
            dhcp6: true
            dhcp6-overrides:
                use-domains: true
            dhcp4-overrides:
                use-domains: true
";

/// cloud-init's configuration as in Debian's image.
const CLOUD: &str = "## configuration of Debian's images

apt_preserve_sources_list: true
manage_etc_hosts: true

system_info:
  default_user:
    name: debian
    sudo: ALL=(ALL) NOPASSWD:ALL
    shell: /bin/bash
    lock_passwd: True
    gecos: Debian
    groups: [adm, audio, cdrom, dialout, dip, floppy, netdev, plugdev, sudo, video]
";

/// Replaces grub-probe while the configuration is made, because the disk does not exist yet.
const PROBE: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --target=*) target=${1#--target=} ;;
        -t | --target) target=$2; shift ;;
    esac
    shift
done
case $target in
    device) echo /dev/sda1 ;;
    fs) echo ext2 ;;
    fs_uuid) echo FS_UUID ;;
    partuuid) echo PART_UUID ;;
    partmap) echo gpt ;;
esac
"#;

fn sources() -> Result<Vec<debian::Source>> {
    let here = debian::codename()?;
    let mut sources = debian::sources(&here)?;
    for source in &mut sources {
        if let Some(rest) = source.suite.strip_prefix(&here) {
            source.suite = format!("{CODENAME}{rest}");
        }
    }
    Ok(sources)
}

pub(super) fn key() -> Result<String> {
    Ok(Key::new("debian-12")
        .with(debian::sources_list(&sources()?))
        .with(debian::candidates(
            &PACKAGES.split(',').collect::<Vec<_>>(),
        )?)
        .with(include_str!("debian12.rs"))
        .with(include_str!("disk.rs"))
        .finish())
}

pub(super) fn build(dir: &Path, target: &Path) -> Result<()> {
    let root = dir.join("root");
    step("mmdebstrap", || {
        Cmd::new("mmdebstrap")
            .args(["--mode=root", "--variant=important", "--format=directory"])
            .arg(format!("--include={PACKAGES}"))
            .arg("--customize-hook=chroot \"$1\" apt-get purge -y ifupdown")
            .arg(CODENAME)
            .args([root.as_os_str(), "-".as_ref()])
            .input(debian::sources_list(&sources()?))
            .limit(1500)
            .run()
    })?;
    let ids = Ids::new();
    configure(&root, &ids)?;
    step("GRUB's configuration", || grub_config(&root, &ids))?;
    let loaders = Loaders::take(&root, &ids)?;
    step("disk", || {
        disk::assemble(&root, &loaders, &ids, SIZE, dir, target)
    })?;
    fs::remove_dir_all(&root).context(|| "cannot remove the root directory")
}

fn configure(root: &Path, ids: &Ids) -> Result<()> {
    put(root, "etc/fstab", 0o644, ids.fstab())?;
    put(root, "etc/netplan/90-default.yaml", 0o600, NETPLAN)?;
    put(
        root,
        "etc/cloud/cloud.cfg.d/01_debian_cloud.cfg",
        0o644,
        CLOUD,
    )?;
    put(root, "etc/hostname", 0o644, "localhost\n")?;
    put(
        root,
        "etc/hosts",
        0o644,
        "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n",
    )?;
    put(root, "etc/default/locale", 0o644, "LANG=C.UTF-8\n")?;
    put(root, "etc/machine-id", 0o444, "")?;
    let ssh = root.join("etc/ssh");
    for entry in fs::read_dir(&ssh)
        .context(|| "the image has no /etc/ssh")?
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path()).context(|| "cannot remove a host key")?;
        }
    }
    Cmd::new("chroot")
        .arg(root)
        .args(["passwd", "-l", "root"])
        .run()?;
    let leftovers = [
        ("etc/network", true),
        ("var/lib/dbus/machine-id", false),
        ("etc/resolv.conf.orig", false),
    ];
    for (path, directory) in leftovers {
        let path = root.join(path);
        // They are there or not, by version of their packages.
        let _ = if directory {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
    }
    fs::create_dir_all(root.join("boot/efi")).context(|| "cannot create /boot/efi")
}

/// Makes `/boot/grub` with the image's own `update-grub`.
fn grub_config(root: &Path, ids: &Ids) -> Result<()> {
    for platform in ["x86_64-efi", "i386-pc"] {
        let target = root.join("boot/grub").join(platform);
        fs::create_dir_all(&target).context(|| "cannot create /boot/grub")?;
        let source = root.join("usr/lib/grub").join(platform).join(".");
        Cmd::new("cp").arg("-r").args([&source, &target]).run()?;
    }
    fs::create_dir_all(root.join("boot/grub/fonts"))
        .context(|| "cannot create /boot/grub/fonts")?;
    fs::copy(
        root.join("usr/share/grub/unicode.pf2"),
        root.join("boot/grub/fonts/unicode.pf2"),
    )
    .context(|| "cannot copy GRUB's font")?;
    Cmd::new("chroot")
        .arg(root)
        .args(["grub-editenv", "/boot/grub/grubenv", "create"])
        .run()?;
    put(
        root,
        "etc/default/grub.d/10_cloud.cfg",
        0o644,
        "# The root by its partition, as it may be grown or copied.\nGRUB_DISABLE_LINUX_UUID=true\nGRUB_DISABLE_LINUX_PARTUUID=false\n",
    )?;

    let (probe, kept) = (
        root.join("usr/sbin/grub-probe"),
        root.join("usr/sbin/grub-probe.kept"),
    );
    fs::rename(&probe, &kept).context(|| "cannot set grub-probe aside")?;
    let script = PROBE
        .replace("FS_UUID", &ids.root_fs.to_string())
        .replace("PART_UUID", &ids.root_part.to_string());
    put(root, "usr/sbin/grub-probe", 0o755, script)?;
    // grub-mkconfig names a partition by its identifier only where that is seen under /dev.
    let seen = format!("dev/disk/by-partuuid/{}", ids.root_part);
    put(root, &seen, 0o644, "")?;
    let made = Cmd::new("chroot").arg(root).args(["update-grub"]).run();
    fs::remove_dir_all(root.join("dev/disk")).context(|| "cannot clean /dev")?;
    fs::rename(&kept, &probe).context(|| "cannot put grub-probe back")?;
    made
}
