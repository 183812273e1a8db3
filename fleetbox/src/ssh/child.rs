//! A command that runs in the guest.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelWriteHalf, Sig};
use tokio::io::{
    self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf,
};
use tokio::task::JoinHandle;

use super::SshError;
use crate::util::readable::Text;
use crate::util::text::printable;

/// Bytes of a stream that are buffered here before the guest has to wait.
const PIPE: usize = 256 << 10;
/// `SSH_EXTENDED_DATA_STDERR` (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// How a command ended.
///
/// ```
/// use fleetbox::ExitStatus;
///
/// assert!(ExitStatus::Code(0).success());
/// assert_eq!(ExitStatus::Code(42).code(), Some(42));
/// let killed = ExitStatus::Signal { name: "KILL".to_owned(), core_dumped: false };
/// assert_eq!(killed.code(), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It exited with this code; 0 means success.
    Code(u32),
    /// It was killed by a signal.
    Signal {
        /// The signal's name without `SIG`, such as `KILL`.
        name: String,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// True if the exit code is 0.
    pub fn success(&self) -> bool {
        matches!(self, Self::Code(0))
    }

    /// The exit code, or `None` for a command that was killed.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Code(code) => Some(*code),
            Self::Signal { .. } => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal { name, core_dumped } => {
                write!(f, "killed by SIG{name}")?;
                f.write_str(if *core_dumped { " (core dumped)" } else { "" })
            }
        }
    }
}

/// The output of a command, and how it ended. Its `Debug` shows text, of long output the beginning and the end.
///
/// ```
/// use fleetbox::{ExitStatus, Output};
///
/// let out = Output { stdout: b"6.1.0\n".to_vec(), stderr: Vec::new(), status: ExitStatus::Code(0) };
/// assert!(out.success());
/// assert_eq!(out.stdout_text().trim(), "6.1.0");
/// assert!(out.stderr_text().is_empty());
/// assert!(out.success(), "{out:?}");
/// assert_eq!(format!("{out:?}"), r#"Output { status: exit status 0, stdout: "6.1.0\n", stderr: "" }"#);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Output {
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: ExitStatus,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("status", &format_args!("{}", self.status))
            .field("stdout", &Text(&self.stdout))
            .field("stderr", &Text(&self.stderr))
            .finish()
    }
}

impl Output {
    /// True if the exit code is 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Standard output as text. Invalid UTF-8 is replaced.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text. Invalid UTF-8 is replaced.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Standard input of a [`Child`]. Dropping it or shutting it down sends end of file.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use tokio::io::AsyncWriteExt;
///
/// let mut child = vm.ssh_spawn("sudo tee /etc/motd").await?;
/// if let Some(mut stdin) = child.stdin.take() {
///     stdin.write_all(b"welcome\n").await.ok();
/// } // dropped: the command reads its end
/// assert!(child.wait().await?.success());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Stdin(DuplexStream);

/// Standard output of a [`Child`]. Dropping it discards what the command writes.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use tokio::io::{AsyncBufReadExt, BufReader};
///
/// let mut child = vm.ssh_spawn("journalctl --follow --no-tail").await?;
/// if let Some(stdout) = child.stdout.take() {
///     let mut lines = BufReader::new(stdout).lines();
///     while let Ok(Some(line)) = lines.next_line().await {
///         println!("{line}");
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Stdout(DuplexStream);

/// Standard error of a [`Child`]. Dropping it discards what the command writes.
#[derive(Debug)]
pub struct Stderr(DuplexStream);

impl AsyncWrite for Stdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl AsyncRead for Stdout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncRead for Stderr {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

/// A running command. Take the streams that you need, and drop the others. An output stream that is
/// neither read nor dropped can block the command, as a full pipe would, and also the other
/// commands on the same connection.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::AsyncWriteExt;
///
/// let mut child = vm.ssh_spawn("wc -l").await?;
/// if let Some(mut stdin) = child.stdin.take() {
///     stdin.write_all(b"one\ntwo\n").await?;
///     stdin.shutdown().await?;
/// }
/// let out = child.output(1 << 20).await?;
/// assert_eq!(out.stdout_text().trim(), "2");
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
    control: Control,
    pump: AbortOnDrop<Result<ExitStatus, SshError>>,
}

/// Sends signals to a running command, and resizes its terminal.
#[derive(Debug, Clone)]
struct Control(Arc<ChannelWriteHalf<Msg>>);

#[derive(Debug)]
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Child {
    /// Closes the command's channel. A command on a terminal gets a hang-up. Another command ends
    /// when it next reads or writes its streams.
    fn drop(&mut self) {
        if self.pump.0.is_finished() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let write = Arc::clone(&self.control.0);
            runtime.spawn(async move {
                let _ = write.close().await;
            });
        }
    }
}

