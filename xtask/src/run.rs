//! Runs external commands with a time limit, and steps that print how long they took.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::bail;
use crate::error::{Context, Error, Result};

/// Maximum bytes of a failed command's output that an error quotes.
const TAIL: usize = 4000;

/// An external command. It runs in a separate process group, and the whole group is killed at the time limit.
#[derive(Debug, Clone)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, Option<OsString>)>,
    dir: Option<PathBuf>,
    input: Vec<u8>,
    limit: Duration,
}

impl Cmd {
    /// `program`, found through `PATH`, with a limit of 60 seconds.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            dir: None,
            input: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs
            .push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), None));
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Feeds `input` to the command's standard input, which is empty otherwise.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Sets the time limit in seconds.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// The command as text for a shell.
    pub fn display(&self) -> String {
        let mut line = self.program.to_string_lossy().into_owned();
        for arg in &self.args {
            line.push(' ');
            line.push_str(&shell_quote(&arg.to_string_lossy()));
        }
        if line.len() > 600 {
            line.truncate(line.floor_char_boundary(600));
            line.push_str(" ...");
        }
        line
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).process_group(0);
        for (name, value) in &self.envs {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        die_with_us(&mut command);
        command
    }

    /// Runs it without printing its output, and returns its standard output.
    ///
    /// # Errors
    /// It could not be started, exceeded its limit or failed. The error quotes the end of its standard error.
    pub fn output(self) -> Result<Vec<u8>> {
        let (status, out, err) = self.capture()?;
        if !status.success() {
            let said = if err.iter().all(u8::is_ascii_whitespace) {
                &out
            } else {
                &err
            };
            bail!(
                "`{}` {}{}",
                self.display(),
                describe(status),
                quote_tail(said)
            );
        }
        Ok(out)
    }

    /// Like [`Cmd::output`], but returns text without surrounding white space.
    ///
    /// # Errors
    /// As [`Cmd::output`].
    pub fn text(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.output()?).trim().to_owned())
    }

    /// Runs it without printing its output.
    ///
    /// # Errors
    /// As [`Cmd::output`].
    pub fn run(self) -> Result<()> {
        self.output().map(drop)
    }

    /// True if it can be started and succeeds.
    pub fn succeeds(self) -> bool {
        self.output().is_ok()
    }

    /// Runs it with this process's standard output and error, for commands whose progress is of interest.
    ///
    /// # Errors
    /// It could not be started, exceeded its limit or failed.
    pub fn passthrough(self) -> Result<()> {
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .spawn()
            .context(|| self.unstartable())?;
        let status =
            wait_limit(&mut child, self.limit).context(|| format!("`{}`", self.display()))?;
        if !status.success() {
            bail!("`{}` {}", self.display(), describe(status));
        }
        Ok(())
    }

    /// Like [`Cmd::passthrough`], but the error quotes the end of the output, for commands with long output. All output
    /// goes to this process's standard error.
    ///
    /// # Errors
    /// As [`Cmd::passthrough`].
    pub fn echoed(self) -> Result<()> {
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| self.unstartable())?;
        let end = Arc::new(Mutex::new(Vec::new()));
        let streams = [
            child.stdout.take().map(|stream| echo(stream, end.clone())),
            child.stderr.take().map(|stream| echo(stream, end.clone())),
        ];
        let status = wait_limit(&mut child, self.limit);
        for stream in streams.into_iter().flatten() {
            let _ = stream.join();
        }
        let end = std::mem::take(&mut *end.lock().unwrap_or_else(PoisonError::into_inner));
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!(
                "`{}` {}{}",
                self.display(),
                describe(status),
                quote_tail(&end)
            ),
            Err(error) => bail!("`{}` {error}{}", self.display(), quote_tail(&end)),
        }
    }

    /// Runs it without printing its output, and returns its status, standard output and standard error, for any status.
    ///
    /// # Errors
    /// It could not be started, or exceeded its limit.
    pub fn capture(&self) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let mut child = self
            .command()
            .stdin(if self.input.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| self.unstartable())?;
        if let Some(mut stdin) = child.stdin.take() {
            let input = self.input.clone();
            // A command that does not read all of its input says so by its status.
            thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let out = drain(child.stdout.take());
        let err = drain(child.stderr.take());
        let status = wait_limit(&mut child, self.limit);
        let err = err.join().unwrap_or_default();
        let out = out.join().unwrap_or_default();
        let status = status
            .map_err(|e| Error::new(format!("`{}` {e}{}", self.display(), quote_tail(&err))))?;
        Ok((status, out, err))
    }

    fn unstartable(&self) -> String {
        format!("cannot start `{}`", self.display())
    }
}

