//! The façade of [`crate::ssh::Child`].

use std::io::{self, Read, Write};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{run, runtime};
use crate::error::Result;
use crate::ssh::{self, SshError};
use crate::ssh::{ExitStatus, Output};

/// Most bytes of one read or write.
const CHUNK: usize = 256 << 10;

/// Standard input of a [`Child`]. Dropping it is end of file there.
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
pub struct Stdin(Option<ssh::Stdin>);

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
pub struct Stdout(Option<ssh::Stdout>);

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
pub struct Stderr(Option<ssh::Stderr>);

impl Read for Stdout {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read(&mut self.0, buffer)
    }
}

impl Read for Stderr {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read(&mut self.0, buffer)
    }
}

impl Write for Stdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..CHUNK).unwrap_or(bytes).to_vec();
        on_threads(&mut self.0, move |stdin| write(stdin, bytes).boxed())
    }

    fn flush(&mut self) -> io::Result<()> {
        on_threads(&mut self.0, |stdin| stdin.flush().boxed())
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: Vec<u8>) -> io::Result<usize> {
    to.write(&bytes).await
}

fn read<S>(from: &mut Option<S>, buffer: &mut [u8]) -> io::Result<usize>
where
    S: AsyncRead + Unpin + Send + 'static,
{
    let mut bytes = vec![0; buffer.len().min(CHUNK)];
    let bytes = on_threads(from, |from| {
        async move {
            let count = from.read(&mut bytes).await?;
            bytes.truncate(count);
            Ok(bytes)
        }
        .boxed()
    })?;
    for (to, byte) in buffer.iter_mut().zip(&bytes) {
        *to = *byte;
    }
    Ok(bytes.len())
}

/// Does `work` with a stream on the runtime's threads, which cannot borrow from the caller's.
fn on_threads<S, T>(
    stream: &mut Option<S>,
    work: impl for<'a> FnOnce(&'a mut S) -> BoxFuture<'a, io::Result<T>> + Send + 'static,
) -> io::Result<T>
where
    S: Send + 'static,
    T: Send + 'static,
{
    // It went with a panic.
    let mut taken = stream.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (taken, result) = run(async move {
        let result = work(&mut taken).await;
        Ok((taken, result))
    })
    .map_err(io::Error::other)?;
    *stream = Some(taken);
    result
}

/// As [`crate::ssh::Child`], with streams that block.
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
    /// `None` once it went with a panic.
    child: Option<ssh::Child>,
}

impl Drop for Child {
    fn drop(&mut self) {
        // It closes its channel on the runtime that it is dropped on.
        if let (Some(child), Ok(runtime)) = (self.child.take(), runtime()) {
            runtime.spawn(async move { drop(child) });
        }
    }
}

impl Child {
    pub(crate) fn new(mut child: ssh::Child) -> Self {
        Self {
            stdin: child.stdin.take().map(|stream| Stdin(Some(stream))),
            stdout: child.stdout.take().map(|stream| Stdout(Some(stream))),
            stderr: child.stderr.take().map(|stream| Stderr(Some(stream))),
            child: Some(child),
        }
    }

    fn with<T: Send + 'static>(
        &mut self,
        work: impl for<'a> FnOnce(&'a mut ssh::Child) -> BoxFuture<'a, Result<T, SshError>>
        + Send
        + 'static,
    ) -> Result<T> {
        let mut child = self.child.take().ok_or(SshError::Lost)?;
        let (child, result) = run(async move {
            let result = work(&mut child).await;
            Ok((child, result))
        })?;
        self.child = Some(child);
        Ok(result?)
    }

    /// As [`crate::ssh::Child::resize`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// # let pty = fleetbox::ssh::PtyRequest { term: "xterm".to_owned(), columns: 80, rows: 24 };
    /// let mut editor = vm.ssh_pty(&pty, Some("vi /etc/hosts"))?;
    /// editor.resize(132, 50)?; // the terminal it is shown on has grown
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn resize(&mut self, columns: u32, rows: u32) -> Result<()> {
        self.with(move |child| async move { child.resize(columns, rows).await }.boxed())
    }

    /// As [`crate::ssh::Child::signal`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let mut child = vm.ssh_spawn("exec sleep 1000")?;
    /// child.signal("TERM")?;
    /// assert!(!child.wait()?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.with(move |child| async move { child.signal(&name).await }.boxed())
    }

    /// As [`crate::ssh::Child::wait`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let mut child = vm.ssh_spawn("exit 42")?;
    /// assert_eq!(child.wait()?.code(), Some(42));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        self.with(|child| child.wait().boxed())
    }

    /// As [`crate::ssh::Child::output`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let child = vm.ssh_spawn("cat /var/log/syslog")?;
    /// let log = child.output(1 << 20)?; // no more than a mebibyte of it
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn output(mut self, limit: usize) -> Result<Output> {
        self.stdin = None;
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let mut child = self.child.take().ok_or(SshError::Lost)?;
        child.stdout = stdout.and_then(|stream| stream.0);
        child.stderr = stderr.and_then(|stream| stream.0);
        run(async move { Ok(child.output(limit).await?) })
    }
}
