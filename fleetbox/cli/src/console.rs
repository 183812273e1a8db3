//! `console`: the serial console on this terminal.

use std::io::{self, IsTerminal as _};

use fleetbox::names::Reference;
use fleetbox::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::output::Context;
use crate::stdout;
use crate::terminal::RawMode;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

pub(crate) async fn run(context: &Context, name: &Reference) -> Result<u8> {
    let vm = context.fleet().open(name.as_str()).await?;
    let (output, input) = tokio::io::split(vm.console().await?);
    let terminal = io::stdin().is_terminal();
    if terminal {
        context.note(format_args!(
            "attached to the console of {name}; Ctrl-] detaches"
        ));
    }
    let raw = RawMode::enter();
    let show = async |bytes: &[u8]| stdout::send(bytes.to_vec()).await;
    let ended = tokio::select! {
        biased;
        ended = attach(output, input, tokio::io::stdin(), show, terminal) => ended,
        () = stdout::closed() => Ok(()),
    };
    drop(raw);
    if terminal {
        context.note("");
    }
    ended.map(|()| 0).map_err(|source| Error::Io {
        action: "read or write the console",
        source,
    })
}

/// Copies bytes until the VM stops, `show` cannot show them or, with `terminal`, Ctrl-] is typed.
/// Without a terminal it does not stop at the end of the input, because the output still matters.
async fn attach(
    mut output: impl AsyncRead + Unpin,
    mut input: impl AsyncWrite + Unpin,
    mut keys: impl AsyncRead + Unpin,
    mut show: impl AsyncFnMut(&[u8]) -> bool,
    terminal: bool,
) -> io::Result<()> {
    let showing = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let n = match output.read(&mut buffer).await? {
                0 => return Ok(()),
                n => n,
            };
            let bytes = buffer.get(..n).unwrap_or_default();
            // Bytes are passed on unchanged: the terminal interprets them.
            if !show(bytes).await {
                return Ok(());
            }
        }
    };
    let typing = async {
        let mut buffer = [0; 1024];
        loop {
            let n = match keys.read(&mut buffer).await {
                Ok(0) | Err(_) => return std::future::pending::<io::Result<()>>().await,
                Ok(n) => n,
            };
            let typed = buffer.get(..n).unwrap_or_default();
            let end = typed.iter().position(|key| terminal && *key == ESCAPE);
            let typed = typed.get(..end.unwrap_or(n)).unwrap_or_default();
            if input.write_all(typed).await.is_err() {
                // The other direction reports the end.
                return std::future::pending().await;
            }
            if end.is_some() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = showing => ended,
        left = typing => left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_typed_arrives_and_the_escape_leaves() {
        let (console, mut guest) = tokio::io::duplex(1024);
        let (output, input) = tokio::io::split(console);
        let mut screen = Vec::new();
        let keys = &b"root\r\x1dnot this"[..];
        let show = async |bytes: &[u8]| {
            screen.extend_from_slice(bytes);
            true
        };
        attach(output, input, keys, show, true).await.unwrap();
        let mut arrived = [0; 5];
        guest.read_exact(&mut arrived).await.unwrap();
        assert_eq!(&arrived, b"root\r");
    }

    #[tokio::test]
    async fn without_a_terminal_it_ends_with_the_vm() {
        let (console, mut guest) = tokio::io::duplex(1024);
        let (output, input) = tokio::io::split(console);
        guest.write_all(b"login: \x1b[0m").await.unwrap();
        let mut screen = Vec::new();
        let ended = async {
            let mut typed = [0; 2];
            guest.read_exact(&mut typed).await.unwrap();
            assert_eq!(&typed, b"a\x1d");
            drop(guest);
        };
        let show = async |bytes: &[u8]| {
            screen.extend_from_slice(bytes);
            true
        };
        let (attached, ()) = tokio::join!(attach(output, input, &b"a\x1d"[..], show, false), ended);
        attached.unwrap();
        assert_eq!(screen, b"login: \x1b[0m");
    }
}
