//! Much data through the disk.

use fleetbox::Vm;

use crate::suite::Suite;

/// Bytes of the file, in MiB.
const SIZE: u32 = 200;

/// Writes a large file, has it read back from the disk, and compares the sum with that of what was written.
pub(crate) fn large_file(suite: &Suite) {
    check(suite, &suite.shared());
}

/// The same for any guest.
pub(crate) fn check(suite: &Suite, vm: &Vm) {
    // The content is a key stream, which neither compresses nor repeats. It is made twice: once onto the disk, and
    // once for its sum, so that what was written is not asked of the disk.
    // The length in bytes, since not every `head` knows the same suffixes.
    let bytes = u64::from(SIZE) << 20;
    let stream = format!("seq 1 30000000 | head -c {bytes}");
    let written = suite.sh(
        vm,
        &format!("sudo sh -c '{stream} >/var/tmp/large && sync'; {stream} | sha256sum"),
    );
    suite.sh(vm, "echo 3 | sudo tee /proc/sys/vm/drop_caches");
    let read = suite.sh(vm, "sha256sum </var/tmp/large");
    assert_eq!(read, written);
    assert_eq!(suite.sh(vm, "stat -c %s /var/tmp/large"), bytes.to_string());
    suite.sh(vm, "sudo rm /var/tmp/large; sync");
}
