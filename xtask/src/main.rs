//! `cargo xtask`: see [`xtask`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use xtask::deps::{self, Need};
use xtask::emulate::{Emulation, GuestFile};
use xtask::error::{Error, Result};
use xtask::image::{Format, Image};
use xtask::serve::Server;
use xtask::test::Step;

/// Everything this repository does besides compiling.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check for the programs that the other tasks need and, as root on Debian, install what is missing.
    Setup,
    /// Build a disk image for tests, or find it in the cache, and print its path.
    Image {
        /// `debian-12` or `tiny`.
        #[arg(value_parser = ["debian-12", "tiny"])]
        name: String,
        /// `raw` or `qcow2`.
        #[arg(long, default_value = "raw", value_parser = ["raw", "qcow2"])]
        format: String,
    },
    /// Run the tests: all of them, or the steps that are named.
    Test {
        /// Steps to run.
        steps: Vec<Step>,
        /// Only the end-to-end cases whose names contain this.
        #[arg(long = "case", value_name = "PART")]
        cases: Vec<String>,
    },
    /// Serve a directory over HTTP on loopback, with ranges, until killed.
    Serve {
        /// The directory.
        dir: PathBuf,
        /// Port; 0 takes a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Show it: get an image, boot it on the best KVM there is, print the guest's `uname -a` and what each step took.
    Demo,
    /// Measure boot latency or throughput.
    Bench {
        /// `start`: process start to the first guest instruction, on this machine's KVM; `stock`: to the kernel's first
        /// line, on a KVM that runs stock kernels; `net`: TCP between guests and host, there too.
        #[arg(value_parser = ["start", "stock", "net"])]
        name: String,
    },
    /// Run a command in an emulated host that has KVM.
    Emulate(EmulateArgs),
}

#[derive(Debug, Args)]
struct EmulateArgs {
    /// CPUs of the host.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    cpus: u8,
    /// Memory of the host in MiB.
    #[arg(long, default_value_t = 3072, value_parser = clap::value_parser!(u32).range(256..=65536))]
    memory: u32,
    /// Put a file at hand, at the same path or at GUEST. Arguments that name files are at hand anyhow.
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    files: Vec<String>,
    /// Set an environment variable of the command.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Kill host and command after this many seconds.
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// Show the host's console on standard error.
    #[arg(long)]
    console: bool,
    /// The command and its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let start = Instant::now();
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            eprintln!("  failed after {:.1} s", start.elapsed().as_secs_f64());
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => {
            deps::ensure(&[Need::Images, Need::Emulator, Need::Guests])?;
            eprintln!("  everything is there");
            Ok(ExitCode::SUCCESS)
        }
        Task::Image { name, format } => image(&name, &format),
        Task::Test { steps, cases } => {
            xtask::test::run(&steps, &cases)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Serve { dir, port } => {
            let server = Server::start(&dir, port)?;
            println!("{}", server.url(""));
            loop {
                std::thread::park();
            }
        }
        Task::Demo => {
            xtask::demo::run()?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Bench { name } => {
            xtask::bench::run(&name)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Emulate(args) => emulate(args),
    }
}

fn image(name: &str, format: &str) -> Result<ExitCode> {
    let start = Instant::now();
    let image =
        Image::from_name(name).ok_or_else(|| Error::new(format!("there is no image {name}")))?;
    let path = image.build(if format == "qcow2" {
        Format::Qcow2
    } else {
        Format::Raw
    })?;
    println!("{}", path.display());
    eprintln!("  image {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn emulate(args: EmulateArgs) -> Result<ExitCode> {
    let mut emulation = Emulation::new(&args.command)?;
    emulation.cpus = args.cpus;
    emulation.memory = args.memory;
    emulation.timeout = Duration::from_secs(args.timeout);
    emulation.console = args.console;
    for spec in &args.files {
        // What is asked for by name goes before what is there by default.
        emulation.files.insert(0, GuestFile::parse(spec)?);
    }
    for pair in &args.env {
        let pair = pair
            .split_once('=')
            .ok_or_else(|| Error::new(format!("--env {pair}: not NAME=VALUE")))?;
        emulation.env.push((pair.0.to_owned(), pair.1.to_owned()));
    }
    let outcome = emulation.run()?;
    eprintln!(
        "  emulated host: {:.1} s, status {}",
        outcome.took.as_secs_f64(),
        outcome.status
    );
    Ok(ExitCode::from(u8::try_from(outcome.status).unwrap_or(255)))
}
