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
    Test(TestArgs),
    /// Write the listings of the public API in docs/api.
    Api,
    /// Record a session of the `fleetbox` program on the best KVM there is, and draw it as docs/session.svg.
    Picture(PictureArgs),
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
    /// Measure boot latency, throughput, or what a user's tests cost to build.
    Bench {
        /// `start`: process start to the first guest instruction, on this machine's KVM; `stock`: to the kernel's first
        /// line, on a KVM that runs stock kernels; `net`: TCP between guests and host, there too; `user`: building and
        /// starting a new crate with one `#[fleetbox::test]`.
        #[arg(value_parser = ["start", "stock", "net", "user"])]
        name: String,
        /// `user` only: measure this checkout too, in turn with the one at hand.
        #[arg(long, value_name = "DIR")]
        baseline: Option<PathBuf>,
        /// `user` only: how often each is measured.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
        runs: u8,
    },
    /// Run a command in an emulated host that has KVM.
    Emulate(EmulateArgs),
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Steps to run.
    steps: Vec<Step>,
    /// Only the end-to-end cases whose names contain this; with `--full`, only such cases of the full run.
    #[arg(long = "case", value_name = "PART")]
    cases: Vec<String>,
    /// Run every step, and what takes too long for them. A run that was interrupted goes on where it stopped.
    #[arg(long, conflicts_with = "steps")]
    full: bool,
    /// Forget what has passed already at this commit.
    #[arg(long, requires = "full")]
    restart: bool,
    /// Write the run into docs/testing.md when it is complete.
    #[arg(long, requires = "full")]
    record: bool,
    /// Only show the names of the full run's cases.
    #[arg(long, requires = "full")]
    list: bool,
}

#[derive(Debug, Args)]
struct PictureArgs {
    /// Draw a session that was recorded before, by `--save`, instead of recording one.
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    from: Option<PathBuf>,
    /// Keep the recording.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Where the picture goes.
    #[arg(long, value_name = "FILE", default_value = "docs/session.svg")]
    to: PathBuf,
    /// Run the session here and print the recording: what this program does in an emulated host.
    #[arg(long, hide = true, value_name = "IMAGE")]
    session: Option<PathBuf>,
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
        Task::Test(args) => {
            test(args)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Api => {
            eprintln!("  {}", xtask::check::api(true)?);
            Ok(ExitCode::SUCCESS)
        }
        Task::Picture(args) => {
            picture(args)?;
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
        Task::Bench {
            name,
            baseline,
            runs,
        } => {
            match name.as_str() {
                "user" => xtask::bench::user::run(baseline.as_deref(), runs)?,
                _ => xtask::bench::run(&name)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Emulate(args) => emulate(args),
    }
}

fn test(args: TestArgs) -> Result<()> {
    if !args.full {
        return xtask::test::run(&args.steps, &args.cases);
    }
    xtask::test::full::run(&xtask::test::full::Options {
        cases: args.cases,
        restart: args.restart,
        record: args.record,
        list: args.list,
    })
}

fn picture(args: PictureArgs) -> Result<()> {
    if let Some(image) = args.session {
        return xtask::picture::session(&image);
    }
    xtask::picture::run(args.from.as_deref(), args.save.as_deref(), &args.to)
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
