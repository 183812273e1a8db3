//! `ssh` and `dial`: standard streams connected to the guest.

use std::io::{self, IsTerminal as _};

use fleetbox::names::Reference;
use fleetbox::ssh::{Child, PtyRequest};
use fleetbox::{Error, ExitStatus, Result, Vm};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Ssh;
use crate::exit::GUEST_FAILURE;
use crate::output::{Context, complain};
use crate::terminal::{self, RawMode};

/// The command of a log-in without a terminal.
const SHELL: &str = "exec \"${SHELL:-/bin/sh}\" -l";

pub(crate) async fn run(context: &Context, ssh: Ssh) -> Result<u8> {
    let vm = context.fleet().open(ssh.name.as_str()).await?;
    let command = (!ssh.command.is_empty()).then(|| ssh.command.join(" "));
    pass_through(&vm, command.as_deref(), ssh.tty).await
}

/// Runs a command line, or the login shell, with this process's standard streams. The status is
/// the command's.
pub(crate) async fn pass_through(vm: &Vm, command: Option<&str>, tty: bool) -> Result<u8> {
    let wants_terminal = tty || (command.is_none() && io::stdin().is_terminal());
    let status = if wants_terminal {
        on_terminal(vm, command).await?
    } else {
        on_pipes(vm.ssh_spawn(command.unwrap_or(SHELL)).await?).await?
    };
    Ok(match status {
        ExitStatus::Code(code) => u8::try_from(code).unwrap_or(GUEST_FAILURE),
        killed => {
            complain(format_args!("the command was {killed}"));
            GUEST_FAILURE
        }
    })
}

async fn on_pipes(mut child: Child) -> Result<ExitStatus> {
    let input = child.stdin.take();
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let feeding = tokio::spawn(async move {
        if let Some(mut input) = input {
            // Fails when the command ends without reading all of it.
            let _ = copy(&mut tokio::io::stdin(), &mut input).await;
            let _ = input.shutdown().await;
        }
    });
    tokio::join!(
        pass(output, tokio::io::stdout()),
        pass(errors, tokio::io::stderr())
    );
    let status = child.wait().await;
    feeding.abort();
    Ok(status?)
}

async fn on_terminal(vm: &Vm, command: Option<&str>) -> Result<ExitStatus> {
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
    let mut passing = std::pin::pin!(pass(output, tokio::io::stdout()));
    loop {
        tokio::select! {
            () = &mut passing => break,
            Some(()) = resized.recv() => {
                let (columns, rows) = terminal::size();
                // The next read fails if the connection is lost.
                let _ = child.resize(columns, rows).await;
            }
        }
    }
    let status = child.wait().await;
    feeding.abort();
    drop(raw);
    Ok(status?)
}

/// Copies until either side is closed.
async fn pass(from: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) {
    if let Some(mut from) = from {
        let _ = copy(&mut from, &mut to).await;
        let _ = to.flush().await;
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
    let mut output = tokio::io::stdout();
    let received = copy(&mut read, &mut output).await;
    let _ = output.flush().await;
    sending.abort();
    match received {
        // The reader of standard output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        received => received
            .map(|_| 0)
            .map_err(failed("receive data from the guest")),
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, source }
}