/// Makes the kernel kill a child when the thread that starts it ends, so that an interrupted run leaves nothing behind.
/// So that thread must wait for the child.
pub(crate) fn die_with_us(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls that are async-signal-safe (prctl, getppid),
    // takes no lock and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

fn drain(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut buffer = Vec::new();
        if let Some(mut stream) = stream {
            // A read error ends the stream like its end does; the status tells the rest.
            let _ = stream.read_to_end(&mut buffer);
        }
        buffer
    })
}

/// Copies a stream to this process's standard error, and at least its last [`TAIL`] bytes to `end`.
fn echo(
    mut stream: impl Read + Send + 'static,
    end: Arc<Mutex<Vec<u8>>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let read = buffer.get(..count).unwrap_or_default();
            // The reader may be gone; the command continues anyway.
            let _ = std::io::stderr().write_all(read);
            let mut end = end.lock().unwrap_or_else(PoisonError::into_inner);
            end.extend_from_slice(read);
            let spare = end.len().saturating_sub(TAIL);
            if spare > TAIL {
                end.drain(..spare);
            }
        }
    })
}

/// Waits for a child that leads its own process group, and kills the group at the limit.
pub(crate) fn wait_limit(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().context(|| "cannot wait for it")? {
            return Ok(status);
        }
        if start.elapsed() >= limit {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = child.wait();
            bail!("did not end within {} s and was killed", limit.as_secs());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// "ended with status 3" or "was killed by signal 9".
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn quote_tail(bytes: &[u8]) -> String {
    let tail = tail(bytes, TAIL);
    if tail.is_empty() {
        String::new()
    } else {
        format!(":\n{tail}")
    }
}

/// The last `limit` bytes as text, from the start of a line if possible.
pub fn tail(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    if text.len() <= limit {
        return text.to_owned();
    }
    let cut = &text[text.ceil_char_boundary(text.len() - limit)..];
    cut.split_once('\n')
        .map_or(cut, |(_, rest)| rest)
        .to_owned()
}

/// Quotes a word for a POSIX shell, if it needs quoting.
pub fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs `work`, and prints how long it took.
///
/// # Errors
/// The error of `work`, with the step's name in front.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprintln!("  {name} ...");
    let result = work();
    let took = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("  {name}: {took:.1} s"),
        Err(_) => eprintln!("  {name}: failed after {took:.1} s"),
    }
    result.context(|| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_what_the_command_printed() {
        let out = Cmd::new("sh")
            .args(["-c", "cat; echo b"])
            .input("a\n")
            .text()
            .unwrap();
        assert_eq!(out, "a\nb");
    }

    #[test]
    fn a_failure_names_the_command_and_quotes_its_standard_error() {
        let error = Cmd::new("sh")
            .args(["-c", "echo broken >&2; exit 7"])
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains("sh -c 'echo broken >&2; exit 7'"), "{error}");
        assert!(
            error.contains("status 7") && error.ends_with("broken"),
            "{error}"
        );
    }

    #[test]
    fn an_echoed_failure_quotes_its_end_only() {
        let error = Cmd::new("sh")
            .args(["-c", "seq 1 9999; echo why >&2; exit 7"])
            .echoed()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("status 7") && error.contains("why"),
            "{error}"
        );
        assert!(error.len() < 2 * TAIL, "{error}");
        Cmd::new("true").echoed().unwrap();
    }

    #[test]
    fn the_limit_ends_the_whole_group() {
        let start = Instant::now();
        let mut cmd = Cmd::new("sh").args(["-c", "sleep 30 & sleep 30"]);
        cmd.limit = Duration::from_millis(200);
        let error = cmd.run().unwrap_err().to_string();
        assert!(error.contains("was killed"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn quoting_survives_a_shell() {
        for word in ["", "plain", "two words", "it's", "$HOME;`id`", "a\nb"] {
            let out = Cmd::new("sh")
                .args(["-c", &format!("printf %s {}", shell_quote(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), word);
        }
    }

    #[test]
    fn tail_starts_at_a_line() {
        assert_eq!(tail(b"one\ntwo\nthree\n", 8), "three");
        assert_eq!(tail(b"one\n", 8), "one");
    }
}
