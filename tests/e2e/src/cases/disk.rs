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
