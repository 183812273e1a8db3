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

/// The tasks of this repository besides compiling.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check for the programs that the other tasks need and, as root on Debian, install missing ones.
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
    /// Run all tests, or only the named steps.
    Test(TestArgs),
    /// Write the listings of the public API in docs/api.
    Api,
    /// Record a session of the `fleetbox` program on the best available KVM, and draw it as docs/session.svg.
    Picture(PictureArgs),
    /// Serve a directory over HTTP on loopback, with range requests, until killed.
    Serve {
        /// The directory.
        dir: PathBuf,
        /// Port; 0 chooses a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Show a demo: get an image, boot it on the best available KVM, and print the guest's `uname -a` and the time of
    /// each step.
    Demo,
    /// Measure boot latency, throughput, or the build time of a user's tests.
    Bench {
        /// `start`: process start to the first guest instruction, on this machine's KVM. `stock`: process start to the
        /// kernel's first line, on a KVM that runs stock kernels. `net`: TCP between guests and host, on such a KVM.
        /// `user`: building and starting a new crate with one `#[fleetbox::test]`.
        #[arg(value_parser = ["start", "stock", "net", "user"])]
        name: String,
        /// `user` only: also measure this other checkout, alternating with the current one.
        #[arg(long, value_name = "DIR")]
        baseline: Option<PathBuf>,
        /// `user` only: number of measurements of each checkout.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
        runs: u8,
    },
    /// Look for inputs that break parsers, with libFuzzer. Needs cargo-fuzz and a nightly compiler.
    Fuzz {
        /// The target; without it all of them, one after another.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Build the programs `fleetbox` and `fleetbox-vmm` as they are handed out: optimised, stripped, quick to start.
    Dist,
    /// Run a command in an emulated host that has KVM.
    Emulate(EmulateArgs),
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Steps to run.
    steps: Vec<Step>,
    /// Run only the end-to-end cases whose names contain this. With `--full`, run only such cases of the full run.
    #[arg(long = "case", value_name = "PART")]
    cases: Vec<String>,
    /// Run every step, and the cases that take too long for everyday use. An interrupted run continues where it
    /// stopped.
    #[arg(long, conflicts_with = "steps")]
    full: bool,
    /// Start over: forget the cases that have already passed at this commit.
    #[arg(long, requires = "full")]
    restart: bool,
    /// Record the run in docs/testing.md once it is complete.
    #[arg(long, requires = "full")]
    record: bool,
    /// Only list the names of the full run's cases.
    #[arg(long, requires = "full")]
    list: bool,
}

#[derive(Debug, Args)]
struct PictureArgs {
    /// Draw a session that was recorded with `--save`, instead of recording one.
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    from: Option<PathBuf>,
    /// Save the recording to this file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Output file of the picture.
    #[arg(long, value_name = "FILE", default_value = "docs/session.svg")]
    to: PathBuf,
    /// Run the session on this machine and print the recording. The emulated host uses this.
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
    /// Make a file available at the same path or at GUEST. Files named as arguments are always available.
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    files: Vec<String>,
    /// Set an environment variable of the command.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Kill the host and the command after this many seconds.
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
            eprintln!("  nothing is missing");
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
        Task::Fuzz { target, seconds } => {
            xtask::fuzz::run(target.as_deref(), seconds)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Dist => {
            for program in xtask::dist::run()? {
                println!("{}", program.display());
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
        Image::from_name(name).ok_or_else(|| Error::new(format!("unknown image {name}")))?;
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
            .ok_or_else(|| Error::new(format!("--env {pair}: write NAME=VALUE")))?;
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
