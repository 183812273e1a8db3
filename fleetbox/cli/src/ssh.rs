//! `ssh` and `dial`: standard streams connected to the guest.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use fleetbox::names::Reference;
use fleetbox::ssh::{Child, PtyRequest};
use fleetbox::{Error, ExitStatus, Result, Vm};
use tokio::io::{AsyncRead, AsyncWriteExt as _, copy};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Ssh;
use crate::exit::GUEST_FAILURE;
use crate::output::{Context, complain};
use crate::stdout::{self, Stream};
use crate::terminal::{self, RawMode};

/// How long a command whose output is lost may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// The command of a log-in without a terminal.
const SHELL: &str = "exec \"${SHELL:-/bin/sh}\" -l";

pub(crate) async fn run(context: &Context, ssh: Ssh) -> Result<u8> {
    let vm = context.fleet().open(ssh.name.as_str()).await?;
    let command = (!ssh.command.is_empty()).then(|| ssh.command.join(" "));
    pass_through(&vm, command.as_deref(), ssh.tty).await
}

/// Runs a command line, or the login shell, with this process's standard streams. The status is
/// the command's. If its output cannot be written, it is stopped as SIGPIPE stops a program on this host: when it next
/// writes. One that writes nothing more runs to its end.
pub(crate) async fn pass_through(vm: &Vm, command: Option<&str>, tty: bool) -> Result<u8> {
    let wants_terminal = tty || (command.is_none() && io::stdin().is_terminal());
    let status = if wants_terminal {
        on_terminal(vm, command).await?
    } else {
        on_pipes(vm.ssh_spawn(command.unwrap_or(SHELL)).await?).await?
    };
    Ok(match status {
        None => GUEST_FAILURE,
        Some(ExitStatus::Code(code)) => u8::try_from(code).unwrap_or(GUEST_FAILURE),
        Some(killed) => {
            complain(format_args!("the command was {killed}"));
            GUEST_FAILURE
        }
    })
}

/// The status is `None` if output was lost.
async fn on_pipes(mut child: Child) -> Result<Option<ExitStatus>> {
    let input = child.stdin.take();
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let feeding = tokio::spawn(async move {
        if let Some(mut input) = input {
            // Fails when the command ends without reading all of it.
            let _ = copy(&mut tokio::io::stdin(), &mut input).await;
            let _ = input.shutdown().await;
        }
    });
    let passed = tokio::try_join!(pass(output, Stream::Output), pass(errors, Stream::Errors));
    let status = match passed {
        Ok(_) => child.wait().await.map(Some),
        Err(Lost) => {
            stop(child).await;
            Ok(None)
        }
    };
    feeding.abort();
    Ok(status?)
}

/// Stops a command that cannot write its output any more.
async fn stop(mut child: Child) {
    // A server that passes no signals on closes the command's pipes when the connection ends.
    let _ = child.signal("HUP").await;
    // Time to send that, and to hear that it has ended.
    let _ = tokio::time::timeout(GRACE, child.wait()).await;
}

async fn on_terminal(vm: &Vm, command: Option<&str>) -> Result<Option<ExitStatus>> {
    let (columns, rows) = terminal::size();
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned());
    let mut child = vm
        .ssh_pty(
            &PtyRequest {
                term,
                columns,
                rows,
            },
            command,
        )
        .await?;
    let input = child.stdin.take();
    let output = child.stdout.take();
    let mut resized =
        signal(SignalKind::window_change()).map_err(failed("watch the terminal's size"))?;
    let raw = RawMode::enter();
    let feeding = tokio::spawn(async move {
        if let Some(mut input) = input {
            let _ = copy(&mut tokio::io::stdin(), &mut input).await;
            let _ = input.shutdown().await;
        }
    });
    let mut passing = std::pin::pin!(pass(output, Stream::Output));
    let passed = loop {
        tokio::select! {
            passed = &mut passing => break passed,
            Some(()) = resized.recv() => {
                let (columns, rows) = terminal::size();
                // The next read fails if the connection is lost.
                let _ = child.resize(columns, rows).await;
            }
        }
    };
    let status = match passed {
        Ok(()) => child.wait().await.map(Some),
        Err(Lost) => {
            stop(child).await;
            Ok(None)
        }
    };
    feeding.abort();
    drop(raw);
    Ok(status?)
}

/// Output could not be written.
struct Lost;

/// Copies what a command writes, until its end.
async fn pass(from: Option<impl AsyncRead + Unpin>, to: Stream) -> Result<(), Lost> {
    let Some(from) = from else { return Ok(()) };
    match stdout::copy(from, to).await {
        Ok(false) => Err(Lost),
        // The stream is within this process, so reading it cannot fail.
        Ok(true) | Err(_) => Ok(()),
    }
}

pub(crate) async fn dial(context: &Context, name: &Reference, port: u16) -> Result<u8> {
    let vm = context.fleet().open(name.as_str()).await?;
    let (mut read, mut write) = tokio::io::split(vm.connect(port).await?);
    let sending = tokio::spawn(async move {
        let _ = copy(&mut tokio::io::stdin(), &mut write).await;
        // The guest may still send something.
        let _ = write.shutdown().await;
    });
    let received = tokio::select! {
        biased;
        received = stdout::copy(&mut read, Stream::Output) => received,
        () = stdout::closed() => Ok(false),
    };
    sending.abort();
    received
        .map(|_| 0)
        .map_err(failed("receive data from the guest"))
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, source }
}
