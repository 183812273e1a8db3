//! What can go wrong with a work tree.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::store::StoreError;
use crate::util::task::ShuttingDown;

/// Why a work tree could not be shipped or fetched.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::workspace::{Tree, WorkspaceError};
///
/// match Tree::open("/nowhere").await {
///     Err(WorkspaceError::NoGit(_)) => println!("skipped: no git"),
///     other => println!("{:?}", other?),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkspaceError {
    /// The VM.
    #[error(transparent)]
    Vm(#[from] Error),
    /// The host has no git.
    #[error("cannot run git: {0}; install git to ship work trees")]
    NoGit(#[source] io::Error),
    /// Git refused.
    #[error("git cannot {what} in {}: {why}", tree.display())]
    Git {
        /// What was tried.
        what: &'static str,
        /// The work tree.
        tree: PathBuf,
        /// What git wrote.
        why: String,
    },
    /// A file of the tree cannot be read, or a temporary one not be written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file name that an archive cannot carry.
    #[error("cannot ship {}: {why}", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What the guest sent is no archive of a work tree.
    #[error("cannot use the work tree that {name} sent: {why}")]
    Archive {
        /// The VM.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The VM has no workspace.
    #[error(
        "{name} has no workspace; `fleetbox ship {name} PATH` gives it one, `fleetbox run PATH` makes a VM with one"
    )]
    None {
        /// The VM.
        name: String,
    },
}

impl WorkspaceError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<StoreError> for WorkspaceError {
    fn from(error: StoreError) -> Self {
        Self::Vm(error.into())
    }
}

impl From<ShuttingDown> for WorkspaceError {
    fn from(error: ShuttingDown) -> Self {
        Self::Vm(error.into())
    }
}

impl From<WorkspaceError> for Error {
    fn from(error: WorkspaceError) -> Self {
        match error {
            WorkspaceError::Vm(error) => error,
            error => Self::Workspace(Box::new(error)),
        }
    }
}
