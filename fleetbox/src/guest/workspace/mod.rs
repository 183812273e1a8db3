//! Git work trees in guests: copy a work tree of the host to a guest, work on it there, and fetch
//! the changes as a patch.
//!
//! Trees are sent as tar archives over SSH, so a guest needs nothing but `tar`. Git runs only on
//! the host. `workspace.json` in a VM's directory records which tree the VM has.

mod archive;
mod error;
mod git;
mod patch;
mod ship;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::store::{StoreError, VmDir};
use crate::util::fs::{read_limited, write_atomic};
use crate::util::task::blocking;
use crate::util::text::quote;
use crate::vm::Vm;
use crate::vm::fleet::Fleet;

pub use self::error::WorkspaceError;
pub use self::git::Tree;
pub use self::ship::Selection;

/// Name of the record in a VM's directory.
const NOTE: &str = "workspace.json";
/// Maximum bytes of that record, which lists the files.
const NOTE_LIMIT: u64 = 256 << 20;

/// Files that show that a tree gets its tools from mise (<https://mise.jdx.dev>).
const MISE_FILES: [&str; 4] = [
    "mise.toml",
    ".mise.toml",
    ".tool-versions",
    ".config/mise.toml",
];

/// Options for copying a work tree to a guest.
///
/// ```
/// use fleetbox::workspace::{Selection, ShipOptions};
///
/// let options = ShipOptions { selection: Selection::WithUntracked, ..ShipOptions::default() };
/// assert_eq!(options.branch, None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShipOptions {
    /// Which files to copy.
    pub selection: Selection,
    /// Name of the branch in the guest's repository. The default is the host's current branch.
    pub branch: Option<String>,
    /// The commit that the branch starts at. If given, the files of this commit are copied instead
    /// of those in the work tree.
    pub from: Option<String>,
}

impl Default for ShipOptions {
    /// The tracked files, as they are in the work tree.
    fn default() -> Self {
        Self {
            selection: Selection::Tracked,
            branch: None,
            from: None,
        }
    }
}

/// A work tree in a VM.
///
/// ```no_run
/// # async fn example(vm: &fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::workspace::{ShipOptions, Tree, Workspace};
///
/// let tree = Tree::open(".").await?;
/// let workspace = Workspace::ship(vm, &tree, &ShipOptions::default()).await?;
/// vm.ssh(&workspace.command(&["make".into(), "fmt".into()])).await?;
/// let patch = workspace.diff(vm).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// The top directory of the work tree on the host.
    pub host: PathBuf,
    /// The directory in the guest, relative to the user's home.
    pub directory: String,
    /// The commit that the guest's changes are compared with; `None` in a repository without
    /// commits.
    pub commit: Option<String>,
    /// The options it was copied with.
    pub options: ShipOptions,
    /// True if the tree gets its tools from mise.
    pub mise: bool,
    /// A checksum of names, sizes and times of the host's files when they were copied.
    fingerprint: String,
    /// True if there were uncommitted changes.
    dirty: bool,
    /// The files that were copied.
    files: Vec<String>,
}

impl Workspace {
    /// Copies a work tree to a guest, into a directory in the user's home that is named after the
    /// tree. Existing files are overwritten. Files of an earlier copy that are no longer in the
    /// tree are deleted.
    ///
    /// # Errors
    /// [`WorkspaceError`] if the tree cannot be read, or if the guest cannot be reached or written
    /// to.
    pub async fn ship(vm: &Vm, tree: &Tree, options: &ShipOptions) -> Result<Self, WorkspaceError> {
        let dir = vm.dir();
        let earlier = load(dir)?;
        let workspace = ship::ship(vm, tree, options, earlier.as_ref()).await?;
        let path = dir.paths().dir().join(NOTE);
        let text = serde_json::to_vec(&workspace)
            .map_err(|error| WorkspaceError::io("write", &path)(error.into()))?;
        write_atomic(&path, &text).map_err(WorkspaceError::io("write", &path))?;
        Ok(workspace)
    }

    /// The work tree of a VM, if it has one.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{Fleet, workspace::Workspace};
    ///
    /// match Workspace::of(&Fleet::new(), "web").await? {
    ///     Some(workspace) => println!("{}", workspace.host.display()),
    ///     None => println!("nothing was shipped to it"),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::find`], a damaged record, or an error of the file system.
    pub async fn of(fleet: &Fleet, name: &str) -> Result<Option<Self>, WorkspaceError> {
        let dir = fleet.find(name).await?;
        blocking(move || load(&dir)).await
    }

