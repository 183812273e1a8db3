//! Runs QEMU, relays the output of the host's ports, and makes sure that no QEMU is left behind.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Emulation;
use super::disks::Disks;
use super::emulator::Emulator;
use super::host::Host;
use crate::bail;
use crate::error::{Context, Error, Result};
use crate::run::{describe, die_with_us, tail};

/// How a command in the emulated host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// From QEMU's start to the command's status.
    pub took: Duration,
}

/// The result of an emulated host.
pub(super) enum Ended {
    /// The command in it ended.
    Command(Outcome),
    /// Its own kernel panicked or reset the host. Has the end of its console.
    Panicked(String),
}

/// The fastest CPU model with SVM (`max` takes ten times longer to boot), without features that TCG lacks and would
/// warn about.
const CPU: &str =
    "EPYC,+svm,+npt,fxsr-opt=off,misalignsse=off,osvw=off,topoext=off,nrip-save=off,xsavec=off";

/// Maximum bytes of the console that are kept for an error.
const CONSOLE: usize = 8 << 10;

/// Ends QEMU when dropped, whatever the reason.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn run(
    emulation: &Emulation,
    emulator: &Emulator,
    host: &Host,
    disks: &Disks,
    initrd: &[u8],
) -> Result<Ended> {
    let start = Instant::now();
    let initrd = memory_file(initrd)?;
    let [console, out, err, status] = [channel()?, channel()?, channel()?, channel()?];
    let mut command = command_line(emulation, emulator, host, disks);
    command
        .arg("-initrd")
        .arg(format!("/proc/self/fd/{}", initrd.as_raw_fd()));
    for (name, (_, theirs)) in [
        ("console", &console),
        ("out", &out),
        ("err", &err),
        ("status", &status),
    ] {
        command
            .arg("-chardev")
            .arg(format!("socket,id={name},fd={}", theirs.as_raw_fd()));
    }
    command.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    for name in ["out", "err", "status"] {
        command
            .arg("-device")
            .arg(format!("virtserialport,chardev={name},name={name}"));
    }
    let inherited = [
        initrd.as_raw_fd(),
        disks.small.as_raw_fd(),
        console.1.as_raw_fd(),
        out.1.as_raw_fd(),
        err.1.as_raw_fd(),
        status.1.as_raw_fd(),
    ];
    let mut qemu = Kill(spawn(command, &inherited)?);
    // QEMU holds these now; ours would keep the channels open after its end.
    let [console, out, err, status] = [console, out, err, status].map(|(ours, _theirs)| ours);

    let log = Arc::new(Mutex::new(VecDeque::new()));
    let relays = [
        relay(console, Arc::clone(&log), emulation.console),
        copy(out, std::io::stdout()),
        copy(err, std::io::stderr()),
    ];
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        // Without a line the sender is dropped, which is the message.
        if BufReader::new(status)
            .read_line(&mut line)
            .is_ok_and(|n| n > 0)
        {
            let _ = sender.send(line);
        }
    });

    let received = receiver.recv_timeout(emulation.timeout);
    let took = start.elapsed();
    // Its end follows that of its channels.
    let mut ended = qemu.0.try_wait();
    if matches!(received, Err(mpsc::RecvTimeoutError::Disconnected)) {
        for _ in 0..100 {
            if !matches!(ended, Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
            ended = qemu.0.try_wait();
        }
    }
    drop(qemu);
    // What the command wrote before its status has left the host, and ends with QEMU's end of the channel.
    for relay in relays {
        let _ = relay.join();
    }
    let console = || {
        let log = log
            .lock()
            .map(|l| l.iter().copied().collect::<Vec<u8>>())
            .unwrap_or_default();
        let text = tail(&log, CONSOLE);
        if text.is_empty() {
            "its console is empty".to_owned()
        } else {
            format!("the end of its console:\n{text}")
        }
    };
    match received {
        Ok(line) => {
            let status = line
                .trim()
                .strip_prefix("exit ")
                .and_then(|s| s.parse().ok());
            let status =
                status.ok_or_else(|| Error::new(format!("the emulated host reported {line:?}")))?;
            Ok(Ended::Command(Outcome { status, took }))
        }
        Err(mpsc::RecvTimeoutError::Timeout) => {
            bail!(
                "the command in the emulated host did not end within {} s; {}",
                emulation.timeout.as_secs(),
                console()
            )
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let how = match &ended {
                Ok(Some(status)) => describe(*status),
                _ => "closed its channels".to_owned(),
            };
            let reset = matches!(ended, Ok(Some(status)) if status.success());
            let console = console();
            // With `-no-reboot` QEMU ends, and calls it success, when the host resets itself, as by a triple fault.
            if reset || console.contains("Kernel panic - not syncing") {
                return Ok(Ended::Panicked(console));
            }
            bail!("QEMU {how} before the command left a status; {console}")
        }
    }
}

