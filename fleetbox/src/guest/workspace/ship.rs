//! Copying a work tree to a guest.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::archive::{self, Sender};
use super::{MISE_FILES, ShipOptions, Tree, Workspace, WorkspaceError, git};
use crate::error::Error;
use crate::ssh::ExitStatus;
use crate::util::task::blocking;
use crate::util::text::quote;
use crate::vm::Vm;

/// Maximum bytes of an error message from the guest.
const COMPLAINT: usize = 1 << 20;

/// Which files of a work tree are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// The files that git tracks, as they are in the work tree, and a repository with their commit.
    Tracked,
    /// The same, and new files that git does not ignore.
    WithUntracked,
    /// The whole directory, with ignored files and the repository's history.
    Everything,
}

/// A copy for a guest, prepared on the host before the guest is contacted.
struct Payload {
    /// The directory with the files.
    root: PathBuf,
    files: Vec<PathBuf>,
    /// A temporary directory with the guest's repository, and with the files if they are not those
    /// of the work tree.
    _made: Option<tempfile::TempDir>,
    /// The repository's directory, which becomes `.git` in the guest.
    repository: Option<PathBuf>,
    workspace: Workspace,
}

pub(super) async fn ship(
    vm: &Vm,
    tree: &Tree,
    options: &ShipOptions,
    earlier: Option<&Workspace>,
) -> Result<Workspace, WorkspaceError> {
    let (tree, options) = (tree.clone(), options.clone());
    let payload = blocking(move || prepare(&tree, &options)).await?;
    let workspace = payload.workspace.clone();
    if let Some(earlier) = earlier.filter(|earlier| earlier.directory == workspace.directory) {
        remove_old(vm, earlier, &workspace).await?;
    }
    send(vm, payload).await?;
    Ok(workspace)
}

/// Checks everything that can be checked before there is a guest.
pub(super) fn check(tree: &Tree, options: &ShipOptions) -> Result<(), WorkspaceError> {
    if let Some(branch) = &options.branch {
        tree.check_branch(branch)?;
    }
    let files = tree.listed(options)?;
    names(&files)?;
    if options.from.is_some() {
        return Ok(()); // git has them.
    }
    for file in &files {
        let path = tree.root().join(file);
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            match fs::File::open(&path) {
                // It was deleted after it was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                opened => drop(opened.map_err(WorkspaceError::io("read", &path))?),
            }
        }
    }
    Ok(())
}

/// The names of the files, for an archive and the record.
fn names(files: &[PathBuf]) -> Result<Vec<String>, WorkspaceError> {
    let name = |file: &PathBuf| match file.to_str() {
        Some(name) if !name.contains('\0') => Ok(name.to_owned()),
        _ => Err(WorkspaceError::Path {
            path: file.clone(),
            why: "its name is not UTF-8; rename it, or make git ignore it",
        }),
    };
    files.iter().map(name).collect()
}

fn prepare(tree: &Tree, options: &ShipOptions) -> Result<Payload, WorkspaceError> {
    if let Some(branch) = &options.branch {
        tree.check_branch(branch)?;
    }
    let commit = tree.commit(options.from.as_deref())?;
    let whole = options.selection == Selection::Everything;
    let own_repository = whole && tree.root().join(".git").is_dir();
    let mut root = tree.root().to_owned();
    let mut made = None;
    let mut repository = None;
    if let Some(commit) = commit.as_deref().filter(|_| !own_repository) {
        let temporary = tempfile::Builder::new()
            .prefix("fleetbox-workspace-")
            .tempdir()
            .map_err(WorkspaceError::io(
                "create a directory in",
                &std::env::temp_dir(),
            ))?;
        let branch = options.branch.clone().or_else(|| tree.branch());
        repository = Some(make_repository(
            tree,
            commit,
            branch.as_deref(),
            temporary.path(),
        )?);
        if options.from.is_some() {
            root = temporary.path().join("files");
            check_out(tree, temporary.path(), &root)?;
        }
        made = Some(temporary);
    }
    let files = match &options.from {
        Some(_) => Tree::files(&Tree::at(root.clone()), Selection::Everything)?,
        None => tree.files(options.selection)?,
    };
    let names = names(&files)?;
    let mise = names.iter().any(|name| MISE_FILES.contains(&name.as_str()));
    Ok(Payload {
        workspace: Workspace {
            host: tree.root().to_owned(),
            directory: directory(tree.root()),
            mise,
            fingerprint: fingerprint(&root, &files),
            dirty: options.from.is_none() && commit.is_some() && tree.is_dirty()?,
            files: names,
            options: options.clone(),
            commit,
        },
        root,
        files,
        repository,
        _made: made,
    })
}

