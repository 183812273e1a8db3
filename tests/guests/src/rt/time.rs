//! Time by the ACPI power management timer.

use super::port;

/// Ticks a second.
pub const PM_TIMER_HZ: u32 = 3_579_545;

/// The timer's value.
pub fn ticks() -> u32 {
    port::read32(0x608)
}

/// Waits until `done` holds; false if that takes longer than `milliseconds`.
pub fn wait(milliseconds: u32, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    let limit = u64::from(PM_TIMER_HZ) * u64::from(milliseconds) / 1000;
    loop {
        if done() {
            return true;
        }
        if u64::from(ticks().wrapping_sub(start)) > limit {
            return done();
        }
        core::hint::spin_loop();
    }
}
