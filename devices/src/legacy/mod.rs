//! Legacy devices of the PC, which a guest cannot discover.

pub mod rtc;
pub mod serial;
