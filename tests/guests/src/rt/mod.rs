//! What every payload stands on.

pub mod apic;
pub mod interrupts;
pub mod pci;
pub mod port;
pub mod smp;
pub mod time;
pub mod virtio;

use core::fmt::{self, Write};

core::arch::global_asm!(include_str!("entry.s"));

/// The serial port as a writer.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            port::write8(0x3f8, byte);
        }
        Ok(())
    }
}

/// Prints a line to the serial port.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        let _ = core::fmt::Write::write_fmt(&mut $crate::Serial, format_args!("{}\n", format_args!($($arg)*)));
    }};
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAILED {info}");
    power_off()
}

/// Writes S5 and the enable bit to the sleep control register.
pub fn power_off() -> ! {
    port::write8(0x600, 5 << 2 | 1 << 5);
    halt()
}

/// Writes the reset register.
pub fn reset() -> ! {
    port::write8(0x602, 1);
    halt()
}

/// Stops this vCPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off, HLT only stops this vCPU.
        unsafe { core::arch::asm!("cli", "hlt") };
    }
}

unsafe extern "Rust" {
    /// The payload's main function; its argument is the command line.
    safe fn payload(command_line: &str);
}

/// Called by the entry code in long mode with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    interrupts::install();
    payload(command_line(start_info));
    power_off()
}

/// The command line from the PVH start info (offset 24: its address), or nothing.
fn command_line(start_info: u64) -> &'static str {
    if start_info == 0 {
        return "";
    }
    // SAFETY: the PVH protocol puts a start info of at least 56 bytes there, mapped one to one.
    let address = unsafe { ((start_info + 24) as *const u64).read() } as *const u8;
    if address.is_null() {
        return "";
    }
    let mut len = 0;
    loop {
        let at = address.wrapping_add(len);
        // SAFETY: the command line ends with a zero byte and is mapped one to one.
        if len == 4096 || unsafe { at.read() } == 0 {
            break;
        }
        len += 1;
    }
    // SAFETY: these bytes were read above, and nothing writes to them.
    let bytes = unsafe { core::slice::from_raw_parts(address, len) };
    core::str::from_utf8(bytes).unwrap_or("")
}
