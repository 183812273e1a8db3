//! A command that runs in the guest.

use std::io::{self, Read, Write};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{run, runtime};
use crate::error::Result;
use crate::ssh::{self, ExitStatus, Output, SshError};

/// Standard input of a [`Child`]. Dropping it sends end of file.
///
/// ```no_run
/// # fn example(vm: fleetbox::blocking::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::Write;
///
/// let mut child = vm.ssh_spawn("sudo tee /etc/motd")?;
/// if let Some(mut stdin) = child.stdin.take() {
///     writeln!(stdin, "welcome")?;
/// } // dropped: the command reads its end
/// assert!(child.wait()?.success());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Stdin(ssh::Stdin);

/// Standard output of a [`Child`]. Dropping it discards what the command writes.
///
/// ```no_run
/// # fn example(vm: fleetbox::blocking::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::{BufRead, BufReader};
///
/// let mut child = vm.ssh_spawn("journalctl --follow --no-tail")?;
/// if let Some(stdout) = child.stdout.take() {
///     for line in BufReader::new(stdout).lines().take(10) {
///         println!("{}", line?);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Stdout(ssh::Stdout);

/// Standard error of a [`Child`]. Dropping it discards what the command writes.
///
/// ```no_run
/// # fn example(vm: fleetbox::blocking::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// let mut child = vm.ssh_spawn("make --silent")?;
/// child.stdout = None; // of no interest
/// if let Some(mut stderr) = child.stderr.take() {
///     std::io::copy(&mut stderr, &mut std::io::stderr())?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Stderr(ssh::Stderr);

impl Read for Stdout {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        wait(self.0.read(buffer))
    }
}

impl Read for Stderr {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        wait(self.0.read(buffer))
    }
}

impl Write for Stdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        wait(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        wait(self.0.flush())
    }
}

/// Runs `work` to its end, with an [`io::Error`] as its error.
fn wait<T: Send>(work: impl Future<Output = io::Result<T>> + Send) -> io::Result<T> {
    run(async { Ok::<_, SshError>(work.await) }).map_err(io::Error::other)?
}

/// [`crate::ssh::Child`] with methods and streams that block.
///
/// ```no_run
/// # fn example(vm: fleetbox::blocking::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::Write;
///
/// let mut child = vm.ssh_spawn("wc -l")?;
/// if let Some(mut stdin) = child.stdin.take() {
///     stdin.write_all(b"one\ntwo\n")?;
/// }
/// assert_eq!(child.output(1 << 20)?.stdout_text().trim(), "2");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Child {
    /// Standard input; `None` once taken.
    pub stdin: Option<Stdin>,
    /// Standard output; `None` once taken.
    pub stdout: Option<Stdout>,
    /// Standard error; `None` once taken.
    pub stderr: Option<Stderr>,
    /// `None` once its output was taken.
    child: Option<ssh::Child>,
}

impl Drop for Child {
    fn drop(&mut self) {
        // A child closes its channel on the runtime, so it must be dropped there.
        if let (Some(child), Ok(runtime)) = (self.child.take(), runtime()) {
            runtime.spawn(async move { drop(child) });
        }
    }
}

impl Child {
    pub(crate) fn new(mut child: ssh::Child) -> Self {
        Self {
            stdin: child.stdin.take().map(Stdin),
            stdout: child.stdout.take().map(Stdout),
            stderr: child.stderr.take().map(Stderr),
            child: Some(child),
        }
    }

    /// The command. It is gone once its output was taken.
    fn child(&mut self) -> Result<&mut ssh::Child, SshError> {
        self.child.as_mut().ok_or(SshError::Lost)
    }

    /// See [`crate::ssh::Child::resize`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn resize(&mut self, columns: u32, rows: u32) -> Result<()> {
        run(self.child()?.resize(columns, rows))
    }

    /// See [`crate::ssh::Child::signal`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        run(self.child()?.signal(name))
    }

    /// See [`crate::ssh::Child::wait`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        run(self.child()?.wait())
    }

    /// See [`crate::ssh::Child::output`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn output(mut self, limit: usize) -> Result<Output> {
        self.stdin = None;
        let mut child = self.child.take().ok_or(SshError::Lost)?;
        child.stdout = self.stdout.take().map(|stream| stream.0);
        child.stderr = self.stderr.take().map(|stream| stream.0);
        run(child.output(limit))
    }
}
