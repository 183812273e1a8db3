//! CMOS real-time clock: a Motorola MC146818 with 128 bytes of RAM.
//!
//! The clock shows the host's UTC time plus an offset, which changes when the guest sets the clock.
//! Alarm and update-ended interrupts work. The periodic interrupt (register B, PIE) is not raised,
//! because kernels of the last decade emulate it with other timers.

mod calendar;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use self::calendar::DateTime;
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::sync::lock;

// Ports.
const INDEX: u64 = 0;
const DATA: u64 = 1;

/// Bytes of CMOS RAM, including the clock's registers.
const RAM_SIZE: usize = 128;

// Registers (MC146818 datasheet, table 3).
const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REG_A: u8 = 0x0A;
const REG_B: u8 = 0x0B;
const REG_C: u8 = 0x0C;
const REG_D: u8 = 0x0D;
/// The register of the century in PCs.
const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
/// 32768 Hz time base and 1024 Hz periodic rate, as firmware sets them.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_INTERRUPT: u8 = 0x80;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const D_VALID: u8 = 0x80;
/// The bit for p.m. in an hour register with 12-hour format.
const PM: u8 = 0x80;
/// Alarm registers from here on match every value.
const ALARM_ANY: u8 = 0xC0;

/// How long before a new second the registers announce an update.
const UPDATE_WARNING: Duration = Duration::from_micros(244);
const SECOND: Duration = Duration::from_secs(1);

/// Registers and RAM of an [`Rtc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Selected register.
    pub index: u8,
    /// RAM (128 bytes): the alarm registers, the registers A to D, and data of firmware and
    /// kernels. The time registers are used only while the guest has stopped the clock (register B,
    /// SET).
    pub ram: Vec<u8>,
    /// How many seconds the clock is ahead of the host's UTC time.
    pub offset: i64,
}

/// Why a saved state cannot be restored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RtcError {
    /// The RAM has the wrong size.
    #[error("the saved real-time clock has {0} bytes of RAM instead of {RAM_SIZE}")]
    RamSize(usize),
}

/// Time since the Unix epoch.
type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

struct State {
    index: u8,
    ram: [u8; RAM_SIZE],
    offset: i64,
    /// The second up to which the flags of register C are computed.
    seen: i64,
    /// True if the thread that raises interrupts is running.
    ticking: bool,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    irq: Arc<dyn IrqLine>,
    clock: Clock,
}

/// The clock, at an index and a data port.
///
/// The thread that raises its interrupts starts when the guest first enables one.
pub struct Rtc(Arc<Shared>);

impl State {
    fn register(&self, register: u8) -> u8 {
        self.ram[usize::from(register) % RAM_SIZE]
    }

    fn set_register(&mut self, register: u8, value: u8) {
        self.ram[usize::from(register) % RAM_SIZE] = value;
    }

    fn has(&self, bit_of_b: u8) -> bool {
        self.register(REG_B) & bit_of_b != 0
    }

