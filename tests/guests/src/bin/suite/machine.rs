//! Everything besides disks and networks.

use fleetbox_guests::pci::Function;
use fleetbox_guests::virtio::{Buffer, Device, Rings};
use fleetbox_guests::{apic, interrupts as idt, pci, port, println, smp as cpus, time};

static mut RINGS: Rings = Rings::new();

/// Returns what is typed, line by line, with interrupts, until an empty line.
pub(super) fn echo() {
    apic::enable();
    apic::route(4, 0x44, apic::id(), false);
    port::write8(0x3F9, 1); // received data available
    idt::enable();
    println!("READY");
    let mut line = 0;
    loop {
        let before = idt::count(0x44);
        while port::read8(0x3FD) & 1 != 0 {
            let byte = port::read8(0x3F8);
            port::write8(0x3F8, byte);
            if byte != b'\n' {
                line += 1;
            } else if line == 0 {
                assert!(idt::count(0x44) > 0, "no interrupt came");
                return;
            } else {
                line = 0;
            }
        }
        assert!(
            time::wait(5000, || idt::count(0x44) != before
                || port::read8(0x3FD) & 1 != 0),
            "no input"
        );
    }
}

/// A pin of the IOAPIC, edge triggered by the serial port's transmitter.
pub(super) fn interrupts() {
    apic::enable();
    apic::route(4, 0x41, apic::id(), false);
    idt::enable();
    port::write8(0x3F9, 2); // transmitter empty
    assert!(
        time::wait(5000, || idt::count(0x41) > 0),
        "the serial port's interrupt did not come"
    );
    // Masked, nothing comes.
    apic::ioapic_write(0x10 + 8, 1 << 16);
    let before = idt::count(0x41);
    port::write8(0x3F8, b'\n');
    port::write8(0x3F9, 0);
    port::write8(0x3F9, 2);
    assert!(
        !time::wait(20, || idt::count(0x41) != before),
        "a masked pin sent"
    );
    port::write8(0x3F9, 0);
}

/// Waits until it is told that it was paused, by its paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst).
pub(super) fn kvmclock() {
    const SYSTEM_TIME_NEW: u32 = 0x4B56_4D01;
    const GUEST_STOPPED: u8 = 1 << 1;
    #[repr(C, align(4096))]
    struct Page([u8; 4096]);
    static mut PAGE: Page = Page([0; 4096]);
    let page = &raw mut PAGE as u64;
    let msr = page | 1;
    // SAFETY: the hypervisor writes its clock to the page, which belongs to nothing else.
    unsafe {
        core::arch::asm!("wrmsr", in("ecx") SYSTEM_TIME_NEW, in("eax") msr as u32,
                         in("edx") (msr >> 32) as u32, options(nostack))
    };
    // SAFETY: the flags of the structure in the page.
    let flags = || unsafe { ((page + 29) as *const u8).read_volatile() };
    assert_eq!(flags() & GUEST_STOPPED, 0, "paused before it began");
    println!("READY");
    while flags() & GUEST_STOPPED == 0 {
        core::hint::spin_loop();
    }
}

pub(super) fn no_device() {
    assert!(Device::open(2, 0, 0).is_none());
    assert!(Device::open(1, 0, 0).is_none());
}

/// Both ways into configuration space agree; BARs can be sized and moved.
pub(super) fn pci() {
    assert_eq!(Function(0).read(0), 0x0008_1B36);
    assert_eq!(Function(31).read(0), u32::MAX);
    for slot in 0..32 {
        for offset in [0, 8, 0x2C, 0x34] {
            let function = Function(slot);
            assert_eq!(function.read(offset), function.read_by_port(offset));
        }
    }
    let rng = pci::find_virtio(4, 0).expect("an entropy device");
    let bar = rng.read(0x10);
    rng.write(0x10, u32::MAX);
    assert_eq!(rng.read(0x10) & !0xF, !0x7FFF, "32 KiB");
    // The device still works after its BAR has moved.
    rng.write(0x10, bar + 0x100_0000);
    random();
    rng.write(0x10, bar);
    random();
}

pub(super) fn ports() {
    port::write_string(0x3F8, b"string output\n");
    // The scratch register of the UART remembers.
    port::write8(0x3FF, 0x5A);
    assert_eq!(port::read8(0x3FF), 0x5A);
}

