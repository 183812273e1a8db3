//! What is worth a remark before a guest starts: options that are valid, and yet rarely what was meant.

use std::fs::File;

use fleetbox_arch::x86_64::bzimage::is_bzimage;
use fleetbox_arch::x86_64::kernel::Source;
use nix::sys::sysinfo::sysinfo;

use super::args::RunOptions;

/// The remarks, each a line without its end.
pub(super) fn remarks(options: &RunOptions, cmdline: Option<&str>) -> Vec<String> {
    let host = sysinfo().map_or(u64::MAX, |host| host.ram_total());
    let linux = options
        .kernel
        .as_ref()
        .and_then(|kernel| File::open(kernel).ok())
        .is_some_and(|kernel| is_bzimage(&Source::File(&kernel)));
    let silent = cmdline.filter(|_| linux).and_then(silent);
    too_much_memory(options.memory.0, host)
        .into_iter()
        .chain(silent)
        .collect()
}

fn too_much_memory(asked: u64, host: u64) -> Option<String> {
    (asked > host).then(|| {
        format!(
            "the guest may use {}, and this host has {}: if the guest uses more, the host kills it",
            human(asked),
            human(host)
        )
    })
}

/// A Linux kernel prints to the serial port only if it is told to.
fn silent(cmdline: &str) -> Option<String> {
    let told = ["console=", "earlyprintk", "earlycon"];
    let mut words = cmdline.split_ascii_whitespace();
    let heard = words.any(|word| told.iter().any(|told| word.starts_with(told)));
    (!heard).then(|| {
        "the kernel's command line names no console, so nothing will be seen: add `console=ttyS0`"
            .to_owned()
    })
}

fn human(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1u32 << 30);
    if gib >= 1.0 {
        format!("{gib:.1} GiB")
    } else {
        format!("{} MiB", bytes >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_the_host_has_is_worth_a_remark() {
        let remark = too_much_memory(900 << 30, 16 << 30).unwrap();
        assert!(
            remark.contains("900.0 GiB") && remark.contains("16.0 GiB"),
            "{remark}"
        );
        assert_eq!(too_much_memory(16 << 30, 16 << 30), None);
    }

    #[test]
    fn a_kernel_without_a_console_is_worth_a_remark() {
        for cmdline in ["", "root=/dev/vda1 quiet", "netconsole=x"] {
            assert!(silent(cmdline).is_some(), "{cmdline}");
        }
        for cmdline in ["console=ttyS0", "quiet earlyprintk=serial", "earlycon"] {
            assert_eq!(silent(cmdline), None, "{cmdline}");
        }
    }
}
