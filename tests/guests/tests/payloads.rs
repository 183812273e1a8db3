//! Runs the payloads on this host's KVM, software-only or not: each takes well under a second.
//!
//! The payloads are found through FLEETBOX_GUESTS, a directory (`cargo xtask test` builds them and
//! sets it).

#[path = "support/mod.rs"]
mod support;

use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fleetbox_vmm::machine::{BootSource, Error, Exit, Machine, MachineConfig};
use support::{Guest, Outcome, disk_of, failing_disk, link};

#[test]
fn hello_enters_by_pvh_and_powers_off() {
    let outcome = Guest::payload("hello", "").run();
    assert_eq!(outcome.exit.unwrap(), Exit::PowerOff);
    assert_eq!(outcome.console, "H");
}

#[test]
fn a_firmware_is_entered_by_pvh() {
    let mut guest = Guest::payload("hello", "");
    let BootSource::Kernel { kernel, .. } = guest.config.boot else {
        unreachable!()
    };
    guest.config.boot = BootSource::Firmware(kernel);
    let outcome = guest.run();
    assert_eq!(outcome.exit.unwrap(), Exit::PowerOff);
    assert_eq!(outcome.console, "H");
}

/// A case that needs nothing but the machine.
macro_rules! plain_cases {
    ($($test:ident: $case:literal;)*) => {$(
        #[test]
        fn $test() {
            Guest::case($case).run().passed();
        }
    )*};
}

plain_cases! {
    ports_take_string_instructions: "port";
    nothing_is_where_nothing_is: "unclaimed";
    the_ioapic_delivers_edges: "interrupts";
    timers_advance_and_interrupt: "timer";
    pci_configuration_agrees_and_bars_move: "pci";
    absent_devices_are_absent: "no-device";
    random_bytes_differ: "rng";
}

#[test]
fn vcpus_start_and_hear_each_other() {
    for count in [2, 4] {
        let mut guest = Guest::case(&format!("smp {count}"));
        guest.config.cpus = count;
        guest.run().passed();
    }
}

#[test]
fn the_clock_is_the_hosts() {
    let hour = |after: u64| {
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(after);
        now.as_secs() / 3600 % 24
    };
    Guest::case(&format!("rtc {}-{}", hour(0), hour(60)))
        .run()
        .passed();
}

#[test]
fn blocks_are_written_and_read() {
    let (disk, contents) = disk_of(1 << 20);
    let outcome = Guest::case("blk").disk(disk).run();
    outcome.passed();
    let contents = std::fs::read(contents.path()).unwrap();
    let pattern: Vec<u8> = (0..4096u64).map(|i| (i * 7 + 9 + (i >> 8)) as u8).collect();
    assert_eq!(contents[9 * 512..9 * 512 + 4096], pattern);
}

#[test]
fn discarded_blocks_read_as_zeroes_and_are_given_back() {
    use std::os::unix::fs::MetadataExt;
    let (disk, contents) = disk_of(8 << 20);
    Guest::case("blk-discard").disk(disk).run().passed();
    let blocks = contents.as_file().metadata().unwrap().blocks() * 512;
    assert!(blocks <= 8192, "{blocks} bytes are still allocated");
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0xA5; 1 << 20]).unwrap();
    let disk = fleetbox_devices::block::open_disk(
        file.path(),
        &fleetbox_devices::block::OpenOptions::read_only(),
    )
    .unwrap();
    Guest::case("blk-read-only").disk(disk).run().passed();
    assert!(
        std::fs::read(file.path())
            .unwrap()
            .iter()
            .all(|b| *b == 0xA5)
    );
}

#[test]
fn a_host_error_reaches_the_guest() {
    Guest::case("blk-failing")
        .disk(failing_disk(1 << 20))
        .run()
        .passed();
}

#[test]
fn hostile_block_requests_are_survived() {
    let (disk, _contents) = disk_of(1 << 20);
    Guest::case("blk-hostile").disk(disk).run().passed();
}

#[test]
fn frames_go_both_ways() {
    let (mut guest, host) = (Guest::case("net"), link());
    guest.nic([2, 0, 0, 0, 0, 7], host.guest);
    let running = guest.start();
    let mut buffer = [0; 2048];
    let len = support::receive(host.host.as_fd(), &mut buffer);
    assert_eq!((len, &buffer[6..12]), (60, &[2, 0, 0, 0, 0, 7][..]));
    for len in [60, 777, 1514] {
        let mut frame = vec![0xC3; len];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        support::send(host.host.as_fd(), &frame);
        let got = support::receive(host.host.as_fd(), &mut buffer);
        assert_eq!(got, len);
        assert_eq!(buffer[..6], [2, 0, 0, 0, 0, 9]);
        assert_eq!(buffer[6..12], [2, 0, 0, 0, 0, 7]);
        assert_eq!(buffer[12..got], frame[12..]);
    }
    running.finish().passed();
}

#[test]
fn a_burst_of_frames_arrives_in_order() {
    let (mut guest, host) = (Guest::case("net-burst"), link());
    guest.nic([2, 0, 0, 0, 0, 7], host.guest);
    let running = guest.start();
    let mut buffer = [0; 2048];
    for i in 0..100 {
        let len = support::receive(host.host.as_fd(), &mut buffer);
        assert_eq!((len, buffer[14]), (60 + i * 14, i as u8));
    }
    running.finish().passed();
}

