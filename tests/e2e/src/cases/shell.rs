//! Commands in a guest, by SSH.

use std::time::Duration;

use fleetbox::Vm;
use fleetbox::ssh::PtyRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::report::{Must, uses};
use crate::suite::{Suite, sha256};

pub(crate) fn output_and_status(suite: &Suite) {
    let vm = suite.shared();
    let kernel = suite.sh(&vm, "uname -a");
    assert!(
        kernel.starts_with(&format!("Linux {} ", vm.name())) && kernel.contains("x86_64"),
        "{kernel}"
    );
    assert_eq!(suite.sh(&vm, "id -un"), "fleetbox");
    assert_eq!(suite.sh(&vm, "sudo -n id -u"), "0");
    let output = suite.output(&vm, "echo out; echo err >&2; exit 7");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (output.stdout_text().trim(), output.stderr_text().trim()),
        ("out", "err")
    );
    let cmdline = suite.sh(&vm, "cat /proc/cmdline");
    assert!(cmdline.contains("BOOT_IMAGE=/boot/vmlinuz-"), "{cmdline}");
}

/// More than any buffer holds, both ways, while the command runs.
pub(crate) fn streams_input(suite: &Suite) {
    const SIZE: usize = 4 << 20;
    let vm = suite.shared();
    let bytes: Vec<u8> = (0..SIZE)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect();
    let output = suite
        .block(vm.ssh_with_input("sha256sum", &bytes))
        .must("sha256sum");
    assert!(
        output.stdout_text().starts_with(&sha256(&bytes)),
        "{}",
        output.stdout_text()
    );
    let output = suite.block(vm.ssh_with_input("cat", &bytes)).must("cat");
    assert!(
        output.stdout == bytes,
        "cat changed its input: {} bytes came back",
        output.stdout.len()
    );
    // A line is answered before the input ends.
    suite.block(async {
        let mut child = vm
            .ssh_spawn("while read -r line; do echo \"<$line>\"; done")
            .await
            .must("cannot start a loop");
        let (mut input, mut out) = (
            child.stdin.take().expect("piped"),
            child.stdout.take().expect("piped"),
        );
        for word in ["one", "two"] {
            input
                .write_all(format!("{word}\n").as_bytes())
                .await
                .must("cannot write");
            let mut answer = vec![0; word.len() + 3];
            let read =
                tokio::time::timeout(Duration::from_secs(30), out.read_exact(&mut answer)).await;
            read.must("no answer").must("cannot read");
            assert_eq!(String::from_utf8_lossy(&answer), format!("<{word}>\n"));
        }
        drop((input, out));
        assert!(child.wait().await.must("cannot wait").success());
    });
}

pub(crate) fn two_vcpus(suite: &Suite) {
    let vm = suite
        .block(suite.small(Vm::test()).cpus(2).start())
        .must("cannot start a VM with two vCPUs");
    uses(vm.name());
    assert_eq!(suite.sh(&vm, "nproc"), "2");
    assert_eq!(suite.sh(&vm, "grep -c ^processor /proc/cpuinfo"), "2");
    // Each has queues of its own.
    let queues = "ls -d /sys/class/net/*/queues/rx-* | grep -vc /lo/; ls /sys/block/vda/mq | wc -l";
    assert_eq!(suite.sh(&vm, queues), "2\n2");
    // Both do work: one is kept busy while the other answers.
    let spread = "for cpu in 0 1; do taskset -c $cpu sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo done'; done";
    assert_eq!(suite.sh(&vm, spread), "done\ndone");
}

/// A guest sees virtualisation hardware where this host's KVM passes that on, and none where it does not. That its
/// KVM makes VMs is a case of Debian's.
pub(crate) fn nested(suite: &Suite) {
    let vm = suite.shared();
    let flags = suite.sh(&vm, "grep -m 1 -w flags /proc/cpuinfo");
    let shown = flags
        .split_ascii_whitespace()
        .any(|flag| matches!(flag, "vmx" | "svm"));
    assert_eq!(shown, fleetbox::nested_virt_supported(), "{flags}");
    if !shown {
        println!(
            "      no virtualisation in guests: this host's KVM does not pass its hardware on"
        );
    }
}

/// A terminal of the size that was asked for, which follows its window.
pub(crate) fn pty(suite: &Suite) {
    let vm = suite.shared();
    let request = PtyRequest {
        term: "vt100".to_owned(),
        columns: 101,
        rows: 37,
    };
    suite.block(async {
        let command = "echo $TERM; stty size; read -r line; stty size; exit 5";
        let mut child = vm
            .ssh_pty(&request, Some(command))
            .await
            .must("cannot open a terminal");
        let (mut input, mut out) = (
            child.stdin.take().expect("piped"),
            child.stdout.take().expect("piped"),
        );
        let mut seen = String::new();
        read_until(&mut out, &mut seen, "37 101").await;
        assert!(seen.contains("vt100"), "{seen:?}");
        child.resize(90, 21).await.must("cannot resize");
        // A terminal turns the carriage return into the line's end, and echoes what is typed.
        input.write_all(b"typed\r").await.must("cannot type");
        read_until(&mut out, &mut seen, "21 90").await;
        assert!(seen.contains("typed"), "{seen:?}");
        drop((input, out));
        assert_eq!(child.wait().await.must("cannot wait").code(), Some(5));
    });
}

async fn read_until(out: &mut (impl AsyncReadExt + Unpin), seen: &mut String, wanted: &str) {
    let mut buffer = [0; 1024];
    while !seen.contains(wanted) {
        let read = tokio::time::timeout(Duration::from_secs(30), out.read(&mut buffer)).await;
        let Ok(read) = read else {
            panic!("the terminal does not show {wanted:?}, only {seen:?}");
        };
        let n = read.must("cannot read");
        assert!(n > 0, "the terminal was closed after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}
