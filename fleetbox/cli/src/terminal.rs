//! The terminal of this process.

use std::io::{self, IsTerminal as _};

use crossterm::terminal;

/// Columns and rows.
pub(crate) fn size() -> (u32, u32) {
    let (columns, rows) = terminal::size().unwrap_or((80, 24));
    (columns.into(), rows.into())
}

/// The terminal in raw mode, until dropped.
pub(crate) struct RawMode;

impl RawMode {
    /// `None` if standard input is not a terminal.
    pub(crate) fn enter() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        terminal::enable_raw_mode().ok().map(|()| Self)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = terminal::disable_raw_mode();
    }
}
