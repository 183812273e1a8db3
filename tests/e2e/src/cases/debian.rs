//! Debian's image. Booting it takes minutes in the emulated host, so these cases share one VM: it boots three times.

use std::sync::Arc;
use std::time::Duration;

use crate::cases::{cli, disk, fixture, network};
use crate::host;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// How long a boot may take.
const BOOT: Duration = Duration::from_secs(1200);

/// From nothing to SSH.
pub(crate) fn library(suite: &Suite) {
    let vm = suite.debian();
    let kernel = suite.sh(&vm, "uname -a");
    assert!(
        kernel.starts_with("Linux debian ")
            && kernel.contains("Debian")
            && kernel.contains("x86_64"),
        "{kernel}"
    );
    println!("      {kernel}");
    println!("      {}", vm.timings());
    assert_eq!(suite.sh(&vm, "ps -p 1 -o comm="), "systemd");
    assert_eq!(suite.sh(&vm, "hostname"), "debian");
    assert_eq!(suite.sh(&vm, "nproc"), "1");
    let status = suite.output(&vm, "cloud-init status --wait --long");
    assert!(
        status.stdout_text().contains("status: done"),
        "{}",
        status.stdout_text()
    );
    assert_eq!(suite.sh(&vm, "sudo -n id -u"), "0");
    let os = suite.sh(&vm, ". /etc/os-release; echo $ID-$VERSION_ID");
    assert_eq!(os, "debian-12");
    // cloud-init has grown the root to the disk's size.
    let root: u64 = suite
        .sh(&vm, "df --output=size -B1M / | tail -n 1")
        .parse()
        .must("df");
    assert!(root > 6 << 10, "the root has {root} MiB of a disk of 8 GiB");
    let failed = suite.sh(&vm, "systemctl --failed --no-legend --plain");
    assert!(failed.is_empty(), "units failed: {failed}");
}

/// cloud-init and systemd mount it before SSH answers.
pub(crate) fn fixture(suite: &Suite) {
    fixture::check(suite, &suite.debian());
}

pub(crate) fn network(suite: &Suite) {
    let vm = suite.debian();
    let (name, expected) = network::dns_name();
    let resolved = suite.sh(&vm, &format!("getent ahostsv4 {name}"));
    network::assert_resolved(&name, &resolved, expected);
    let listener = std::net::TcpListener::bind((host::outer_address(), 0)).must("cannot listen");
    let address = listener.local_addr().must("cannot tell the address");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        std::io::Write::write_all(&mut stream, b"from the host\n")
    });
    let (ip, port) = (address.ip(), address.port());
    assert_eq!(
        suite.sh(&vm, &format!("bash -c 'cat </dev/tcp/{ip}/{port}'")),
        "from the host"
    );
    let refused = suite.output(&vm, &format!("bash -c 'cat </dev/tcp/{ip}/{port}'"));
    assert!(
        !refused.success() && refused.stderr_text().contains("refused"),
        "{}",
        refused.stderr_text()
    );
}

pub(crate) fn large_file(suite: &Suite) {
    disk::check(suite, &suite.debian());
}

/// Debian's own update-grub adds a kernel, and the guest's reboot boots it.
pub(crate) fn second_kernel(suite: &Suite) {
    let vm = suite.debian();
    suite.sh(
        &vm,
        "v=$(uname -r) && sudo cp /boot/vmlinuz-$v /boot/vmlinuz-9.9.9-second && \
         sudo cp /boot/initrd.img-$v /boot/initrd.img-9.9.9-second && sudo update-grub && sync",
    );
    suite.reboot(&vm, BOOT);
    let after = suite.sh(&vm, "cat /proc/cmdline");
    assert!(
        after.contains("BOOT_IMAGE=/boot/vmlinuz-9.9.9-second"),
        "{after}"
    );
}

/// The same VM by the command line, after a stop.
pub(crate) fn cli(suite: &Suite) {
    let vm = suite.take_debian();
    suite.sh(&vm, "echo kept >kept; sync");
    suite.block(vm.stop()).must("cannot stop the VM");
    drop(Arc::into_inner(vm).expect("no other case runs in this lane"));
    uses("debian");
    let quick = Duration::from_secs(120);
    cli::run(suite, &["up", "debian", "--timeout", "1200"], 0, BOOT);
    let vm = cli::listed(suite, "debian").expect("listed");
    assert_eq!(vm["state"], "running", "{vm}");
    let output = cli::run(
        suite,
        &["ssh", "debian", "--", "cat kept && exit 3"],
        3,
        quick,
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "kept");
    cli::run(suite, &["down", "debian"], 0, Duration::from_secs(180));
    cli::run(suite, &["rm", "debian"], 0, quick);
    assert!(cli::listed(suite, "debian").is_none());
}
