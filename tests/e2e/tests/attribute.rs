//! Tests of `#[fleetbox::test]` that the end-to-end suite runs and whose outcome it looks at: the case knows what
//! has to happen. They are ignored so that nobody else runs them.

use std::time::Duration;

use fleetbox::{Cluster, Ready, Result, Size, Vm, blocking, testing};

/// What the guests of these tests are; they boot slowly in an emulated host.
const BOOT: Duration = Duration::from_secs(240);

#[fleetbox::test(image = "tiny", cpus = 1, memory = "256MiB", disk = "2GiB", boot_timeout = BOOT)]
#[ignore = "run by the end-to-end suite"]
async fn passes_with_a_vm(vm: Vm) -> Result<()> {
    let output = vm.ssh("hostname").await?;
    assert_eq!(output.stdout_text().trim(), vm.name());
    assert!(vm.name().contains("passes-with-a-vm"), "{}", vm.name());
    Ok(())
}

#[fleetbox::test(
    image = "tiny",
    nodes = 2,
    cpus = 1,
    memory = "256MiB",
    disk = "2GiB",
    boot_timeout = BOOT
)]
#[ignore = "run by the end-to-end suite"]
async fn passes_with_a_cluster(cluster: Cluster) -> Result<()> {
    let second = cluster.vm("node-2")?.ip();
    let greeting = format!("nc -w 20 {second} 22 </dev/null | head -c 4");
    let output = cluster.vm("node-1")?.ssh(&greeting).await?;
    assert_eq!(output.stdout_text(), "SSH-", "{}", output.stderr_text());
    Ok(())
}

/// The same without the macro, in a test that blocks.
#[test]
#[ignore = "run by the end-to-end suite"]
fn passes_without_the_macro() {
    let vm = blocking::Vm::test()
        .image("tiny")
        .cpus(1)
        .memory(Size::mib(256))
        .disk(Size::gib(2))
        .boot_timeout(BOOT);
    testing::run_blocking(vm, |vm: blocking::Vm| -> Result<()> {
        assert!(vm.name().contains("passes-without-the-macro"));
        assert!(vm.ssh("true")?.success());
        Ok(())
    });
}

/// Fails with a guest that pretends to run systemd, and of whose units one has failed.
#[fleetbox::test(image = "tiny", cpus = 1, memory = "256MiB", disk = "2GiB", boot_timeout = BOOT)]
#[ignore = "run by the end-to-end suite"]
fn fails(vm: blocking::Vm) -> Result<()> {
    let output = vm.ssh(
        "sudo mkdir -p /run/systemd/system && \
         printf '#!/bin/sh\\necho broken.service loaded failed failed A broken unit\\n' >systemctl && \
         sudo cp systemctl /usr/bin/systemctl && sudo chmod 755 /usr/bin/systemctl && \
         echo this-is-on-the-console | sudo tee /dev/console",
    )?;
    assert!(output.success(), "{}", output.stderr_text());
    // What a guest prints arrives a moment later.
    vm.wait_for(Ready::Console("this-is-on-the-console".into()), BOOT)?;
    panic!("this test fails on purpose");
}

/// A test that panics as it should is skipped as one that passes.
#[fleetbox::test(image = "tiny", boot_timeout = BOOT)]
#[ignore = "run by the end-to-end suite"]
#[should_panic(expected = "as it should")]
async fn panics(_vm: Vm) {
    panic!("as it should");
}
