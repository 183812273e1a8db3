//! Machine processes with the VMM and a guest of a few instructions.

use super::*;

/// Whether VMs run here. If not the calling test is skipped.
fn has_kvm() -> bool {
    let probe = crate::host::preflight::probe();
    if !probe.usable() {
        skip(&probe);
    }
    probe.usable()
}

/// A kernel of a dozen instructions (an ELF image with a PVH note) that prints `text` to COM1 and
/// powers off.
fn payload(text: &str) -> Vec<u8> {
    const ENTRY: u32 = 0x10_0000;
    const CODE: usize = 0x100;
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    // mov dx, 0x600; mov al, S5 with enable; out dx, al; hlt; jmp to the hlt
    code.extend([
        0x66,
        0xba,
        0x00,
        0x06,
        0xb0,
        5 << 2 | 0x20,
        0xee,
        0xf4,
        0xeb,
        0xfd,
    ]);

    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    image.extend(u64::from(ENTRY).to_le_bytes());
    image.extend(64_u64.to_le_bytes()); // program headers
    image.extend([0; 12]);
    image.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let mut header = |kind: u32, offset: u64, address: u64, len: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(7_u32.to_le_bytes());
        for field in [offset, address, address, len, len, 4] {
            image.extend(field.to_le_bytes());
        }
    };
    header(1, CODE as u64, ENTRY.into(), code.len() as u64);
    header(4, 176, 0, 20);
    // XEN_ELFNOTE_PHYS32_ENTRY
    for field in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY] {
        image.extend(field.to_le_bytes());
    }
    image.resize(CODE, 0);
    image.extend(code);
    image
}

#[test]
fn a_real_machine_runs_in_its_process_and_its_power_off_ends_the_worker() {
    if !has_kvm() {
        return;
    }
    let fixture = Fixture::new();
    let kernel = fixture.store.home().join("payload.elf");
    std::fs::write(&kernel, payload("Hello from the guest\n")).unwrap();
    let (store, name) = (&fixture.store, &fixture.name);
    let runtime = runtime();
    let attached = attach(store, name, Lifetime::Bound, &runtime);
    let mut spec = spec(&fixture.vm().unwrap(), runs());
    spec.backend = Backend::Vmm;
    spec.boot = BootSource::Kernel {
        kernel,
        initrd: None,
        cmdline: String::new(),
    };
    match runtime.block_on(attached.client.start(spec)) {
        // It may have come to its end before anybody looked.
        Ok(_) => {}
        Err(ProcessError::Failed(message)) if message.contains("powered off immediately") => {}
        Err(error) => panic!("{error}"),
    }
    let report = runtime
        .block_on(attached.client.wait(&fixture.id()))
        .unwrap();
    assert_eq!(report.failure, None);
    assert_eq!(report.console, "Hello from the guest");
    drop(attached);
    fixture.assert_quiet();
}

#[test]
fn a_real_machine_that_cannot_boot_says_why() {
    if !has_kvm() {
        return;
    }
    let fixture = Fixture::new();
    let (attached, _) = fixture.start(Lifetime::Bound, runs());
    let runtime = runtime();
    runtime
        .block_on(attached.client.stop(&fixture.id(), SECONDS))
        .unwrap();
    let mut spec = spec(&fixture.vm().unwrap(), runs());
    spec.backend = Backend::Vmm;
    spec.boot = BootSource::Kernel {
        kernel: "/nowhere".into(),
        initrd: None,
        cmdline: String::new(),
    };
    let error = runtime
        .block_on(attached.client.start(spec))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nowhere"), "{error}");
}
