//! Devices of the PC that have no discovery of their own.

pub mod rtc;
pub mod serial;
