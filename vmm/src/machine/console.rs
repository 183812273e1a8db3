//! The host side of the serial console. It passes output on, keeps its end, and detects a panic.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::panic::{ConsoleView, PanicText};
use crate::sync::lock;

/// Maximum bytes of output kept for error messages.
const TAIL: usize = 16 << 10;
/// Maximum bytes of a line that are searched for a panic message. The rest of a longer line is
/// skipped.
const LINE: usize = 512;

/// An event that the console has detected in the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// The first byte of this boot.
    FirstOutput,
    /// A line with which the Linux kernel announces a panic. It comes once until [`Console::forget_panic`].
    Panic,
}

/// The console's state, shared by the serial device, which writes, and the machine, which reads the
/// end.
#[derive(Clone)]
pub(super) struct Console(Arc<Mutex<State>>);

struct State {
    sink: Option<Box<dyn Write + Send>>,
    notify: Box<dyn Fn(Notice) + Send>,
    tail: VecDeque<u8>,
    line: Vec<u8>,
    quiet: bool,
    last_output: Instant,
    panic: Option<PanicText>,
}

impl Console {
    pub(super) fn new(
        sink: Option<Box<dyn Write + Send>>,
        notify: impl Fn(Notice) + Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(State {
            sink,
            notify: Box::new(notify),
            tail: VecDeque::new(),
            line: Vec::new(),
            quiet: true,
            last_output: Instant::now(),
            panic: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Starts a new boot, whose first byte is the next.
    pub(super) fn begin_boot(&self) {
        let mut state = self.state();
        state.quiet = true;
        state.line.clear();
        state.panic = None;
    }

    /// What the console says of a panic in this boot.
    pub(super) fn panic(&self) -> ConsoleView {
        let state = self.state();
        ConsoleView {
            text: state.panic.clone(),
            last_output: state.last_output,
        }
    }

    /// Forgets the announcement of a panic, so that another one is noticed again.
    pub(super) fn forget_panic(&self) {
        self.state().panic = None;
    }

    /// The last `lines` lines, without control characters other than tabs.
    pub(super) fn tail(&self, lines: usize) -> String {
        let mut state = self.state();
        let text = String::from_utf8_lossy(state.tail.make_contiguous());
        let text: Vec<String> = text
            .lines()
            .map(|line| {
                let line = strip_escapes(line);
                line.trim_end().to_owned()
            })
            .filter(|line| !line.is_empty())
            .collect();
        text[text.len().saturating_sub(lines)..].join("\n")
    }
}

/// Removes ANSI escape sequences and control characters from a line.
fn strip_escapes(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            if chars.next_if_eq(&'[').is_some() {
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            } else {
                chars.next();
            }
        } else if !c.is_control() || c == '\t' {
            out.push(c);
        }
    }
    out
}

/// What a line says of a panic.
#[derive(Debug, PartialEq, Eq)]
enum Announcement {
    Panic,
    /// Nothing more will come.
    End,
    /// The guest resets itself after so many seconds.
    Reset(u32),
}

/// Recognises the kernel's own messages, which are at the start of a line, after the time stamp and what else a console
/// puts there in brackets. Other programs usually mention a panic in other places.
fn announcement(line: &str) -> Option<Announcement> {
    let mut rest = line.trim_start();
    while let Some(stamped) = rest.strip_prefix('[') {
        let (stamp, after) = stamped.split_once(']')?;
        let mut stamp = stamp.chars();
        // A time, or who printed it: T1, C0.
        if !stamp.all(|c| c.is_ascii_digit() || matches!(c, '.' | ' ' | 'T' | 'C')) {
            return None;
        }
        rest = after.trim_start();
    }
    if rest.starts_with("Kernel panic - not syncing") {
        return Some(Announcement::Panic);
    }
    if rest.starts_with("---[ end Kernel panic - not syncing") {
        return Some(Announcement::End);
    }
    let seconds = rest.strip_prefix("Rebooting in ")?;
    let (seconds, _) = seconds.split_once(" seconds")?;
    seconds.parse().ok().map(Announcement::Reset)
}

impl State {
    /// Looks for a panic in the line that is complete now.
    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        match (announcement(&line), &mut self.panic) {
            (Some(Announcement::Panic), panic) => {
                let first = panic.is_none();
                *panic = Some(PanicText {
                    line: strip_escapes(line.trim()),
                    at: Instant::now(),
                    complete: false,
                    reset_in: None,
                });
                if first {
                    (self.notify)(Notice::Panic);
                }
            }
            (Some(Announcement::End), Some(panic)) => panic.complete = true,
            (Some(Announcement::Reset(seconds)), Some(panic)) => panic.reset_in = Some(seconds),
            _ => {}
        }
        self.line.clear();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let state = &mut *state;
        if state.quiet && !bytes.is_empty() {
            state.quiet = false;
            (state.notify)(Notice::FirstOutput);
        }
        state.last_output = Instant::now();
        let excess = (state.tail.len() + bytes.len()).saturating_sub(TAIL);
        state.tail.drain(..excess.min(state.tail.len()));
        state
            .tail
            .extend(&bytes[bytes.len().saturating_sub(TAIL)..]);
        for byte in bytes {
            if *byte == b'\n' {
                state.end_line();
            } else if state.line.len() < LINE {
                state.line.push(*byte);
            }
        }
        if let Some(sink) = &mut state.sink
            && let Err(error) = sink.write_all(bytes)
        {
            // A terminal that went away must not stop the guest; the tail goes on.
            tracing::warn!(%error, "can no longer write the serial console's output");
            state.sink = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.state().sink {
            Some(sink) => sink.flush(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (Console, Arc<Mutex<Vec<Notice>>>) {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let seen = notices.clone();
        let console = Console::new(None, move |n| seen.lock().unwrap().push(n));
        (console, notices)
    }

    #[test]
    fn the_tail_is_bounded_and_clean() {
        let (mut console, _) = console();
        for i in 0..10_000 {
            console
                .write_all(format!("\x1b[32mline {i}\x1b[0m\r\n").as_bytes())
                .unwrap();
        }
        assert_eq!(console.tail(2), "line 9998\nline 9999");
        assert!(console.state().tail.len() <= TAIL);
        console.write_all(&vec![b'x'; 3 * TAIL]).unwrap();
        assert_eq!(console.tail(1).len(), TAIL);
    }

    #[test]
    fn a_panic_is_noticed_once_and_only_from_the_kernel() {
        let (mut console, notices) = console();
        let text = b"login: echo Kernel panic - not syncing\r\n\
            [note] Kernel panic - not syncing\r\n\
            Rebooting in 10 seconds..\r\n\
            [    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n\
            [    1.6][    T1] Kernel panic - not syncing: again\r\n";
        for byte in text {
            console.write_all(&[*byte]).unwrap();
        }
        assert_eq!(
            *notices.lock().unwrap(),
            [Notice::FirstOutput, Notice::Panic]
        );
        let text = console.panic().text.unwrap();
        assert_eq!(
            text.line,
            "[    1.6][    T1] Kernel panic - not syncing: again"
        );
        assert_eq!((text.complete, text.reset_in), (false, None));
        console.forget_panic();
        console
            .write_all(b"Kernel panic - not syncing: third\n")
            .unwrap();
        assert_eq!(notices.lock().unwrap().len(), 3);
    }

    #[test]
    fn the_end_of_a_panic_and_an_announced_reset_are_noticed() {
        let (mut console, _) = console();
        console
            .write_all(b"[ 1.5] Kernel panic - not syncing: x\n[ 1.6] Rebooting in 30 seconds..\n")
            .unwrap();
        let text = console.panic().text.unwrap();
        assert_eq!((text.complete, text.reset_in), (false, Some(30)));
        console
            .write_all(b"[ 1.7] ---[ end Kernel panic - not syncing: x ]---\n")
            .unwrap();
        assert!(console.panic().text.unwrap().complete);
        console.begin_boot();
        assert_eq!(console.panic().text, None);
    }

    #[test]
    fn every_boot_has_its_first_output() {
        let (mut console, notices) = console();
        console.write_all(b"a").unwrap();
        console.begin_boot();
        console.write_all(b"bc").unwrap();
        assert_eq!(*notices.lock().unwrap(), vec![Notice::FirstOutput; 2]);
    }

    #[test]
    fn a_broken_sink_does_not_stop_the_guest() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut console = Console::new(Some(Box::new(Broken)), |_| {});
        console.write_all(b"still here").unwrap();
        assert_eq!(console.tail(1), "still here");
    }
}
