//! The fuzz targets: functions that take any bytes, and panic if a parser does what it must not do.
//!
//! `cargo xtask fuzz TARGET` runs one under libFuzzer (`fuzz/fuzz_targets` has its entry), which looks for bytes that
//! reach new code. The tests of this package run all of them on the inputs in `fuzz/corpus`, without libFuzzer.
//!
//! A new target is a module here with a function `run`, its name in the list below, a file in `fuzz/fuzz_targets` with
//! its entry in `fuzz/Cargo.toml`, and at least one input in `fuzz/corpus/NAME`.

mod memory;

/// Declares the modules of the targets, and lists them.
macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* pub mod $name;)*

        /// All targets.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name::run }),*];
    };
}

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is also that of its module, its binary and the directory of its inputs.
    pub name: &'static str,
    /// Tries one input.
    ///
    /// # Panics
    /// The input has found a fault.
    pub run: fn(&[u8]),
}

targets! {
    boot_plan
    grub
    qcow2
    switch
}
