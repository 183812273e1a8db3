//! Prints what a disk image boots, and how long the host's part of a boot takes: finding the boot
//! entry on the disk, reading kernel and initrd, and loading them into guest memory. Needs no KVM.
//!
//! ```text
//! FLEETBOX_LOG=debug cargo run --release -p fleetbox-vmm --example boot_plan -- DISK [RUNS]
//! ```

use std::time::Instant;

use fleetbox_arch::x86_64::kernel::{self, LoadOptions, Source};
use fleetbox_arch::x86_64::layout;
use fleetbox_devices::block::{OpenOptions, open_disk};
use fleetbox_vmm::boot::{Limits, discover};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let image = arguments.next().ok_or("usage: boot_plan DISK [RUNS]")?;
    let runs: u32 = match arguments.next() {
        Some(text) => text.to_string_lossy().parse()?,
        None => 1,
    };
    if let Some(filter) = std::env::var_os("FLEETBOX_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter.to_string_lossy()))
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
            .with_writer(std::io::stderr)
            .init();
    }
    for run in 0..runs {
        let start = Instant::now();
        let disk = open_disk(image.as_ref(), &OpenOptions::read_only())?;
        let plan = discover(disk, &Limits::default())?;
        let discovered = start.elapsed();
        let memory = fleetbox_arch::allocate(&layout::memory_regions(1 << 30))?;
        let initrd = plan.initrd.as_deref().map(Source::Bytes);
        kernel::load(
            &memory,
            &Source::Bytes(&plan.kernel),
            initrd.as_ref(),
            &plan.cmdline,
            &LoadOptions::default(),
        )?;
        if run == 0 {
            print!("{}", plan.describe());
        }
        println!(
            "found and read in {:.1} ms, in guest memory after {:.1} ms",
            discovered.as_secs_f64() * 1e3,
            start.elapsed().as_secs_f64() * 1e3
        );
    }
    Ok(())
}
