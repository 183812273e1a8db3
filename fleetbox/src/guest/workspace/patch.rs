//! Fetching a guest's tree, and comparing it with the host's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::archive::{self, Receiver};
use super::{Tree, Workspace, WorkspaceError, git};
use crate::error::Error;
use crate::ssh::ExitStatus;
use crate::util::task::blocking;
use crate::util::text::quote;
use crate::vm::Vm;

/// The empty tree, which git knows in every repository.
const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";

/// Maximum number of ignored directories that the guest leaves out of its archive.
const MOST_EXCLUDED: usize = 500;

pub(super) async fn diff(workspace: &Workspace, vm: &Vm) -> Result<Vec<u8>, WorkspaceError> {
    let temporary = tempfile::Builder::new()
        .prefix("fleetbox-patch-")
        .tempdir()
        .map_err(WorkspaceError::io(
            "create a directory in",
            &std::env::temp_dir(),
        ))?;
    let files = temporary.path().join("files");
    fs::create_dir(&files).map_err(WorkspaceError::io("create", &files))?;
    let tree = Tree::open(&workspace.host).await?;
    fetch(workspace, vm, &tree, &files).await?;
    let base = workspace
        .commit
        .clone()
        .unwrap_or_else(|| EMPTY_TREE.to_owned());
    blocking(move || compare(&tree, &base, temporary.path())).await
}

/// Fetches the guest's files into `files`.
async fn fetch(
    workspace: &Workspace,
    vm: &Vm,
    tree: &Tree,
    files: &Path,
) -> Result<(), WorkspaceError> {
    let host = tree.clone();
    let ignored = blocking(move || host.ignored()).await?;
    let command = archive_command(workspace, &ignored);
    let mut child = vm.ssh_spawn(&command).await?;
    let output = child.stdout.take();
    let (sender, receiver) = mpsc::channel(archive::QUEUE);
    let into = files.to_owned();
    let name = vm.name().to_owned();
    let extracting = blocking(move || {
        let mut receiver = Receiver::new(receiver);
        let extracted = archive::extract(&mut receiver, &into).and_then(|()| {
            // Read the padding at the end, so that the guest's tar exits normally.
            std::io::copy(&mut receiver, &mut std::io::sink())
                .map(drop)
                .map_err(|error| error.to_string())
        });
        extracted.map_err(|why| WorkspaceError::Archive { name, why })
    });
    let receiving = async move {
        let Some(mut output) = output else { return };
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = output.read(&mut buffer).await {
            let chunk = buffer.get(..n).unwrap_or_default().to_vec();
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let complaint = child.output(1 << 20);
    let (extracted, (), complaint) = tokio::join!(extracting, receiving, complaint);
    let complaint = complaint.map_err(Error::from)?;
    // An incomplete archive would give a patch that deletes the missing files.
    if complaint.status != ExitStatus::Code(0) {
        return Err(Error::Guest {
            name: vm.reference().to_string(),
            what: "send its work tree",
            why: crate::util::text::printable(&complaint.stderr)
                .trim()
                .to_owned(),
        }
        .into());
    }
    extracted
}

/// A command line that writes the workspace's files to standard output as an archive. It fails if a
/// file could not be read.
pub(super) fn archive_command(workspace: &Workspace, ignored: &[PathBuf]) -> String {
    // Ignored files, such as builds, are not part of a patch, so the guest need not send them.
    let mut excluded = String::from(" --exclude=./.git");
    for path in ignored.iter().take(MOST_EXCLUDED) {
        if let Some(path) = path.to_str().map(|path| path.trim_end_matches('/'))
            && !path.contains(['*', '?', '[', '\\'])
        {
            excluded.push_str(" --exclude=");
            excluded.push_str(&quote(&format!("./{path}")));
        }
    }
    // Busybox's tar does not support exclusions, so it sends everything, and this side skips what
    // git ignores. GNU tar exits with 1 if a file changed while it was read and nothing worse
    // happened.
    format!(
        "{} || exit; if tar --version 2>/dev/null | grep -q 'GNU tar'; then \
         tar -c -f -{excluded} .; status=$?; [ \"$status\" = 1 ] && status=0; exit \"$status\"; \
         else exec tar -c -f - .; fi",
        workspace.enter()
    )
}

/// Makes the patch from `base` to the files in `dir`. New objects are written to a repository
/// beside them. The host's repository is only read.
pub(super) fn compare(tree: &Tree, base: &str, dir: &Path) -> Result<Vec<u8>, WorkspaceError> {
    let (repository, files) = (dir.join("git"), dir.join("files"));
    let root = tree.root();
    let mut init = git::command(dir);
    init.args(["init", "--quiet", "--template=", "--bare"])
        .arg(&repository);
    git::finish(init, root, "make a repository")?;
    let info = repository.join("objects/info");
    let alternates = info.join("alternates");
    let mut objects = tree.objects()?.into_os_string().into_encoded_bytes();
    objects.push(b'\n');
    fs::create_dir_all(&info)
        .and_then(|()| fs::write(&alternates, objects))
        .map_err(WorkspaceError::io("write", &alternates))?;

    let guest = |args: &[&str]| -> Command {
        let mut command = git::command(&files);
        command
            .arg("--git-dir")
            .arg(&repository)
            .arg("--work-tree")
            .arg(&files)
            // The guest's .gitattributes must not run filters from the user's configuration.
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "core.bare=false", "-c", "core.autocrlf=false"])
            .args(["-c", "core.safecrlf=false", "-c", "core.quotePath=true"])
            .args(args);
        command
    };
    let read = guest(&["read-tree", base]);
    git::finish(read, root, "read the commit that was shipped")?;
    let listed = git::finish(guest(&["ls-files", "-s", "-z"]), root, "list files")?;
    let mut add = guest(&["add", "--all", "--", "."]);
    for entry in listed.split(|b| *b == 0) {
        // A submodule: `160000 SUM 0\tPATH`.
        if entry.starts_with(b"160000 ")
            && let Some(at) = entry.iter().position(|b| *b == b'\t')
        {
            let path = String::from_utf8_lossy(entry.get(at + 1..).unwrap_or_default());
            add.arg(format!(":(exclude,literal){path}"));
        }
    }
    git::finish(add, root, "look at the guest's files")?;
    let diff = guest(&[
        "diff",
        "--cached",
        "--binary",
        "--full-index",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        base,
    ]);
    git::finish(diff, root, "compare files")
}
