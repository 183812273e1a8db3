//! The errors of work trees.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::store::StoreError;
use crate::util::readable::readable_debug;
use crate::util::task::ShuttingDown;

/// Why a work tree could not be copied or its changes could not be fetched.
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
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum WorkspaceError {
    /// An operation on the VM failed.
    #[error(transparent)]
    Vm(#[from] Error),
    /// Git does not run on the host.
    #[error("cannot run git: {0}; install git to copy work trees")]
    NoGit(#[source] io::Error),
    /// Git failed.
    #[error("git cannot {what} in {}: {why}", tree.display())]
    Git {
        /// The operation.
        what: &'static str,
        /// The work tree.
        tree: PathBuf,
        /// Git's error message.
        why: String,
    },
    /// A file of the tree cannot be read, or a temporary file cannot be written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file cannot be put into an archive.
    #[error("cannot copy {}: {why}", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The guest sent an invalid archive.
    #[error("cannot use the work tree that {name} sent: {why}")]
    Archive {
        /// The VM.
        name: String,
        /// What is wrong with the archive.
        why: String,
    },
    /// The VM has no workspace.
    #[error(
        "{name} has no workspace; copy a work tree to it with `fleetbox ship {name} PATH`, or create a VM with one with `fleetbox run PATH`"
    )]
    None {
        /// The VM.
        name: String,
    },
}

readable_debug!(WorkspaceError);

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