    /// Copies the host's tree again, as it is now. The guest's changes to copied files are lost.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::{Fleet, workspace::Workspace};
    ///
    /// if let Some(workspace) = Workspace::of(&Fleet::new(), vm.name()).await? {
    ///     if let Some(what) = workspace.host_changes().await? {
    ///         println!("shipping again: {what}");
    ///         workspace.sync(&vm).await?;
    ///     }
    ///     let patch = workspace.diff(&vm).await?;
    ///     std::fs::write("changes.patch", patch).ok();
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Workspace::ship`].
    pub async fn sync(&self, vm: &Vm) -> Result<Self, WorkspaceError> {
        let tree = Tree::open(&self.host).await?;
        Self::ship(vm, &tree, &self.options).await
    }

    /// How the host's tree has changed since it was copied; `None` if it has not changed.
    ///
    /// # Errors
    /// [`WorkspaceError`] if the tree cannot be read.
    pub async fn host_changes(&self) -> Result<Option<String>, WorkspaceError> {
        let tree = Tree::open(&self.host).await?;
        let before = self.clone();
        blocking(move || {
            let base = tree.commit(before.options.from.as_deref())?;
            if base != before.commit {
                let short = |commit: &Option<String>| match commit {
                    Some(commit) => commit.chars().take(12).collect(),
                    None => "no commit".to_owned(),
                };
                return Ok(Some(format!(
                    "it was at {} and is now at {}",
                    short(&before.commit),
                    short(&base)
                )));
            }
            if before.options.from.is_some() {
                return Ok(None);
            }
            let files = tree.files(before.options.selection)?;
            Ok(
                (ship::fingerprint(tree.root(), &files) != before.fingerprint)
                    .then(|| "files have changed".to_owned()),
            )
        })
        .await
    }

    /// The guest's changes, as a patch against [`Workspace::commit`] for `git apply`. The patch
    /// leaves out files that git ignores, and submodules. It includes the uncommitted changes that
    /// the host's files had when they were copied.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm, workspace: fleetbox::workspace::Workspace) -> fleetbox::Result<()> {
    /// vm.ssh(&workspace.command(&["cargo".into(), "fmt".into()])).await?;
    /// let patch = workspace.diff(&vm).await?; // for `git apply`
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`WorkspaceError`] if git fails or the guest's archive is invalid, or if the guest cannot be
    /// reached or read.
    pub async fn diff(&self, vm: &Vm) -> Result<Vec<u8>, WorkspaceError> {
        patch::diff(self, vm).await
    }

    /// True if the host's tree had uncommitted changes when it was copied.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// A command line for the guest's shell that runs a program in the workspace. It uses mise if
    /// the tree needs it and the guest has it. Without words, it starts the user's shell.
    pub fn command(&self, words: &[String]) -> String {
        self.command_in(".", words)
    }

    /// Like [`Workspace::command`], but in a directory of the workspace.
    pub fn command_in(&self, directory: &str, words: &[String]) -> String {
        let mut enter = self.enter();
        // `./` makes the path relative to the workspace, whatever character it begins with.
        if directory != "." {
            enter = format!("{enter} && cd -- {}", quote(&format!("./{directory}")));
        }
        let (plain, through_mise) = if words.is_empty() {
            // A login shell would put the system's directories in PATH before those of mise.
            let shell = "\"${SHELL:-/bin/sh}\"";
            (format!("{shell} -l"), shell.to_owned())
        } else {
            let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
            (words.join(" "), words.join(" "))
        };
        if !self.mise {
            return format!("{enter} && exec {plain}");
        }
        // The tree belongs to the user who runs this, so mise need not ask whether to trust it.
        format!(
            "{enter} && PATH=$PATH:$HOME/.local/bin && if command -v mise >/dev/null 2>&1; then \
             MISE_YES=1 MISE_TRUSTED_CONFIG_PATHS=\"$HOME\"/{} exec mise exec -- {through_mise}; else \
             echo 'fleetbox: this workspace gets its tools from mise, which the guest does not have; \
             docs/cli.md has user data that installs it' >&2; exec {plain}; fi",
            quote(&self.directory)
        )
    }

    /// The part of a command line that enters the workspace.
    fn enter(&self) -> String {
        format!("cd -- \"$HOME\"/{}", quote(&self.directory))
    }
}

fn load(dir: &VmDir) -> Result<Option<Workspace>, WorkspaceError> {
    let path = dir.paths().dir().join(NOTE);
    let content = match read_limited(&path, NOTE_LIMIT) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(WorkspaceError::io("read", &path)(error)),
    };
    serde_json::from_slice(&content).map(Some).map_err(|error| {
        StoreError::Damaged {
            path,
            why: error.to_string(),
        }
        .into()
    })
}

#[cfg(test)]
mod tests;
