//! Process start to the first byte of a bare-metal guest, and to exit: the VMM beside the floor of
//! bare KVM ioctls, and beside other VMMs that are installed. Then what a process of fleetbox takes to
//! its first own instruction. Any KVM does, software-only included.
//!
//! `cargo xtask bench start`. All programs run in turns, `FLEETBOX_BENCH_ROUNDS` times (200): on a machine
//! that does other work, only ratios of the smallest times mean anything.

use std::path::{Path, PathBuf};
use std::process::Command;

use fleetbox_benches::{Programs, Series, time};

struct Contender {
    name: &'static str,
    command: Box<dyn Fn() -> Command>,
    /// The exit status that it ends with.
    status: i32,
    first_byte: Series,
    exit: Series,
}

impl Contender {
    fn new(name: &'static str, status: i32, command: impl Fn() -> Command + 'static) -> Self {
        Self {
            name,
            command: Box::new(command),
            status,
            first_byte: Series::default(),
            exit: Series::default(),
        }
    }

    fn run(&mut self) {
        let times = time(&mut (self.command)(), self.status);
        let times = times.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        self.first_byte.add(times.first_byte);
        self.exit.add(times.exit);
    }
}

fn main() {
    let programs = Programs::build().expect("the programs are built");
    let rounds = std::env::var("FLEETBOX_BENCH_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(200);
    guests(&programs, rounds);
    processes(&programs, rounds);
}

/// A command of a program with arguments that come before the payload.
fn with_payload(
    program: PathBuf,
    arguments: &'static str,
    payload: &Path,
) -> impl Fn() -> Command + 'static {
    let payload = payload.to_owned();
    move || {
        let mut command = Command::new(&program);
        command.args(arguments.split_whitespace()).arg(&payload);
        command
    }
}

fn guests(programs: &Programs, rounds: u32) {
    const RUN: &str = "run --memory 128M --kernel";
    let payload = programs.payload("hello");
    let vmm = |name, program| Contender::new(name, 0, with_payload(program, RUN, &payload));
    let mut contenders = vec![
        Contender::new(
            "floor",
            0,
            with_payload(programs.installed("kvm-floor"), "", &payload),
        ),
        Contender::new(
            "floor, static",
            0,
            with_payload(programs.static_floor(), "", &payload),
        ),
        vmm(
            "fleetbox-vmm, xtask dist",
            programs.handed_out("fleetbox-vmm"),
        ),
        vmm(
            "fleetbox-vmm, cargo install",
            programs.installed("fleetbox-vmm"),
        ),
        Contender::new(
            "a user's test program",
            0,
            with_payload(programs.users(), "", &payload),
        ),
    ];
    if let Some(alioth) = installed("alioth") {
        let arguments = "boot --memory size=128M --cpu count=1 --pvh";
        contenders.push(Contender::new(
            "alioth",
            0,
            with_payload(alioth, arguments, &payload),
        ));
    }
    if let Some(qemu) = installed("qemu-system-x86_64") {
        // Its power-off register would be elsewhere. This device exits when anything is written to the port.
        let arguments = "-M microvm,accel=kvm,pit=off,pic=off,rtc=off,x-option-roms=off -m 128M -nodefaults \
                         -no-user-config -display none -serial stdio \
                         -device isa-debug-exit,iobase=0x600,iosize=1 -kernel";
        const WRITTEN: i32 = 0x34 << 1 | 1;
        contenders.push(Contender::new(
            "QEMU microvm",
            WRITTEN,
            with_payload(qemu, arguments, &payload),
        ));
    }
    interleave(&mut contenders, rounds);
    println!(
        "\nprocess start to the guest's first byte, and to exit, in ms: smallest, median, smallest by the floor's"
    );
    print_table(&contenders, true);
}

fn processes(programs: &Programs, rounds: u32) {
    // A role with a descriptor that is not open ends before `main`, as soon as the process knows its role.
    let role = |program: PathBuf| {
        move || {
            let mut command = Command::new(&program);
            command.env("FLEETBOX_PROCESS", "machine:200");
            command
        }
    };
    const USAGE: i32 = 64;
    let version = |program: PathBuf| {
        move || {
            let mut command = Command::new(&program);
            command.arg("version");
            command
        }
    };
    let mut contenders = vec![
        Contender::new(
            "fleetbox version, xtask dist",
            0,
            version(programs.handed_out("fleetbox")),
        ),
        Contender::new(
            "fleetbox version, cargo install",
            0,
            version(programs.installed("fleetbox")),
        ),
        Contender::new(
            "machine process, xtask dist",
            USAGE,
            role(programs.handed_out("fleetbox")),
        ),
        Contender::new(
            "machine process, cargo install",
            USAGE,
            role(programs.installed("fleetbox")),
        ),
        Contender::new(
            "machine process, a user's test program",
            USAGE,
            role(programs.users()),
        ),
    ];
    interleave(&mut contenders, rounds);
    println!("\nprocess start to exit, in ms: smallest, median, smallest by the first's");
    print_table(&contenders, false);
}

/// Runs all of them in turns.
fn interleave(contenders: &mut [Contender], rounds: u32) {
    for _ in 0..rounds {
        for contender in &mut *contenders {
            contender.run();
        }
    }
}

fn print_table(contenders: &[Contender], first_byte: bool) {
    let cells = |series: &Series, floor: &Series| {
        let (smallest, median) = (series.smallest(), series.median());
        format!(
            "{smallest:8.2} {median:8.2} {:6.2}",
            smallest / floor.smallest()
        )
    };
    let Some(floor) = contenders.first() else {
        return;
    };
    for contender in contenders {
        let exit = cells(&contender.exit, &floor.exit);
        if first_byte {
            let first = cells(&contender.first_byte, &floor.first_byte);
            println!("{:40} {first}  |{exit}", contender.name);
        } else {
            println!("{:40} {exit}", contender.name);
        }
    }
}

/// A program in `PATH`.
fn installed(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}
