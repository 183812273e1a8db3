//! Makes the picture of a session in the README: runs the `fleetbox` program on a separate terminal, records its
//! output, and draws the recording.

mod svg;
mod terminal;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use serde::{Deserialize, Serialize};

use crate::cargo::executables;
use crate::deps::find;
use crate::error::{Context, Error, Result};
use crate::image::{Format, Image};
use crate::kvm::Kvm;
use crate::run::{Cmd, describe, die_with_us, wait_limit};
use crate::{bail, target_dir};

/// Columns and rows of the terminal.
const SIZE: (u16, u16) = (100, 40);

/// Time limit of one command in seconds. An emulated host needs minutes to boot a cluster.
const COMMAND_LIMIT: u64 = 1200;

/// The commands. `IMAGE` is the name of an image in the working directory.
const SESSION: &[&str] = &[
    "fleetbox doctor",
    "fleetbox up web --image IMAGE --memory 1G",
    "fleetbox ssh web -- uname -srm",
    "fleetbox up node -n 2 --image IMAGE --memory 512M",
    "fleetbox ssh node-1 -- ping -c 1 -q node-2",
    "fleetbox ls",
    "fleetbox rm --force web node",
];

/// Commands with their output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Recording {
    commands: Vec<Recorded>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Recorded {
    line: String,
    /// The output of the terminal, including escape sequences.
    output: String,
    seconds: f64,
}

/// Draws a session, which is recorded now or read from the file `from`. Saves the recording in `save`.
///
/// # Errors
/// A command of the session fails, or a file cannot be written.
pub fn run(from: Option<&Path>, save: Option<&Path>, to: &Path) -> Result<()> {
    let json = match from {
        Some(from) => fs::read(from).context(|| format!("cannot read {}", from.display()))?,
        None => record()?,
    };
    let recording: Recording =
        serde_json::from_slice(&json).context(|| "cannot read the recording")?;
    if let Some(save) = save {
        fs::write(save, &json).context(|| format!("cannot write {}", save.display()))?;
    }
    let commands = recording.commands.iter().map(|command| svg::Entry {
        line: command.line.clone(),
        screen: terminal::rows(&command.output, SIZE.0.into()),
        seconds: command.seconds,
    });
    let picture = svg::draw(&commands.collect::<Vec<_>>(), SIZE.0.into());
    fs::write(to, picture).context(|| format!("cannot write {}", to.display()))?;
    eprintln!("  {}", to.display());
    Ok(())
}

/// Runs the session on the best available KVM, and returns the recording as JSON.
fn record() -> Result<Vec<u8>> {
    let image = Image::Debian12.build(Format::Raw)?;
    let programs = executables(&["build", "-p", "fleetbox-cli", "--bin", "fleetbox"], "bin")?;
    if programs.is_empty() {
        bail!("cargo built no program `fleetbox`");
    }
    let own = std::env::current_exe().context(|| "cannot find this program")?;
    let kvm = Kvm::here();
    if kvm.runs_stock_kernels() {
        eprintln!("  on {kvm}");
        return to_json(&play(&image)?);
    }
    eprintln!("  in an emulated host, as this machine has {kvm}; this takes many minutes");
    Cmd::new(&own)
        .args(["emulate", "--memory", "6144", "--timeout", "3600", "--"])
        .arg(&own)
        .args(["picture", "--session", "/images/debian-12.raw"])
        .limit(4200)
        .output()
}

/// Runs the session on this machine, and prints the recording.
///
/// # Errors
/// A command of the session fails.
pub fn session(image: &Path) -> Result<()> {
    let json = to_json(&play(image)?)?;
    println!("{}", String::from_utf8_lossy(&json));
    Ok(())
}

fn to_json(recording: &Recording) -> Result<Vec<u8>> {
    serde_json::to_vec(recording).context(|| "cannot write the recording as JSON")
}