#[test]
fn the_device_cuts_a_large_packet_and_fills_in_checksums() {
    /// The sum of RFC 1071, which is all ones over data that holds its checksum.
    fn sum(parts: &[&[u8]]) -> u16 {
        parts
            .iter()
            .flat_map(|part| part.chunks(2))
            .fold(0u32, |sum, pair| {
                let low = u32::from(*pair.get(1).unwrap_or(&0));
                let sum = sum + (u32::from(pair[0]) << 8 | low);
                (sum & 0xFFFF) + (sum >> 16)
            }) as u16
    }
    let (mut guest, host) = (Guest::case("net-large"), link());
    guest.nic([2, 0, 0, 0, 0, 7], host.guest);
    let running = guest.start();
    let mut buffer = [0; 2048];
    let mut payload = Vec::new();
    for (len, flags) in [(1460, 0x10), (1460, 0x10), (1080, 0x18)] {
        let got = support::receive(host.host.as_fd(), &mut buffer);
        assert_eq!(got, 54 + len);
        let frame = &buffer[..got];
        assert_eq!(sum(&[&frame[14..34]]), 0xFFFF);
        let tcp = &frame[34..];
        let covered = (tcp.len() as u16).to_be_bytes();
        assert_eq!(sum(&[&frame[26..34], &[0, 6], &covered, tcp]), 0xFFFF);
        assert_eq!(tcp[4..8], (payload.len() as u32).to_be_bytes());
        assert_eq!(tcp[13], flags);
        payload.extend_from_slice(&tcp[20..]);
    }
    let expected: Vec<_> = (0..4000).map(|i| (i / 3) as u8).collect();
    assert_eq!(payload, expected);
    running.finish().passed();
}

#[test]
fn console_input_arrives_by_interrupt() {
    let running = Guest::case("echo").start();
    running.wait_for("READY");
    let text = "the quick brown fox jumps over the lazy dog ".repeat(10);
    running
        .handle()
        .serial_input(format!("{text}\n\n").as_bytes());
    let outcome = running.finish();
    outcome.passed();
    assert!(outcome.console.contains(&text));
}

#[test]
fn the_power_button_is_an_event() {
    let running = Guest::case("power-button").start();
    running.wait_for("READY");
    running.handle().power_button();
    running.finish().passed();
}

#[test]
fn a_reset_boots_again_with_clean_memory() {
    let running = Guest::case("reset").start();
    running.wait_for("BOOT\nBOOT\nBOOT\n");
    running.handle().kill();
    let Outcome { exit, console } = running.finish();
    assert_eq!(exit.unwrap(), Exit::Killed);
    assert!(!console.contains("FAILED"), "{console}");
}

#[test]
fn a_guest_that_only_resets_waits_longer_and_longer() {
    let running = Guest::case("reset").start();
    running.wait_for("BOOT\n");
    std::thread::sleep(Duration::from_secs(5));
    running.handle().kill();
    let start = Instant::now();
    let Outcome { exit, console } = running.finish();
    // Not after the time that the next boot waits.
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(exit.unwrap(), Exit::Killed);
    let boots = console.matches("BOOT").count();
    assert!((5..=12).contains(&boots), "{boots} boots");
}

#[test]
fn kill_ends_a_guest_that_never_exits() {
    let mut guest = Guest::case("spin");
    guest.config.cpus = 2;
    let running = guest.start();
    running.wait_for("READY");
    running.handle().kill();
    assert_eq!(running.finish().exit.unwrap(), Exit::Killed);
}

#[test]
fn dropping_a_machine_ends_it() {
    let running = Guest::case("spin").start();
    running.wait_for("READY");
    drop(running);
}

#[test]
fn a_triple_fault_is_an_error_with_registers_and_console() {
    let outcome = Guest::case("triple-fault").run();
    let error = outcome.exit.unwrap_err();
    let Error::Guest(failure) = &error else {
        panic!("{error}");
    };
    let text = error.to_string();
    assert!(
        failure.vcpu == Some(0) && failure.what.contains("triple fault"),
        "{text}"
    );
    assert!(
        text.contains("RIP=") && text.contains("about to fault"),
        "{text}"
    );
}

#[test]
fn memory_costs_nothing_until_touched() {
    let mut guest = Guest::case("port");
    guest.config.memory = 64 << 30;
    guest.run().passed();
}

#[test]
fn nonsense_is_refused_before_anything_is_created() {
    let hypervisor = support::hypervisor();
    let refused = |change: &dyn Fn(&mut MachineConfig)| {
        let mut config = MachineConfig {
            boot: BootSource::Firmware("/nonexistent".into()),
            ..Default::default()
        };
        change(&mut config);
        match Machine::start(&hypervisor, config) {
            Ok(_) => panic!("it started"),
            Err(e) => e.to_string(),
        }
    };
    assert!(refused(&|c| c.cpus = 0).contains("vCPU"));
    assert!(refused(&|c| c.cpus = 255).contains("vCPU"));
    assert!(refused(&|c| c.memory = 12345).contains("memory"));
    assert!(refused(&|c| c.boot = BootSource::Auto).contains("disk"));
    assert!(refused(&|_| {}).contains("/nonexistent"));
}
