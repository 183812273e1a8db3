//! Process start to the first byte of a bare-metal guest, and to exit: the VMM beside the floor of
//! bare KVM ioctls, measured in one run. Any KVM does, software-only included.
//!
//! `cargo bench -p fleetbox-benches --bench start`

use std::process::Command;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use fleetbox_benches::{Programs, Times, time};

fn start(c: &mut Criterion) {
    let programs = Programs::build().expect("the programs are built");
    let payload = programs.payload("hello");
    let floor = || {
        let mut command = Command::new(programs.host("kvm-floor"));
        command.arg(&payload);
        command
    };
    let vmm = || {
        let mut command = Command::new(programs.host("fleetbox-vmm"));
        command
            .args(["run", "--memory", "128M", "--kernel"])
            .arg(&payload);
        command
    };
    type Pick = fn(Times) -> Duration;
    for (name, pick) in [
        ("first-byte", (|t| t.first_byte) as Pick),
        ("exit", |t| t.exit),
    ] {
        let mut group = c.benchmark_group(name);
        for (program, command) in [
            ("floor", &floor as &dyn Fn() -> Command),
            ("fleetbox-vmm", &vmm),
        ] {
            group.bench_function(program, |b| {
                b.iter_custom(|runs| {
                    (0..runs)
                        .map(|_| pick(time(&mut command()).expect("the guest runs")))
                        .sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, start);
criterion_main!(benches);