fn command_line(emulation: &Emulation, emulator: &Emulator, host: &Host, disks: &Disks) -> Command {
    let mut command = emulator.command();
    command
        .args([
            "-M",
            "q35",
            "-accel",
            "tcg,tb-size=1024,thread=multi",
            "-cpu",
            CPU,
        ])
        .args([
            "-smp",
            &emulation.cpus.to_string(),
            "-m",
            &emulation.memory.to_string(),
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ])
        .args([
            "-append",
            "console=ttyS0 panic=-1 quiet mitigations=off rdinit=/init",
        ])
        .arg("-kernel")
        .arg(&host.vmlinux);
    let small = PathBuf::from(format!("/proc/self/fd/{}", disks.small.as_raw_fd()));
    for disk in [&host.root, &small].into_iter().chain(&disks.large) {
        command.arg("-drive").arg(drive(disk));
    }
    command.args([
        "-nic",
        "user,model=virtio-net-pci",
        "-device",
        "virtio-rng-pci",
    ]);
    command
}

/// A disk whose file is never written to. Writes of the host go to a temporary file without a name.
fn drive(path: &Path) -> String {
    // QEMU splits options at commas; a doubled one is literal.
    let path = path.to_string_lossy().replace(',', ",,");
    format!("file={path},format=raw,if=virtio,snapshot=on,discard=unmap")
}

/// A connected pair: our end and the one that QEMU inherits.
fn channel() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair().context(|| "cannot make a socket pair")?;
    Ok((ours, theirs.into()))
}

/// A file in memory, without a name, that contains `content`.
fn memory_file(content: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create(c"initrd", MFdFlags::MFD_CLOEXEC)
        .context(|| "cannot make a file in memory")?;
    let mut file = File::from(fd);
    file.write_all(content)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .context(|| "cannot fill a file in memory")?;
    Ok(file.into())
}

/// Starts QEMU with the descriptors `inherited` open, to be killed when this thread ends.
fn spawn(mut command: Command, inherited: &[i32; 6]) -> Result<Child> {
    let inherited = *inherited;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0);
    die_with_us(&mut command);
    let before_exec = move || {
        for fd in inherited {
            // SAFETY: the parent keeps these descriptors open until `spawn` has returned, so they are open here.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes only system calls that are async-signal-safe (fcntl), takes no
    // lock and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
    command.spawn().context(|| "cannot start QEMU")
}

/// Copies a channel to a stream as data arrives.
fn copy(mut from: UnixStream, mut to: impl Write + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            // A reader that is gone (a closed pipe) does not end the command.
            let _ = to.write_all(&buffer[..n]).and_then(|()| to.flush());
        }
    })
}

/// Keeps the end of the console, and shows it if requested.
fn relay(
    mut from: UnixStream,
    log: Arc<Mutex<VecDeque<u8>>>,
    show: bool,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if show {
                let _ = std::io::stderr().write_all(&buffer[..n]);
            }
            if let Ok(mut log) = log.lock() {
                log.extend(&buffer[..n]);
                let excess = log.len().saturating_sub(CONSOLE);
                log.drain(..excess);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert!(drive(Path::new("/a,b")).starts_with("file=/a,,b,format=raw"));
    }

    #[test]
    fn a_memory_file_is_read_from_its_start() {
        let fd = memory_file(b"content").unwrap();
        let read = std::fs::read(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert_eq!(read, b"content");
    }

    #[test]
    fn a_killed_child_is_reaped() {
        let (ours, theirs) = channel().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60"]);
        let fd = theirs.as_raw_fd();
        let child = Kill(spawn(command, &[fd; 6]).unwrap());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.0.id()).unwrap());
        drop(theirs);
        drop(child);
        assert!(nix::sys::signal::kill(pid, None).is_err());
        drop(ours);
    }
}