/// The name of the directory in the guest: the tree's name, with only characters that need no
/// quoting.
fn directory(root: &Path) -> String {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
            _ => '-',
        })
        .take(100)
        .collect();
    match name.trim_start_matches(['-', '.']) {
        "" => "workspace".to_owned(),
        name => name.to_owned(),
    }
}

/// A checksum of names, sizes, modes and times.
pub(super) fn fingerprint(root: &Path, files: &[PathBuf]) -> String {
    let mut context = Context::new(&SHA256);
    for file in files {
        let Ok(metadata) = fs::symlink_metadata(root.join(file)) else {
            continue;
        };
        // Leave out directories: their time changes with each build.
        if metadata.is_dir() || file.starts_with(".git") {
            continue;
        }
        let line = format!(
            "{} {:o} {} {}\0",
            metadata.len(),
            metadata.mode(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        context.update(file.as_os_str().as_encoded_bytes());
        context.update(line.as_bytes());
    }
    let digest = context.finish();
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Creates a repository in `dir` that has one commit and no history, with the branch checked out in
/// its index only.
fn make_repository(
    tree: &Tree,
    commit: &str,
    branch: Option<&str>,
    dir: &Path,
) -> Result<PathBuf, WorkspaceError> {
    let repository = dir.join("git");
    let root = tree.root();
    let mut init = git::command(dir);
    init.args(["init", "--quiet", "--template=", "--bare"])
        .arg(&repository);
    git::finish(init, root, "make a repository")?;
    let pack_dir = repository.join("objects/pack");
    fs::create_dir_all(&pack_dir).map_err(WorkspaceError::io("create", &pack_dir))?;

    let mut list = git::command(root);
    list.args(["rev-list", "--objects", "--no-walk", commit])
        .stdout(Stdio::piped());
    let mut list = list.spawn().map_err(WorkspaceError::NoGit)?;
    let mut pack = git::command(root);
    pack.args(["pack-objects", "--quiet"])
        .arg(pack_dir.join("pack"));
    if let Some(objects) = list.stdout.take() {
        pack.stdin(objects);
    }
    let packed = git::finish(pack, root, "pack a commit");
    let listed = list.wait().map_err(WorkspaceError::NoGit)?;
    packed?;
    if !listed.success() {
        return Err(WorkspaceError::Git {
            what: "list a commit's objects",
            tree: root.to_owned(),
            why: format!("it ended with {listed}"),
        });
    }

    let write = |name: &str, text: String| {
        let path = repository.join(name);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text))
            .map_err(WorkspaceError::io("write", &path))
    };
    // The commit's parents are missing.
    write("shallow", format!("{commit}\n"))?;
    match branch {
        Some(branch) => {
            write(&format!("refs/heads/{branch}"), format!("{commit}\n"))?;
            write("HEAD", format!("ref: refs/heads/{branch}\n"))?;
        }
        None => write("HEAD", format!("{commit}\n"))?,
    }
    let mut index = git::command(dir);
    index
        .arg("--git-dir")
        .arg(&repository)
        .args(["read-tree", commit]);
    git::finish(index, root, "read a commit")?;
    let mut config = git::command(dir);
    config
        .arg("--git-dir")
        .arg(&repository)
        .args(["config", "core.bare", "false"]);
    git::finish(config, root, "configure a repository")?;
    Ok(repository)
}

/// Writes the files of the commit in the repository in `dir` to `files`.
fn check_out(tree: &Tree, dir: &Path, files: &Path) -> Result<(), WorkspaceError> {
    fs::create_dir(files).map_err(WorkspaceError::io("create", files))?;
    let mut command = git::command(files);
    command
        .arg("--git-dir")
        .arg(dir.join("git"))
        .arg("--work-tree")
        .arg(files)
        .args(["checkout-index", "--all", "--quiet"]);
    git::finish(command, tree.root(), "check a commit out").map(drop)
}

/// Deletes files of the earlier copy that are not in the new one.
async fn remove_old(vm: &Vm, earlier: &Workspace, now: &Workspace) -> Result<(), WorkspaceError> {
    let kept: BTreeSet<_> = now.files.iter().collect();
    let mut gone = Vec::new();
    for file in earlier.files.iter().filter(|file| !kept.contains(file)) {
        gone.extend_from_slice(b"./");
        gone.extend_from_slice(file.as_bytes());
        gone.push(0);
    }
    if gone.is_empty() {
        return Ok(());
    }
    // Directories are listed only for full copies. They stay.
    let command = format!("{} && xargs -0 rm -f -- 2>/dev/null; true", now.enter());
    vm.ssh_with_input(&command, &gone).await?;
    Ok(())
}

async fn send(vm: &Vm, payload: Payload) -> Result<(), WorkspaceError> {
    let directory = format!("\"$HOME\"/{}", quote(&payload.workspace.directory));
    let command = format!("mkdir -p -- {directory} && cd -- {directory} && exec tar -x -f -");
    let mut child = vm.ssh_spawn(&command).await?;
    let mut input = child.stdin.take();
    let (sender, mut receiver) = mpsc::channel(archive::QUEUE);
    let writing = blocking(move || write_all(&payload, Sender::new(sender)));
    let sending = async {
        if let Some(input) = &mut input {
            while let Some(chunk) = receiver.recv().await {
                // Its error message and exit status say why.
                if input.write_all(&chunk).await.is_err() {
                    break;
                }
            }
            let _ = input.shutdown().await;
        }
        drop(receiver);
    };
    let collecting = child.output(COMPLAINT);
    let (written, (), output) = tokio::join!(writing, sending, collecting);
    let output = output.map_err(Error::from)?;
    if output.status != ExitStatus::Code(0) {
        return Err(Error::Guest {
            name: vm.reference().to_string(),
            what: "unpack the work tree",
            why: crate::util::text::printable(&output.stderr)
                .trim()
                .to_owned(),
        }
        .into());
    }
    written
}

fn write_all(payload: &Payload, out: Sender) -> Result<(), WorkspaceError> {
    let mut builder = tar::Builder::new(out);
    if let Some(repository) = &payload.repository {
        let tree = Tree::at(repository.clone());
        for file in tree.files(Selection::Everything)? {
            archive::append(
                &mut builder,
                &repository.join(&file),
                &Path::new(".git").join(&file),
            )?;
        }
    }
    for file in &payload.files {
        archive::append(&mut builder, &payload.root.join(file), file)?;
    }
    let finished = builder
        .into_inner()
        .and_then(|mut out| std::io::Write::flush(&mut out));
    finished.map_err(WorkspaceError::io("copy", &payload.root))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The entries to send to a guest.
    pub(in super::super) fn archive(tree: &Tree, options: &ShipOptions) -> (Workspace, Vec<u8>) {
        let payload = prepare(tree, options).unwrap();
        let workspace = payload.workspace.clone();
        let (sender, mut receiver) = mpsc::channel(archive::QUEUE);
        let writing = std::thread::spawn(move || write_all(&payload, Sender::new(sender)));
        let mut bytes = Vec::new();
        while let Some(chunk) = receiver.blocking_recv() {
            bytes.extend(chunk);
        }
        writing.join().unwrap().unwrap();
        (workspace, bytes)
    }

    /// True if nothing is sent.
    pub(in super::super) fn refused(tree: &Tree, options: &ShipOptions) -> bool {
        let refused = prepare(tree, options).is_err();
        assert_eq!(
            check(tree, options).is_err(),
            refused,
            "known before the boot"
        );
        refused
    }

    #[test]
    fn directories_have_names_without_surprises() {
        for (root, name) in [
            ("/src/my-repo", "my-repo"),
            ("/src/my repo's", "my-repo-s"),
            ("/src/.dotfiles", "dotfiles"),
            ("/src/-x", "x"),
            ("/", "workspace"),
        ] {
            assert_eq!(directory(Path::new(root)), name);
        }
    }
}