fn play(image: &Path) -> Result<Recording> {
    let dir = tempfile::tempdir().context(|| "cannot create a directory for the session")?;
    let name = "debian-12.raw";
    let image = fs::canonicalize(image).context(|| format!("cannot find {}", image.display()))?;
    std::os::unix::fs::symlink(&image, dir.path().join(name))
        .context(|| "cannot link the image")?;
    let mut commands = Vec::new();
    let mut failed = None;
    for line in SESSION {
        let line = line.replace("IMAGE", name);
        // What was started is removed in any case: the last command does it.
        if failed.is_some() && !line.starts_with("fleetbox rm") {
            continue;
        }
        match on_terminal(&line, dir.path()) {
            Ok(command) => commands.push(command),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(Recording { commands }),
    }
}

/// Runs a command line in `dir` with a terminal as its input and output.
fn on_terminal(line: &str, dir: &Path) -> Result<Recorded> {
    eprintln!("  $ {line}");
    let size = Winsize {
        ws_col: SIZE.0,
        ws_row: SIZE.1,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).context(|| "cannot open a terminal")?;
    let stdio = || -> Result<Stdio> {
        let slave = pty
            .slave
            .try_clone()
            .context(|| "cannot share the terminal")?;
        Ok(Stdio::from(slave))
    };
    // The emulated host has busybox only.
    let (shell, applet) = match find("sh") {
        Some(shell) => (shell, None),
        None => (PathBuf::from("busybox"), Some("sh")),
    };
    let mut command = Command::new(shell);
    command
        .args(applet)
        .args(["-c", line])
        .current_dir(dir)
        .env("PATH", path()?)
        .env("TERM", "xterm-256color")
        .env("FLEETBOX_HOME", dir.join("home"))
        .stdin(stdio()?)
        .stdout(stdio()?)
        .stderr(stdio()?);
    die_with_us(&mut command);
    let begin = Instant::now();
    let mut child = command
        .spawn()
        .context(|| format!("cannot start `{line}`"))?;
    // Only what the child holds of the terminal's other side keeps it open.
    drop(command);
    drop(pty.slave);
    let mut master = File::from(pty.master);
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        // A terminal ends with an error.
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            let _ = sender.send(buffer.get(..count).unwrap_or_default().to_vec());
        }
    });
    let status = wait_limit(&mut child, Duration::from_secs(COMMAND_LIMIT))
        .context(|| format!("`{line}`"))?;
    let seconds = begin.elapsed().as_secs_f64();
    // A process that the command has left behind may hold the terminal for as long as it runs.
    let mut output = Vec::new();
    while let Ok(bytes) = receiver.recv_timeout(Duration::from_millis(300)) {
        output.extend(bytes);
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    if !status.success() {
        return Err(Error::new(format!(
            "`{line}` {}:\n{output}",
            describe(status)
        )));
    }
    Ok(Recorded {
        line: line.to_owned(),
        output,
        seconds,
    })
}

/// `PATH` with this workspace's programs in front.
fn path() -> Result<std::ffi::OsString> {
    let build: PathBuf = target_dir().join("debug");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(build).chain(std::env::split_paths(&path)))
        .context(|| "cannot extend PATH")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_a_terminal_and_its_output_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let line = "test -t 0 && test -t 1 && test -t 2 && stty size && echo done";
        let recorded = on_terminal(line, dir.path()).unwrap();
        assert_eq!(recorded.output, "40 100\r\ndone\r\n");
        let error = on_terminal("echo why; exit 3", dir.path()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("status 3") && error.contains("why"),
            "{error}"
        );
    }

    #[test]
    fn a_recording_is_drawn_into_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let recording = Recording {
            commands: vec![Recorded {
                line: "fleetbox ls".into(),
                output: "\x1b[1mNAME\x1b[0m\r\nweb\r\n".into(),
                seconds: 0.1,
            }],
        };
        let (from, to) = (dir.path().join("r.json"), dir.path().join("r.svg"));
        fs::write(&from, to_json(&recording).unwrap()).unwrap();
        run(Some(&from), None, &to).unwrap();
        let svg = fs::read_to_string(&to).unwrap();
        assert!(
            svg.contains(">fleetbox ls<") && svg.contains(">web<"),
            "{svg}"
        );
    }
}
