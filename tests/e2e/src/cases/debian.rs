//! Debian's image. Booting it takes minutes in the emulated host, so these cases share one VM: it boots three times.

use std::sync::Arc;
use std::time::Duration;

use fleetbox::VmBuilder;

use crate::cases::{cli, disk, fixture, network, package};
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

/// The VM as it is made: with a fixture that has a package, which its user data has installed. No archive can be
/// reached, so there are none.
pub(crate) fn describe(suite: &Suite, builder: VmBuilder) -> VmBuilder {
    let data = fixture::directory(suite, "debian-fixture", "one");
    package::write(&data.join("probe.deb"));
    builder
        .fixture(data, fixture::MOUNT)
        .env("COLOUR", "deep blue")
        .user_data(format!(
            "#cloud-config\n\
             bootcmd:\n- rm -rf /etc/apt/sources.list /etc/apt/sources.list.d\n\
             write_files:\n- path: /etc/from-user-data\n  content: hello\n\
             packages: [{}/probe.deb]\n\
             runcmd:\n- [sh, -c, 'echo user data >/order']\n",
            fixture::MOUNT
        ))
        .package("sudo")
        .run_command("echo \"$(id -un)\" >>/order")
}

/// What cloud-init did with that at the first boot.
pub(crate) fn configured(suite: &Suite) {
    let vm = suite.debian();
    // Its commands come last.
    suite.output(&vm, "cloud-init status --wait");
    assert_eq!(suite.sh(&vm, "cat /etc/from-user-data"), "hello");
    assert_eq!(suite.sh(&vm, "echo \"$COLOUR\""), "deep blue");
    assert_eq!(suite.sh(&vm, "cat /order"), "user data\nroot");
    let status = format!(
        "dpkg-query -W -f '${{db:Status-Status}}' {} sudo",
        package::NAME
    );
    assert_eq!(suite.sh(&vm, &status), "installedinstalled");
    let file = format!("cat {}", package::FILE);
    assert_eq!(suite.sh(&vm, &file), package::CONTENT.trim());
    // apt was told to look for what is new, and for both packages.
    for part in ["update", "install.*probe.deb.*sudo"] {
        let asked =
            format!("sudo grep -q 'Running command .*apt-get.*{part}' /var/log/cloud-init.log");
        suite.sh(&vm, &asked);
    }
}

/// A guest's KVM makes VMs where this host's passes virtualisation hardware on.
pub(crate) fn nested(suite: &Suite) {
    if !fleetbox::nested_virt_supported() {
        println!(
            "      skipped: this host's KVM does not pass its hardware on (its kvm module's parameter `nested`)"
        );
        return;
    }
    let vm = suite.debian();
    suite.sh(
        &vm,
        "sudo modprobe -a kvm_amd kvm_intel 2>/dev/null; test -c /dev/kvm",
    );
    // KVM_GET_API_VERSION, then KVM_CREATE_VM, which turns the hardware on.
    let script = "import fcntl, os; k = os.open('/dev/kvm', os.O_RDWR); \
                  print(fcntl.ioctl(k, 0xAE00), fcntl.ioctl(k, 0xAE01, 0) >= 0)";
    assert_eq!(
        suite.sh(&vm, &format!("sudo python3 -c \"{script}\"")),
        "12 True"
    );
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
    network::thousand_flows(suite, &vm);
}

/// A unit of a real systemd that has failed is told of.
pub(crate) fn failed_unit(suite: &Suite) {
    let vm = suite.debian();
    suite.output(&vm, "sudo systemd-run --wait --unit=broken false");
    let failed = suite.sh(&vm, "systemctl --failed --no-legend --plain");
    assert!(failed.starts_with("broken.service "), "{failed}");
    suite.sh(&vm, "sudo systemctl reset-failed");
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