pub(super) fn power_button() {
    apic::enable();
    apic::route(9, 0x49, apic::id(), false);
    idt::enable();
    println!("READY");
    assert!(
        time::wait(5000, || idt::count(0x49) > 0),
        "the power button did not come"
    );
    assert_eq!(port::read32(0x604), 1, "the event's status");
    assert_eq!(port::read32(0x604), 0, "reading clears it");
}

/// Marks memory and resets the machine, for ever: each boot must find the memory cleared.
pub(super) fn reset() {
    let mark = 0x80_0000 as *mut u64;
    // SAFETY: RAM that the payload does not occupy.
    let found = unsafe { mark.read_volatile() };
    assert_eq!(found, 0, "memory survived the reset");
    // SAFETY: as above.
    unsafe { mark.write_volatile(1) };
    println!("BOOT");
    fleetbox_guests::reset();
}

pub(super) fn random() {
    apic::enable();
    let device = Device::open(4, 0, 0).expect("an entropy device");
    let mut queue = device.queue(0, &raw mut RINGS as u64, 0x42);
    device.start();
    let mut bytes = [[0u8; 64]; 2];
    for buffer in &mut bytes {
        let len = queue
            .request(&[Buffer::into(buffer)])
            .expect("an interrupt");
        assert!(len > 0 && len <= 64, "{len} bytes");
    }
    // SAFETY: bytes of this stack, which the device wrote.
    let bytes = unsafe { (&raw const bytes).read_volatile() };
    assert!(bytes[0] != bytes[1], "the same bytes twice");
}

/// The clock agrees with the host's hour, given as the argument (UTC).
pub(super) fn clock(argument: &str) {
    let read = |index: u8| {
        port::write8(0x70, index);
        port::read8(0x71)
    };
    let binary = read(0xB) & 4 != 0;
    let value = |raw: u8| {
        if binary {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 15)
        }
    };
    println!("RTC hour {} of {argument}", value(read(4)));
    let mut hours = argument.split('-').filter_map(|h| h.parse::<u8>().ok());
    assert!(
        hours.any(|hour| hour == value(read(4))),
        "hour {}",
        value(read(4))
    );
    let before = read(0);
    assert!(
        time::wait(2500, || read(0) != before),
        "the clock stands still"
    );
}

pub(super) fn smp(argument: &str) {
    let count: u32 = argument.parse().expect("a number of vCPUs");
    let up = cpus::start(count - 1);
    assert_eq!(up, (1 << count) - 2, "vCPUs up: {up:#b}");
    // An interprocessor interrupt to each.
    for id in 1..count {
        let before = idt::count(0x77);
        apic::write(0x310, id << 24);
        apic::write(0x300, 0x4077);
        assert!(
            time::wait(2000, || idt::count(0x77) == before + 1),
            "vCPU {id} is deaf"
        );
    }
}

/// Never ends: for tests that end it.
pub(super) fn spin() {
    println!("READY");
    loop {
        core::hint::spin_loop();
    }
}

/// Says as many numbered lines as it is told, or says on without end.
pub(super) fn talk(lines: &str) {
    let lines = lines.parse().unwrap_or(usize::MAX);
    for number in 0..lines {
        println!("{number:07}");
    }
}

/// The PM timer advances, and the local APIC's timer interrupts.
pub(super) fn timer() {
    let start = time::ticks();
    assert!(
        time::wait(1000, || time::ticks() != start),
        "the PM timer stands still"
    );
    apic::enable();
    apic::write(0x3E0, 0xB); // divide by 1
    apic::write(0x320, 0x43); // one shot
    idt::enable();
    apic::write(0x380, 100_000);
    assert!(
        time::wait(2000, || idt::count(0x43) == 1),
        "the local timer did not come"
    );
}

pub(super) fn triple_fault() {
    println!("about to fault");
    // SAFETY: never returns: without an interrupt table the exception becomes a triple fault.
    unsafe {
        let none = [0u16; 5];
        core::arch::asm!("lidt [{}]", "ud2", in(reg) &raw const none);
    }
}

/// Nothing is there: all ones, and writes go nowhere.
pub(super) fn unclaimed() {
    assert_eq!(port::read8(0x61), 0xFF);
    assert_eq!(port::read32(0x5000), u32::MAX);
    port::write32(0x5000, 1);
    let hole = 0xF000_0000u64 as *mut u32;
    // SAFETY: an address without memory, which the program uses for nothing.
    unsafe { hole.write_volatile(7) };
    // SAFETY: as above.
    assert_eq!(unsafe { hole.read_volatile() }, u32::MAX);
}