impl Child {
    /// Tells the guest the new size of the terminal, in characters.
    ///
    /// # Errors
    /// [`SshError::Lost`] if the connection has ended.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), SshError> {
        Ok(self.control.0.window_change(columns, rows, 0, 0).await?)
    }

    /// Sends a signal to the command. `name` is the signal's name without `SIG`. Not every server
    /// passes signals on.
    ///
    /// # Errors
    /// [`SshError::Lost`] if the connection has ended.
    pub async fn signal(&self, name: &str) -> Result<(), SshError> {
        let signal = match name {
            "HUP" => Sig::HUP,
            "INT" => Sig::INT,
            "KILL" => Sig::KILL,
            "QUIT" => Sig::QUIT,
            "TERM" => Sig::TERM,
            "USR1" => Sig::USR1,
            other => Sig::Custom(other.to_owned()),
        };
        Ok(self.control.0.signal(signal).await?)
    }

    /// Closes the streams that were not taken, and waits for the command to end. This is
    /// cancel-safe: it can be called again.
    ///
    /// # Errors
    /// [`SshError::Lost`] if the connection ends first.
    pub async fn wait(&mut self) -> Result<ExitStatus, SshError> {
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        match (&mut self.pump.0).await {
            Ok(status) => status,
            Err(_) => Err(SshError::Lost),
        }
    }

    /// Closes standard input, collects standard output and standard error, and waits for the
    /// command to end.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let child = vm.ssh_spawn("cat /var/log/syslog").await?;
    /// let log = child.output(1 << 20).await?; // no more than a mebibyte of it
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`SshError::Lost`] if the connection ends first; [`SshError::OutputTooLarge`] if either
    /// output exceeds `limit` bytes.
    pub async fn output(mut self, limit: usize) -> Result<Output, SshError> {
        self.stdin = None;
        let stdout = self.stdout.take();
        let stderr = self.stderr.take();
        let (stdout, stderr) = tokio::try_join!(
            collect(stdout.map(|s| s.0), limit),
            collect(stderr.map(|s| s.0), limit)
        )?;
        let status = self.wait().await?;
        Ok(Output {
            stdout,
            stderr,
            status,
        })
    }
}

async fn collect(stream: Option<DuplexStream>, limit: usize) -> Result<Vec<u8>, SshError> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // The pipe is within this process, so reading it cannot fail.
        let read = stream.take(limit as u64 + 1).read_to_end(&mut bytes).await;
        read.map_err(|_| SshError::Lost)?;
    }
    if bytes.len() > limit {
        return Err(SshError::OutputTooLarge { limit });
    }
    Ok(bytes)
}

/// Waits for the server's answer to a request on a channel that does not run a command yet.
pub(super) async fn confirm(
    channel: &mut Channel<Msg>,
    what: &'static str,
) -> Result<(), SshError> {
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok(()),
            Some(ChannelMsg::Failure | ChannelMsg::Close) => {
                return Err(SshError::Refused { what });
            }
            Some(_) => {}
            None => return Err(SshError::Lost),
        }
    }
}

/// Makes a [`Child`] from a channel on which a command was requested.
pub(super) async fn start(
    mut channel: Channel<Msg>,
    what: &'static str,
) -> Result<Child, SshError> {
    // A server answers before it sends the command's first byte (RFC 4254 section 5.4).
    confirm(&mut channel, what).await?;
    let (mut messages, write) = channel.split();
    let write = Arc::new(write);
    let (stdin, stdin_end) = io::duplex(PIPE);
    let (stdout, stdout_end) = io::duplex(PIPE);
    let (stderr, stderr_end) = io::duplex(PIPE);
    let input = AbortOnDrop(tokio::spawn(pump_stdin(stdin_end, Arc::clone(&write))));
    let control = Control(Arc::clone(&write));
    let pump = tokio::spawn(async move {
        let mut outputs = [Some(stdout_end), Some(stderr_end)];
        let mut status = None;
        while let Some(message) = messages.wait().await {
            match message {
                ChannelMsg::Data { data } => deliver(&mut outputs[0], &data).await,
                ChannelMsg::ExtendedData { data, ext: STDERR } => {
                    deliver(&mut outputs[1], &data).await;
                }
                ChannelMsg::Eof => outputs = [None, None],
                ChannelMsg::ExitStatus { exit_status } => {
                    status = Some(ExitStatus::Code(exit_status));
                }
                ChannelMsg::ExitSignal {
                    signal_name,
                    core_dumped,
                    ..
                } => {
                    status = Some(ExitStatus::Signal {
                        name: signal_text(&signal_name),
                        core_dumped,
                    });
                }
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        // The command does not read its input any more.
        drop(input);
        let _ = write.close().await;
        status.ok_or(SshError::Lost)
    });
    Ok(Child {
        stdin: Some(Stdin(stdin)),
        stdout: Some(Stdout(stdout)),
        stderr: Some(Stderr(stderr)),
        control,
        pump: AbortOnDrop(pump),
    })
}

/// Passes data to the reader of a stream, unless the reader was dropped.
async fn deliver(output: &mut Option<DuplexStream>, bytes: &[u8]) {
    if let Some(stream) = output
        && stream.write_all(bytes).await.is_err()
    {
        *output = None;
    }
}

async fn pump_stdin(mut input: DuplexStream, write: Arc<ChannelWriteHalf<Msg>>) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let n = match input.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        let bytes = buffer.get(..n).unwrap_or_default().to_vec();
        if write.data_bytes(bytes).await.is_err() {
            return;
        }
    }
    // The command ends with the connection.
    let _ = write.eof().await;
}

fn signal_text(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => printable(name.as_bytes()),
        other => format!("{other:?}"),
    }
}
