//! What the benches share: building the programs they time, and timing them from outside.

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// When a program's first byte of output came, and when it had ended, since it was started.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Process start to the first byte on standard output.
    pub first_byte: Duration,
    /// Process start to exit, reaped.
    pub exit: Duration,
}

/// Runs a program to its end and times it.
///
/// # Errors
/// It cannot be started, writes nothing, or fails.
pub fn time(command: &mut Command) -> Result<Times, Box<dyn Error>> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().ok_or("no standard output")?;
    let mut byte = [0];
    out.read_exact(&mut byte)?;
    let first_byte = start.elapsed();
    std::io::copy(&mut out, &mut std::io::sink())?;
    let status = child.wait()?;
    let exit = start.elapsed();
    if !status.success() {
        return Err(format!("{command:?} ended with {status}").into());
    }
    Ok(Times { first_byte, exit })
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

/// The programs under test, built for release by the cargo that runs the bench.
pub struct Programs {
    target: PathBuf,
}

impl Programs {
    /// Builds everything the benches start.
    ///
    /// # Errors
    /// The build fails.
    pub fn build() -> Result<Self, Box<dyn Error>> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .ok_or("the bench package is not in a workspace")?;
        for arguments in [
            "build --release -p fleetbox-vmm -p fleetbox-benches --features fleetbox-vmm/cli --bins",
            "build --release -p fleetbox-guests --bins --target x86_64-unknown-none",
        ] {
            let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
                .args(arguments.split(' '))
                .current_dir(workspace)
                .status()?;
            if !status.success() {
                return Err(format!("cargo {arguments} ended with {status}").into());
            }
        }
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| workspace.join("target"), PathBuf::from);
        Ok(Self { target })
    }

    /// A program of the host.
    pub fn host(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// A bare-metal payload.
    pub fn payload(&self, name: &str) -> PathBuf {
        self.target.join("x86_64-unknown-none/release").join(name)
    }
}
