//! Prints what a disk image boots, and how long it took to find out:
//!
//! ```sh
//! cargo run -p fleetbox-vmm --example boot-plan -- debian-12.qcow2
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use fleetbox_devices::block::{OpenOptions, open_disk};
use fleetbox_vmm::boot::{Limits, discover};

fn main() -> Result<(), Box<dyn Error>> {
    let image = std::env::args_os().nth(1).ok_or("usage: boot-plan IMAGE")?;
    let disk = open_disk(Path::new(&image), &OpenOptions::read_only())?;
    let started = Instant::now();
    let plan = discover(disk, &Limits::default())?;
    print!("{}", plan.describe());
    println!("read in  {} ms", started.elapsed().as_millis());
    Ok(())
}
