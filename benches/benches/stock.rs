//! Phases of booting a disk image's own kernel: process start to the kernel's first line.
//!
//! Needs a KVM that runs stock kernels and an image in FLEETBOX_BENCH_IMAGE; without hardware KVM:
//! `cargo xtask bench stock`, which runs it in the emulated host.

use std::path::PathBuf;
use std::process::Command;

use criterion::{Criterion, criterion_group, criterion_main};
use fleetbox_benches::time_line;

fn stock(c: &mut Criterion) {
    let image = PathBuf::from(
        std::env::var_os("FLEETBOX_BENCH_IMAGE").expect("FLEETBOX_BENCH_IMAGE names a disk image"),
    );
    let vmm = std::env::var_os("FLEETBOX_BENCH_VMM").expect("FLEETBOX_BENCH_VMM names the VMM");
    let mut group = c.benchmark_group("stock-image");
    group.sample_size(10);
    for line in ["Linux version", "Run /init"] {
        group.bench_function(line, |b| {
            b.iter_custom(|runs| {
                (0..runs)
                    .map(|_| {
                        let mut command = Command::new(&vmm);
                        command
                            .args(["run", "--memory", "1G", "--image"])
                            .arg(&image);
                        time_line(&mut command, line).expect("the kernel says so")
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, stock);
criterion_main!(benches);
