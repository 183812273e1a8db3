//! A git work tree of the host in a guest: shipped there, worked on there, and what was changed
//! fetched back as a patch.
//!
//! Trees travel as tar archives over SSH, so that a guest needs `tar` and nothing else; git runs on
//! the host only. Which tree a VM has is noted in `workspace.json` of its directory.

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

/// Name of the note in a VM's directory.
const NOTE: &str = "workspace.json";
/// Maximum bytes of that note, which lists the files.
const NOTE_LIMIT: u64 = 256 << 20;

/// Files that say that a tree's tools come from mise (<https://mise.jdx.dev>).
const MISE_FILES: [&str; 4] = [
    "mise.toml",
    ".mise.toml",
    ".tool-versions",
    ".config/mise.toml",
];

/// What of a work tree is shipped, and how.
///
/// ```
/// use fleetbox::workspace::{Selection, ShipOptions};
///
/// let options = ShipOptions { selection: Selection::WithUntracked, ..ShipOptions::default() };
/// assert_eq!(options.branch, None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShipOptions {
    /// Which files.
    pub selection: Selection,
    /// Name of the branch that the guest's repository is on; the host's if none is given.
    pub branch: Option<String>,
    /// What that branch begins at: this commit's files are shipped then, not those of the work
    /// tree.
    pub from: Option<String>,
}

impl Default for ShipOptions {
    /// The tracked files as they are in the work tree.
    fn default() -> Self {
        Self {
            selection: Selection::Tracked,
            branch: None,
            from: None,
        }
    }
}

/// A work tree that a VM has.
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
    /// The directory in the guest, in the user's home.
    pub directory: String,
    /// The commit that the guest's changes are told against; none in a repository without commits.
    pub commit: Option<String>,
    /// How it was shipped.
    pub options: ShipOptions,
    /// The tree's tools come from mise.
    pub mise: bool,
    /// What the host's files were when they were shipped: a sum over names, sizes and times.
    fingerprint: String,
    /// The files had changes that are in no commit.
    dirty: bool,
    /// What was shipped.
    files: Vec<String>,
}

impl Workspace {
    /// Ships a work tree to a guest, into a directory of the tree's name in the user's home. What
    /// is there already is overwritten; what an earlier shipment had and this has not is deleted.
    ///
    /// # Errors
    /// [`WorkspaceError`], or a guest that cannot be reached or written to.
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

    /// The work tree that a VM has, if it has one.
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
    /// Those of [`Fleet::find`], a damaged note, the file system.
    pub async fn of(fleet: &Fleet, name: &str) -> Result<Option<Self>, WorkspaceError> {
        let dir = fleet.find(name).await?;
        blocking(move || load(&dir)).await
    }

    /// Ships the host's tree again, as it is now. Changes that were made in the guest to files that
    /// are shipped are lost.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::{Fleet, workspace::Workspace};
    ///
    /// if let Some(workspace) = Workspace::of(&Fleet::new(), vm.name()).await? {
    ///     if let Some(what) = workspace.moved_on().await? {
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
    /// As [`Workspace::ship`].
    pub async fn sync(&self, vm: &Vm) -> Result<Self, WorkspaceError> {
        let tree = Tree::open(&self.host).await?;
        Self::ship(vm, &tree, &self.options).await
    }

    /// How the host's tree has moved on since it was shipped; `None` if it has not.
    ///
    /// # Errors
    /// [`WorkspaceError`] if the tree cannot be looked at.
    pub async fn moved_on(&self) -> Result<Option<String>, WorkspaceError> {
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
                    "it was at {} and is at {} now",
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

    /// What the guest has changed, as a patch against [`Workspace::commit`] that `git apply` takes.
    /// Files that git ignores are left out, and so are submodules. Changes that the host's files
    /// had when they were shipped are part of it.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm, workspace: fleetbox::workspace::Workspace) -> fleetbox::Result<()> {
    /// vm.ssh(&workspace.command(&["cargo".into(), "fmt".into()])).await?;
    /// let patch = workspace.diff(&vm).await?; // for `git apply`
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`WorkspaceError`], or a guest that cannot be reached or read.
    pub async fn diff(&self, vm: &Vm) -> Result<Vec<u8>, WorkspaceError> {
        patch::diff(self, vm).await
    }

    /// True if the host's files had changes that are in no commit when they were shipped.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// A command line for the guest's shell that runs a program in the workspace, through mise
    /// where the tree says so and the guest has it; without words, a shell of the user's.
    pub fn command(&self, words: &[String]) -> String {
        self.command_in(".", words)
    }

    /// As [`Workspace::command`], in a directory of the workspace.
    pub fn command_in(&self, directory: &str, words: &[String]) -> String {
        let mut enter = self.enter();
        // What is below the workspace is found from there, whatever its name begins with.
        if directory != "." {
            enter = format!("{enter} && cd -- {}", quote(&format!("./{directory}")));
        }
        let (plain, through_mise) = if words.is_empty() {
            // A login shell would put the system's directories before those of mise.
            let shell = "\"${SHELL:-/bin/sh}\"";
            (format!("{shell} -l"), shell.to_owned())
        } else {
            let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
            (words.join(" "), words.join(" "))
        };
        if !self.mise {
            return format!("{enter} && exec {plain}");
        }
        // The tree is the user's own, who ran this: mise need not ask whether it is trusted.
        format!(
            "{enter} && PATH=$PATH:$HOME/.local/bin && if command -v mise >/dev/null 2>&1; then \
             MISE_YES=1 MISE_TRUSTED_CONFIG_PATHS=\"$HOME\"/{} exec mise exec -- {through_mise}; else \
             echo 'fleetbox: this workspace declares its tools by mise, which the guest does not have; \
             docs/cli.md has user data that installs it' >&2; exec {plain}; fi",
            quote(&self.directory)
        )
    }

    /// The part of a command line that goes to the workspace.
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
