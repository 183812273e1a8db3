//! Panics of a kernel, and guests that only look like one.

use fleetbox_guests::{apic, interrupts, port, println, time};

const PVPANIC: u16 = 0x505;

/// What Linux prints first, and last.
fn print_panic() {
    println!("[    1.0] Kernel panic - not syncing: a test");
    println!("[    1.1] ---[ end Kernel panic - not syncing: a test ]---");
}

/// Prints what a kernel that panics prints, and then does what `then` says.
pub(super) fn line(then: &str) {
    print_panic();
    match then {
        "idle" => idle(8),
        "print" => print(8),
        "spin" => spin(),
        "stop" => fleetbox_guests::halt(),
        _ => panic!("what is {then:?}?"),
    }
}

/// Writes `event` to the device, and then does what `then` says.
pub(super) fn report(argument: &str) {
    let (event, then) = argument.split_once(' ').unwrap_or((argument, ""));
    assert_eq!(port::read8(PVPANIC), 7, "the events that the device knows");
    let event = event.parse().expect("an event");
    println!("[    1.0] Kernel panic - not syncing: a test");
    // More often than anybody wants to know.
    for _ in 0..100 {
        port::write8(PVPANIC, event);
    }
    match then {
        "trace" => {
            print(4);
            println!("END OF TRACE");
            spin();
        }
        "idle" => idle(5),
        "silence" => spin(),
        _ => panic!("what is {then:?}?"),
    }
}

/// Waits for interrupts, as an operating system does that has nothing to do.
fn idle(seconds: u32) {
    apic::enable();
    apic::write(0x3E0, 0xB); // divide by 1
    apic::write(0x320, 0x43 | 1 << 17); // periodic
    apic::write(0x380, 50_000_000);
    let start = time::ticks();
    while time::ticks().wrapping_sub(start) < seconds * time::PM_TIMER_HZ {
        interrupts::wait();
    }
    interrupts::disable();
    assert!(interrupts::count(0x43) > 0);
}

/// Prints a line twice a second.
fn print(seconds: u32) {
    for number in 0..2 * seconds {
        time::wait(500, || false);
        println!("line {number}");
    }
}

fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
