//! Reading a git work tree of the host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Selection, WorkspaceError};
use crate::util::task::blocking;

/// A git work tree on this host.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::workspace::{ShipOptions, Tree};
///
/// let tree = Tree::open(".").await?;
/// for path in tree.list(&ShipOptions::default()).await? {
///     println!("{}", tree.root().join(path).display());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Finds the work tree that contains `path`.
    ///
    /// # Errors
    /// [`WorkspaceError`] if `path` is not in a work tree, or git does not run.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, WorkspaceError> {
        let path = path.as_ref().to_owned();
        blocking(move || {
            if !path.is_dir() {
                let error = std::fs::read_dir(&path).err();
                let error = error.unwrap_or_else(|| std::io::ErrorKind::NotADirectory.into());
                return Err(WorkspaceError::io("copy", &path)(error));
            }
            let output = run(&path, "find a work tree", &["rev-parse", "--show-toplevel"])?;
            let root = PathBuf::from(OsStr::from_bytes(output.trim_ascii_end()));
            Ok(Self { root })
        })
        .await
    }

    /// A directory, which may be outside of git.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Its top directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The files that would be copied, relative to [`Tree::root`], sorted.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::workspace::{Selection, ShipOptions, Tree};
    ///
    /// let options = ShipOptions { selection: Selection::WithUntracked, ..ShipOptions::default() };
    /// println!("{} files", Tree::open(".").await?.list(&options).await?.len());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`WorkspaceError`] if git fails or a directory cannot be read.
    pub async fn list(&self, options: &super::ShipOptions) -> Result<Vec<PathBuf>, WorkspaceError> {
        let (tree, options) = (self.clone(), options.clone());
        blocking(move || tree.listed(&options)).await
    }

    /// Checks, without a guest, that the tree can be copied with these options: that the commit exists, the branch's
    /// name is valid, and all files have valid names and can be read. Call it before starting a VM for the tree, so
    /// that a problem shows up before the boot.
    ///
    /// # Errors
    /// [`WorkspaceError`] says what is wrong.
    pub async fn check(&self, options: &super::ShipOptions) -> Result<(), WorkspaceError> {
        let (tree, options) = (self.clone(), options.clone());
        blocking(move || super::ship::check(&tree, &options)).await
    }

    /// Like [`Tree::list`], but blocking.
    pub(super) fn listed(
        &self,
        options: &super::ShipOptions,
    ) -> Result<Vec<PathBuf>, WorkspaceError> {
        match self.commit(options.from.as_deref())? {
            Some(commit) if options.from.is_some() => {
                let args = ["ls-tree", "-r", "-z", "--name-only", "--full-tree", &commit];
                Ok(paths(&run(&self.root, "list a commit's files", &args)?))
            }
            _ => self.files(options.selection),
        }
    }

    /// The files that exist in the work tree.
    pub(super) fn files(&self, selection: Selection) -> Result<Vec<PathBuf>, WorkspaceError> {
        let list = |args: &[&str]| -> Result<_, WorkspaceError> {
            Ok(paths(&run(&self.root, "list files", args)?))
        };
        let mut files = match selection {
            Selection::Everything => return self.everything(),
            Selection::Tracked => Vec::new(),
            Selection::WithUntracked => {
                list(&["ls-files", "-z", "--others", "--exclude-standard"])?
            }
        };
        files.extend(list(&[
            "ls-files",
            "-z",
            "--cached",
            "--recurse-submodules",
        ])?);
        files.retain(|file| {
            std::fs::symlink_metadata(self.root.join(file))
                .is_ok_and(|metadata| metadata.is_file() || metadata.is_symlink())
        });
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// Everything in the directory, including git's own files.
    fn everything(&self) -> Result<Vec<PathBuf>, WorkspaceError> {
        let mut files = Vec::new();
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            let path = self.root.join(&dir);
            for entry in std::fs::read_dir(&path).map_err(WorkspaceError::io("list", &path))? {
                let entry = entry.map_err(WorkspaceError::io("list", &path))?;
                let kind = entry
                    .file_type()
                    .map_err(WorkspaceError::io("inspect", &entry.path()))?;
                let relative = dir.join(entry.file_name());
                if kind.is_dir() {
                    dirs.push(relative.clone());
                }
                // A `.git` file points to a directory that the guest does not have.
                let is_link = relative == Path::new(".git") && !kind.is_dir();
                if !is_link && (kind.is_dir() || kind.is_file() || kind.is_symlink()) {
                    files.push(relative);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// The commit that `reference` names, or the current commit; `None` in a repository without
    /// commits.
    pub(super) fn commit(&self, reference: Option<&str>) -> Result<Option<String>, WorkspaceError> {
        let wanted = format!("{}^{{commit}}", reference.unwrap_or("HEAD"));
        let args = [
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            &wanted,
        ];
        match run(&self.root, "find a commit", &args) {
            Ok(output) => Ok(Some(line(&output))),
            Err(WorkspaceError::Git { .. }) if reference.is_none() => Ok(None),
            Err(WorkspaceError::Git { tree, .. }) => Err(WorkspaceError::Git {
                what: "find the commit to copy",
                tree,
                why: format!("{} does not exist", reference.unwrap_or("HEAD")),
            }),
            Err(error) => Err(error),
        }
    }

    /// The current branch.
    pub(super) fn branch(&self) -> Option<String> {
        let args = ["symbolic-ref", "--quiet", "--short", "HEAD"];
        run(&self.root, "find the branch", &args)
            .ok()
            .map(|output| line(&output))
    }

    /// True if tracked files differ from the commit.
    pub(super) fn is_dirty(&self) -> Result<bool, WorkspaceError> {
        let args = ["status", "--porcelain", "--untracked-files=no"];
        Ok(!run(&self.root, "compare files", &args)?.is_empty())
    }

    /// Checks that a branch name is valid.
    pub(super) fn check_branch(&self, branch: &str) -> Result<(), WorkspaceError> {
        let args = ["check-ref-format", "--branch", branch];
        run(&self.root, "use the branch's name", &args).map(drop)
    }

    /// The directory with the repository's objects.
    pub(super) fn objects(&self) -> Result<PathBuf, WorkspaceError> {
        let args = [
            "rev-parse",
            "--path-format=absolute",
            "--git-path",
            "objects",
        ];
        let output = run(&self.root, "find its objects", &args)?;
        Ok(PathBuf::from(OsStr::from_bytes(output.trim_ascii_end())))
    }

    /// The directories and files that git ignores.
    pub(super) fn ignored(&self) -> Result<Vec<PathBuf>, WorkspaceError> {
        let args = [
            "ls-files",
            "-z",
            "--others",
            "--ignored",
            "--exclude-standard",
            "--directory",
        ];
        Ok(paths(&run(&self.root, "list ignored files", &args)?))
    }
}

/// A git command in `dir`. Environment variables cannot direct it elsewhere.
pub(super) fn command(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).stdin(Stdio::null());
    for variable in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
    ] {
        command.env_remove(variable);
    }
    // Reading must not wait for, or block, other processes that use the repository.
    command.env("GIT_OPTIONAL_LOCKS", "0").env("LC_ALL", "C");
    command
}

fn run(dir: &Path, what: &'static str, args: &[&str]) -> Result<Vec<u8>, WorkspaceError> {
    let mut command = command(dir);
    command.args(args);
    finish(command, dir, what)
}

/// Runs a git command and returns its output. A failure of the command is an error.
pub(super) fn finish(
    mut command: Command,
    dir: &Path,
    what: &'static str,
) -> Result<Vec<u8>, WorkspaceError> {
    let output = command.output().map_err(WorkspaceError::NoGit)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let why = crate::util::text::printable(&output.stderr);
    Err(WorkspaceError::Git {
        what,
        tree: dir.to_owned(),
        why: match why.trim() {
            "" => format!("it ended with {}", output.status),
            why => why.trim_start_matches("fatal: ").to_owned(),
        },
    })
}

fn line(output: &[u8]) -> String {
    String::from_utf8_lossy(output).trim().to_owned()
}

/// Parses paths that each end with a zero byte.
fn paths(output: &[u8]) -> Vec<PathBuf> {
    output
        .split(|b| *b == 0)
        .filter(|path| !path.is_empty())
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect()
}