    fn encode(&self, value: u8) -> u8 {
        if self.has(B_BINARY) {
            value
        } else {
            (value / 10 % 10) << 4 | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.has(B_BINARY) {
            value
        } else {
            (value >> 4) * 10 + (value & 0xF)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.has(B_24_HOURS) {
            return self.encode(hour);
        }
        let of_twelve = match hour % 12 {
            0 => 12,
            h => h,
        };
        self.encode(of_twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.has(B_24_HOURS) {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }

    /// Stores `second` (Unix time) in the time registers.
    fn latch(&mut self, second: i64) {
        let t = DateTime::from_unix(second);
        let year = t.year.rem_euclid(100) as u8;
        let century = t.year.div_euclid(100).rem_euclid(100) as u8;
        for (register, value) in [
            (SECONDS, self.encode(t.second)),
            (MINUTES, self.encode(t.minute)),
            (HOURS, self.encode_hour(t.hour)),
            (WEEKDAY, self.encode(t.weekday)),
            (DAY, self.encode(t.day)),
            (MONTH, self.encode(t.month)),
            (YEAR, self.encode(year)),
            (CENTURY, self.encode(century)),
        ] {
            self.set_register(register, value);
        }
    }

    /// The Unix time in the time registers. A value out of range carries into the next unit.
    fn latched(&self) -> i64 {
        let of = |register| self.decode(self.register(register));
        DateTime {
            year: i64::from(of(CENTURY)) * 100 + i64::from(of(YEAR)),
            month: of(MONTH),
            day: of(DAY),
            hour: self.decode_hour(self.register(HOURS)),
            minute: of(MINUTES),
            second: of(SECONDS),
            weekday: 0,
        }
        .to_unix()
    }

    /// The first second after `after` (Unix time) that the alarm registers match.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let field = |register| match self.register(register) {
            value if value >= ALARM_ANY => None,
            value if register == HOURS_ALARM => Some(self.decode_hour(value)),
            value => Some(self.decode(value)),
        };
        let at = |register| field(register).map(i64::from);
        calendar::next_match(after, at(HOURS_ALARM), at(MINUTES_ALARM), at(SECONDS_ALARM))
    }

    /// Sets the flags of register C for everything up to `second`. Returns true if an enabled
    /// interrupt is due.
    fn catch_up(&mut self, second: i64) -> bool {
        let mut flags = self.register(REG_C) & !C_INTERRUPT;
        if !self.has(B_SET) && second > self.seen {
            flags |= C_UPDATE;
            if self.next_alarm(self.seen).is_some_and(|at| at <= second) {
                flags |= C_ALARM;
            }
        }
        // Also when the guest or the host set the clock back.
        self.seen = second;
        // Flags and enable bits are at the same places.
        let enabled = flags & self.register(REG_B) & (C_ALARM | C_UPDATE) != 0;
        self.set_register(REG_C, flags | if enabled { C_INTERRUPT } else { 0 });
        enabled
    }

    /// The next second at which an enabled interrupt is due.
    fn next_event(&self) -> Option<i64> {
        if self.has(B_SET) || self.register(REG_C) & C_INTERRUPT != 0 {
            None
        } else if self.has(B_UPDATE) {
            Some(self.seen + 1)
        } else if self.has(B_ALARM) {
            self.next_alarm(self.seen)
        } else {
            None
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The clock's time: the Unix second and the elapsed part of it.
    fn now(&self, state: &State) -> (i64, Duration) {
        let now = (self.clock)();
        let second = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let passed = Duration::from_nanos(u64::from(now.subsec_nanos()));
        (second.saturating_add(state.offset), passed)
    }

    fn catch_up(&self, state: &mut State) {
        let (second, _) = self.now(state);
        if state.catch_up(second) {
            self.irq.set_level(true);
        }
    }

    /// Raises interrupts as they become due, until the device is dropped.
    fn tick(&self) {
        /// Maximum time between checks, because the host's clock may be set.
        const LOOK_AGAIN: Duration = Duration::from_secs(30);
        let mut state = self.lock();
        while !state.stopped {
            self.catch_up(&mut state);
            state = match state.next_event() {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let (second, passed) = self.now(&state);
                    let whole = u64::try_from(due.saturating_sub(second)).unwrap_or(0);
                    let wait = Duration::from_secs(whole)
                        .saturating_sub(passed)
                        .clamp(Duration::from_micros(100), LOOK_AGAIN);
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Rtc {
    /// A clock that shows the host's UTC time.
    pub fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self::with_clock(
            irq,
            Box::new(|| {
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
            }),
        )
    }

    fn with_clock(irq: Arc<dyn IrqLine>, clock: Clock) -> Self {
        let mut ram = [0; RAM_SIZE];
        ram[usize::from(REG_A)] = A_DEFAULT;
        ram[usize::from(REG_B)] = B_24_HOURS;
        ram[usize::from(REG_D)] = D_VALID;
        let shared = Shared {
            state: Mutex::new(State {
                index: 0,
                ram,
                offset: 0,
                seen: 0,
                ticking: false,
                stopped: false,
            }),
            changed: Condvar::new(),
            irq,
            clock,
        };
        let now = shared.now(&shared.lock()).0;
        shared.lock().seen = now;
        Self(Arc::new(shared))
    }

    /// Registers and RAM.
    pub fn save(&self) -> RtcState {
        let mut state = self.0.lock();
        self.0.catch_up(&mut state);
        RtcState {
            index: state.index,
            ram: state.ram.to_vec(),
            offset: state.offset,
        }
    }

    /// Sets registers and RAM. The clock shows the present time with the saved offset.
    ///
    /// # Errors
    /// `saved` is malformed; nothing has changed then.
    pub fn restore(&self, saved: &RtcState) -> Result<(), RtcError> {
        let ram = <[u8; RAM_SIZE]>::try_from(saved.ram.as_slice())
            .map_err(|_| RtcError::RamSize(saved.ram.len()))?;
        let mut state = self.0.lock();
        state.index = saved.index;
        state.ram = ram;
        state.offset = saved.offset;
        state.seen = self.0.now(&state).0;
        let pending = state.register(REG_C) & C_INTERRUPT != 0;
        self.0.irq.set_level(pending);
        self.wake(&mut state);
        Ok(())
    }

    /// Wakes the interrupt thread after a change of state. Starts it if it is needed.
    fn wake(&self, state: &mut State) {
        if !state.ticking && state.next_event().is_some() {
            let shared = self.0.clone();
            let thread = thread::Builder::new().name("rtc".to_owned());
            match thread.spawn(move || shared.tick()) {
                Ok(_) => state.ticking = true,
                Err(error) => {
                    tracing::warn!(%error, "cannot start the clock's thread; it raises no interrupts")
                }
            }
        }
        self.0.changed.notify_all();
    }

    fn read_register(&self) -> u8 {
        let mut state = self.0.lock();
        let register = state.index;
        match register {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY if !state.has(B_SET) => {
                let (second, _) = self.0.now(&state);
                state.latch(second);
                state.register(register)
            }
            REG_A => {
                let (_, passed) = self.0.now(&state);
                let updating = !state.has(B_SET) && passed >= SECOND - UPDATE_WARNING;
                let flag = if updating { A_UPDATE_IN_PROGRESS } else { 0 };
                state.register(REG_A) & !A_UPDATE_IN_PROGRESS | flag
            }
            REG_C => {
                self.0.catch_up(&mut state);
                let flags = state.register(REG_C);
                state.set_register(REG_C, 0);
                self.0.irq.set_level(false);
                self.0.changed.notify_all();
                flags
            }
            REG_D => D_VALID,
            _ => state.register(register),
        }
    }

    fn write_register(&self, value: u8) {
        let mut state = self.0.lock();
        // What happened so far, by the old registers.
        self.0.catch_up(&mut state);
        let register = state.index;
        match register {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                let (second, _) = self.0.now(&state);
                if !state.has(B_SET) {
                    state.latch(second);
                }
                state.set_register(register, value);
                if !state.has(B_SET) {
                    set_clock(&mut state, second);
                }
            }
            REG_A => state.set_register(REG_A, value & !A_UPDATE_IN_PROGRESS),
            REG_B => {
                let (second, _) = self.0.now(&state);
                let was_set = state.has(B_SET);
                if !was_set {
                    state.latch(second);
                }
                if was_set && value & B_SET == 0 {
                    // The registers are in the old format: kernels change it before the time.
                    set_clock(&mut state, second);
                }
                state.set_register(REG_B, value);
                let seen = state.seen;
                let pending = state.catch_up(seen);
                self.0.irq.set_level(pending);
            }
            REG_C | REG_D => {}
            _ => state.set_register(register, value),
        }
        self.wake(&mut state);
    }
}

/// Sets the clock to the time registers. `second` is its current time.
fn set_clock(state: &mut State, second: i64) {
    let to = state.latched();
    state.offset = state.offset.saturating_add(to.saturating_sub(second));
    state.seen = to;
}

impl Drop for Rtc {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

impl BusDevice for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (DATA, [value]) => *value = self.read_register(),
            // The index port is write-only.
            (_, data) => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // The highest bit masks NMIs, of which there are none.
            (INDEX, [value]) => self.0.lock().index = value & 0x7F,
            (DATA, [value]) => self.write_register(*value),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "rtc_test.rs"]
mod tests;
