//! What a VM that runs says of its memory, to those who cannot look at its lock: other users, and
//! processes with other state directories.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BudgetError;
use super::queue::{Home, Want, text};
use super::shared::{self, Entry, Guard, Kind};

/// The memory of a VM that is about to run, and where to say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    queue: PathBuf,
    home: PathBuf,
    want: Want,
}

/// A claim that others see, for as long as a process has its file open.
#[derive(Debug)]
pub(crate) struct Held(Entry);

impl Claim {
    /// Of a VM of the state directory `home`.
    pub(crate) fn new(home: &Path, want: Want) -> Self {
        Self {
            queue: shared::path(home),
            home: home.to_owned(),
            want,
        }
    }

    /// Says it, in a file that this process holds, and those that inherit its descriptor.
    ///
    /// # Errors
    /// [`BudgetError::Queue`].
    pub(crate) fn hold(&self) -> Result<Held, BudgetError> {
        let home = Home::of(&self.home)?;
        let text = text(&self.queue, home, std::slice::from_ref(&self.want))?;
        let entry = Guard::enter(&self.queue)?.create(0, Kind::Running, &text)?;
        Ok(Held(entry))
    }
}

impl Held {
    /// To be called once in some hours, so that nobody takes the file for one that is forgotten.
    pub(crate) fn touch(&self) -> io::Result<()> {
        self.0.touch()
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
