//! Much data through the disk.

use std::path::{Path, PathBuf};

use fleetbox::{ExtraDisk, Fleet, Size, Vm, VmState};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use super::verbs;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// Bytes of the file, in MiB.
const SIZE: u32 = 200;

/// Writes a large file, has it read back from the disk, and compares the sum with that of what was written.
pub(crate) fn large_file(suite: &Suite) {
    check(suite, &suite.shared());
}

/// The same for any guest.
pub(crate) fn check(suite: &Suite, vm: &Vm) {
    // Random bytes again and again, each time behind a number that shifts them, so that no two blocks are alike. The
    // content is made twice: once onto the disk, and once for its sum, so that what was written is not asked of the
    // disk.
    suite.sh(vm, "dd if=/dev/urandom of=/tmp/part bs=1048576 count=1");
    let stream =
        format!("i=0; while [ $i -lt {SIZE} ]; do echo $i; cat /tmp/part; i=$((i+1)); done");
    let bytes: usize = (0..SIZE).map(|i| format!("{i}\n").len() + (1 << 20)).sum();
    let written = suite.sh(
        vm,
        &format!("sudo sh -c '({stream}) >/var/tmp/large && sync'; ({stream}) | sha256sum"),
    );
    suite.sh(vm, "echo 3 | sudo tee /proc/sys/vm/drop_caches");
    let read = suite.sh(vm, "sha256sum </var/tmp/large");
    assert_eq!(read, written);
    assert_eq!(suite.sh(vm, "stat -c %s /var/tmp/large"), bytes.to_string());
    suite.sh(vm, "sudo rm /var/tmp/large /tmp/part; sync");
}

/// A file system in memory, as long as this value lives.
struct Mounted(PathBuf);

impl Mounted {
    /// One for at most so many bytes; `None` for who may not mount.
    fn new(at: &Path, size: u64) -> Option<Self> {
        std::fs::create_dir_all(at).must("cannot create a directory");
        match mounted(at, size, MsFlags::empty()) {
            Err(Errno::EPERM) => None,
            done => {
                done.must("cannot mount");
                Some(Self(at.to_owned()))
            }
        }
    }

    /// Leaves room for so many bytes more than there are.
    fn leave(&self, free: u64) {
        let now = statvfs(&self.0).must("cannot measure a file system");
        let used = (now.blocks() - now.blocks_free()) * now.fragment_size();
        mounted(&self.0, used + free, MsFlags::MS_REMOUNT).must("cannot change the size");
    }
}

fn mounted(at: &Path, size: u64, flags: MsFlags) -> nix::Result<()> {
    let options = format!("size={size}");
    mount(Some("none"), at, Some("tmpfs"), flags, Some(&options[..]))
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// A full disk of the host is a bad disk to the guest that writes to it, and no more: it runs on, and can write when
/// there is room again.
pub(crate) fn full_on_the_host(suite: &Suite) {
    let Some(host) = Mounted::new(&suite.dir().join("full"), 8 << 30) else {
        println!("skipped: only root can mount a file system");
        return;
    };
    let home = verbs::own_home(suite, "full");
    let builder = suite
        .small(Vm::builder("full"))
        .home(&home)
        .extra_disk(ExtraDisk::empty(Size::mib(256)));
    let vm = suite.block(builder.start()).must("cannot start the VM");
    uses(vm.name());
    host.leave(8 << 20);
    let write = |mib: u32| {
        let bytes = mib << 20;
        format!("head -c {bytes} /dev/zero | tr '\\0' x | sudo dd of=/dev/vdc bs=65536 conv=fsync")
    };
    let output = suite.output(&vm, &write(64));
    let error = output.stderr_text();
    assert!(
        !output.success() && error.contains("Input/output error"),
        "{error}"
    );
    let listed = suite
        .block(Fleet::at(&home).list())
        .must("cannot list the VMs");
    assert_eq!(listed[0].state, VmState::Running, "{listed:?}");

    host.leave(128 << 20);
    suite.sh(&vm, &write(16));
    suite.sh(&vm, "echo 3 | sudo tee /proc/sys/vm/drop_caches");
    let read = suite.sh(&vm, "sudo head -c 16777216 /dev/vdc | tr -d x | wc -c");
    assert_eq!(read, "0");
    suite.block(vm.destroy()).must("cannot destroy the VM");
    drop(host);
}
