use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set_level(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

/// 2001-09-09 01:46:40 UTC, a Sunday.
const START: u64 = 1_000_000_000;

struct Fixture {
    rtc: Rtc,
    line: Arc<Line>,
    /// Milliseconds since the epoch.
    now: Arc<AtomicU64>,
}

impl Fixture {
    fn new() -> Self {
        let (line, now) = (
            Arc::new(Line::default()),
            Arc::new(AtomicU64::new(START * 1000)),
        );
        let clock = now.clone();
        let rtc = Rtc::with_clock(
            line.clone(),
            Box::new(move || Duration::from_millis(clock.load(Ordering::SeqCst))),
        );
        Self { rtc, line, now }
    }

    fn read(&self, register: u8) -> u8 {
        self.rtc.write(INDEX, &[register | 0x80]);
        let mut data = [0];
        self.rtc.read(DATA, &mut data);
        data[0]
    }

    fn write(&self, register: u8, value: u8) {
        self.rtc.write(INDEX, &[register]);
        self.rtc.write(DATA, &[value]);
    }

    fn time(&self) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|r| self.read(r))
    }

    fn pass(&self, milliseconds: u64) {
        self.now.fetch_add(milliseconds, Ordering::SeqCst);
    }

    fn irq(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }

    fn wait_for_irq(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.irq() {
            assert!(Instant::now() < deadline, "no interrupt");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn the_clock_shows_the_hosts_time_in_every_format() {
    let f = Fixture::new();
    f.pass(12 * 3_600_000);
    for (format, want) in [
        (B_24_HOURS, [0x20, 0x01, 0x09, 0x09, 1, 0x13, 0x46, 0x40]),
        (0, [0x20, 0x01, 0x09, 0x09, 1, 0x81, 0x46, 0x40]),
        (B_BINARY, [20, 1, 9, 9, 1, 0x81, 46, 40]),
        (B_BINARY | B_24_HOURS, [20, 1, 9, 9, 1, 13, 46, 40]),
    ] {
        f.write(REG_B, format);
        assert_eq!(f.time(), want, "{format:#x}");
    }
    assert_eq!(f.read(REG_D), D_VALID);
}

#[test]
fn midnight_and_noon_are_twelve_o_clock() {
    let f = Fixture::new();
    f.write(REG_B, 0);
    // From 01:46 to 00:46.
    f.pass(23 * 3_600_000);
    assert_eq!(f.read(HOURS), 0x12);
    f.pass(12 * 3_600_000);
    assert_eq!(f.read(HOURS), 0x92);
}

#[test]
fn the_clock_can_be_set_and_runs_on() {
    let f = Fixture::new();
    f.write(REG_B, B_24_HOURS | B_SET);
    let date = [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58];
    for (register, value) in [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
        .into_iter()
        .zip(date)
    {
        f.write(register, value);
    }
    f.pass(5000);
    assert_eq!(f.time(), date, "stopped");
    f.write(REG_B, B_24_HOURS);
    assert_eq!(f.time(), date);
    f.pass(3000);
    assert_eq!(f.time(), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x01]);
    // One field of the running clock.
    f.write(MINUTES, 0x30);
    assert_eq!(f.time(), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x30, 0x01]);
}

#[test]
fn an_update_is_announced_just_before_the_second_changes() {
    let f = Fixture::new();
    f.pass(500);
    assert_eq!(f.read(REG_A), A_DEFAULT);
    let clock = Rtc::with_clock(
        f.line.clone(),
        Box::new(|| Duration::from_secs(START + 1) - Duration::from_micros(100)),
    );
    clock.write(INDEX, &[REG_A]);
    let mut data = [0];
    clock.read(DATA, &mut data);
    assert_eq!(data, [A_DEFAULT | A_UPDATE_IN_PROGRESS]);
}

#[test]
fn flags_can_be_polled() {
    let f = Fixture::new();
    f.write(HOURS_ALARM, ALARM_ANY);
    f.write(MINUTES_ALARM, 0x46);
    f.write(SECONDS_ALARM, 0x42);
    assert_eq!(f.read(REG_C), 0);
    f.pass(1000);
    assert_eq!(f.read(REG_C), C_UPDATE);
    assert_eq!(f.read(REG_C), 0);
    f.pass(3000);
    assert_eq!(f.read(REG_C), C_UPDATE | C_ALARM);
    assert!(!f.irq());
}

#[test]
fn the_alarm_interrupts_and_reading_c_acknowledges() {
    let f = Fixture::new();
    for (register, value) in [
        (HOURS_ALARM, 0x01),
        (MINUTES_ALARM, 0x46),
        (SECONDS_ALARM, 0x42),
        (REG_B, B_24_HOURS | B_ALARM),
    ] {
        f.write(register, value);
    }
    assert!(!f.irq());
    f.pass(2000);
    // Lets the thread see the clock that jumped.
    f.rtc.0.changed.notify_all();
    f.wait_for_irq();
    assert_eq!(f.read(REG_C), C_INTERRUPT | C_ALARM | C_UPDATE);
    assert!(!f.irq());
}

#[test]
fn the_update_interrupt_comes_with_the_next_second() {
    let line = Arc::new(Line::default());
    let f = Fixture {
        rtc: Rtc::new(line.clone()),
        line,
        now: Arc::default(),
    };
    f.write(REG_B, B_24_HOURS | B_UPDATE);
    f.read(REG_C);
    let second = f.read(SECONDS);
    f.wait_for_irq();
    assert_ne!(f.read(SECONDS), second);
    assert_ne!(f.read(REG_C) & C_UPDATE, 0);
}

#[test]
fn a_saved_state_continues_where_it_was() {
    let f = Fixture::new();
    f.write(0x40, 0x77);
    f.write(MINUTES, 0x05);
    f.write(REG_B, B_24_HOURS | B_BINARY);
    let json = serde_json::to_string(&f.rtc.save()).unwrap();

    let other = Fixture::new();
    other
        .rtc
        .restore(&serde_json::from_str(&json).unwrap())
        .unwrap();
    assert_eq!(other.rtc.save(), f.rtc.save());
    assert_eq!((other.read(0x40), other.read(MINUTES)), (0x77, 5));
    let bad = RtcState {
        ram: vec![0; 64],
        ..f.rtc.save()
    };
    assert_eq!(other.rtc.restore(&bad), Err(RtcError::RamSize(64)));
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_harmless(
        steps in prop::collection::vec((0u64..3, any::<u8>(), 0u64..100_000), 0..200)
    ) {
        let f = Fixture::new();
        for (offset, value, passed) in steps {
            f.rtc.write(offset, &[value]);
            f.pass(passed);
            let mut data = [0];
            f.rtc.read(offset, &mut data);
        }
        f.rtc.save();
    }
}
