//! The claim of a running VM's memory. It is for those who cannot see the VM's lock: other users, and processes with
//! other state directories.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BudgetError;
use super::queue::{Home, Want, text};
use super::shared::{self, Entry, Guard, Kind};

/// The memory of a VM that is about to run, and the queue to claim it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    queue: PathBuf,
    home: PathBuf,
    want: Want,
}

/// A published claim. Others see it for as long as a process has its file open.
#[derive(Debug)]
pub(crate) struct Held {
    entry: Entry,
    claim: Claim,
}

impl Claim {
    /// A claim for a VM of the state directory `home`.
    pub(crate) fn new(home: &Path, want: Want) -> Self {
        Self {
            queue: shared::path(home),
            home: home.to_owned(),
            want,
        }
    }

    /// Publishes the claim in a file, held by this process and those that inherit its descriptor.
    ///
    /// # Errors
    /// [`BudgetError::Queue`].
    pub(crate) fn hold(&self) -> Result<Held, BudgetError> {
        let home = Home::of(&self.home)?;
        let text = text(&self.queue, home, std::slice::from_ref(&self.want))?;
        let entry = Guard::enter(&self.queue)?.create(0, Kind::Running, &text)?;
        Ok(Held {
            entry,
            claim: self.clone(),
        })
    }
}

impl Held {
    /// Touches the file, so that it is not removed as an old one. If it was removed anyway, creates another one, which
    /// waits for the directory's lock.
    ///
    /// # Errors
    /// [`BudgetError::Queue`].
    pub(crate) fn refresh(&mut self) -> Result<(), BudgetError> {
        let queue = &self.claim.queue;
        if self.entry.is_in(queue) {
            return self.entry.touch().map_err(|source| BudgetError::Queue {
                path: queue.clone(),
                source,
            });
        }
        *self = self.claim.hold()?;
        Ok(())
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.entry.as_fd()
    }
}
