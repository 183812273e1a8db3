//! The test payload: its command line is the name of the case to run. It prints `PASSED` as its
//! last line, or `FAILED` and why.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod block;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod network;
#[cfg(target_os = "none")]
mod panic;

#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
fn payload(command_line: &str) {
    use fleetbox_guests::println;

    let (name, argument) = command_line.split_once(' ').unwrap_or((command_line, ""));
    match name {
        "blk" => block::read_and_write(),
        "blk-discard" => block::discard(),
        "blk-read-only" => block::read_only(),
        "blk-failing" => block::failing_disk(),
        "blk-hostile" => block::hostile_requests(),
        "echo" => machine::echo(),
        "kvmclock" => machine::kvmclock(),
        "interrupts" => machine::interrupts(),
        "net" => network::both_ways(),
        "net-burst" => network::burst(),
        "net-large" => network::large(),
        "no-device" => machine::no_device(),
        "panic-line" => panic::line(argument),
        "panic-report" => panic::report(argument),
        "pci" => machine::pci(),
        "port" => machine::ports(),
        "power-button" => machine::power_button(),
        "reset" => machine::reset(),
        "rng" => machine::random(),
        "rtc" => machine::clock(argument),
        "smp" => machine::smp(argument),
        "spin" => machine::spin(),
        "talk" => machine::talk(argument),
        "timer" => machine::timer(),
        "triple-fault" => machine::triple_fault(),
        "unclaimed" => machine::unclaimed(),
        _ => panic!("no case {name:?}"),
    }
    println!("PASSED {name}");
}

/// On the host there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
