//! What the scripts of one boot cost: all files, however often they are read, are charged to the
//! disk's one budget, and to narrower bounds for scripts.

use std::cell::Cell;
use std::rc::Rc;

use crate::boot::budget::{Budget, Exceeded, Limit};

/// Maximum number of words, their pieces, and commands in all files together. Real configurations
/// have some thousand.
const MAX_PIECES: u32 = 250_000;
/// Memory that a piece costs besides its text: itself, the vector that it is in while that grows,
/// and the allocation of its text.
const PIECE: usize = 96;

/// Why a script is not parsed or run further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Spent {
    #[error("the configuration has more than {MAX_PIECES} words and commands in all its files")]
    Pieces,
    #[error(transparent)]
    Budget(#[from] Exceeded),
}

pub(super) struct Account {
    budget: Rc<Budget>,
    pieces: Cell<u32>,
}

impl Account {
    pub(super) fn new(budget: Rc<Budget>) -> Self {
        Self {
            budget,
            pieces: Cell::new(0),
        }
    }

    #[cfg(test)]
    pub(super) fn ample() -> Self {
        Self::new(Budget::ample())
    }

    pub(super) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    /// Charges a text that is going to be parsed.
    pub(super) fn parse(&self, bytes: usize) -> Result<(), Exceeded> {
        self.budget.charge(Limit::Parsed, bytes as u64)?;
        self.budget.work(bytes as u64)
    }

    /// Charges a piece of a script with `bytes` of text, before it is made.
    pub(super) fn piece(&self, bytes: usize) -> Result<(), Spent> {
        let pieces = self.pieces.get() + 1;
        if pieces > MAX_PIECES {
            return Err(Spent::Pieces);
        }
        self.pieces.set(pieces);
        self.budget.charge(Limit::Entries, 1)?;
        Ok(self.budget.keep(PIECE + bytes)?)
    }

    /// Charges memory that is kept.
    pub(super) fn keep(&self, bytes: usize) -> Result<(), Exceeded> {
        self.budget.keep(bytes)
    }
}
