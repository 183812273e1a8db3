//! What the benches share: building the programs they time, and timing them from outside.

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// When a program's first byte of output came, and when it had ended, since it was started.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Process start to the first byte on standard output, or to exit if there was none.
    pub first_byte: Duration,
    /// Process start to exit, reaped.
    pub exit: Duration,
}

/// Runs a program to its end and times it. `status` is the exit status that it must have.
///
/// # Errors
/// It cannot be started, or fails.
pub fn time(command: &mut Command, status: i32) -> Result<Times, Box<dyn Error>> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().ok_or("no standard output")?;
    let mut byte = [0];
    let first = out.read(&mut byte)?;
    let first_byte = start.elapsed();
    std::io::copy(&mut out, &mut std::io::sink())?;
    let ended = child.wait()?;
    let exit = start.elapsed();
    if ended.code() != Some(status) {
        return Err(format!("{command:?} ended with {ended}").into());
    }
    Ok(Times {
        first_byte: if first == 0 { exit } else { first_byte },
        exit,
    })
}

/// The times of one program over all rounds.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<Duration>);

impl Series {
    /// Adds one time.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
        self.0.sort_unstable();
    }

    /// The smallest time, in milliseconds.
    pub fn smallest(&self) -> f64 {
        self.quantile(0)
    }

    /// The median, in milliseconds.
    pub fn median(&self) -> f64 {
        self.quantile(self.0.len() / 2)
    }

    fn quantile(&self, index: usize) -> f64 {
        self.0
            .get(index)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// Runs a program until a line of its output contains `text`, then kills it.
///
/// # Errors
/// It cannot be started, or ends before.
pub fn time_line(command: &mut Command, text: &str) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().ok_or("no standard output")?;
    let mut found = None;
    for line in BufReader::new(out).split(b'\n') {
        if String::from_utf8_lossy(&line?).contains(text) {
            found = Some(start.elapsed());
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    found.ok_or_else(|| format!("{command:?} ended without saying {text:?}").into())
}

/// The target of static programs. It is named when they are built, because proc macros of the host cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs under test, built by the cargo that runs the bench.
pub struct Programs {
    target: PathBuf,
}

impl Programs {
    /// Builds everything that the bench of the start runs.
    ///
    /// # Errors
    /// The build fails.
    pub fn build() -> Result<Self, Box<dyn Error>> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .ok_or("the bench package is not in a workspace")?;
        let cargo = |arguments: &str| -> Result<(), Box<dyn Error>> {
            let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
                .args(arguments.split(' '))
                .current_dir(workspace)
                .status()?;
            if !status.success() {
                return Err(format!("cargo {arguments} ended with {status}").into());
            }
            Ok(())
        };
        // As `cargo install` builds them.
        cargo(
            "build --release -p fleetbox-vmm -p fleetbox-cli -p fleetbox-benches --features fleetbox-vmm/cli --bins",
        )?;
        // As a user's tests are built.
        cargo("build -p fleetbox-benches --example user")?;
        cargo("build --release -p fleetbox-guests --bins --target x86_64-unknown-none")?;
        // As they are handed out.
        cargo("run --quiet --package xtask -- dist")?;
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| workspace.join("target"), PathBuf::from);
        Ok(Self { target })
    }

    /// A program as `cargo install` builds it.
    pub fn installed(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// A program as `cargo xtask dist` builds it.
    pub fn handed_out(&self, name: &str) -> PathBuf {
        self.target.join("dist").join(name)
    }

    /// A program as a user's tests are built: for debugging.
    pub fn users(&self) -> PathBuf {
        self.target.join("debug/examples/user")
    }

    /// The same floor as [`Programs::installed`] has, linked statically.
    pub fn static_floor(&self) -> PathBuf {
        self.target.join(TARGET).join("release/kvm-floor")
    }

    /// A bare-metal payload.
    pub fn payload(&self, name: &str) -> PathBuf {
        self.target.join("x86_64-unknown-none/release").join(name)
    }
}
