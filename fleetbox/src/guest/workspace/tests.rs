//! Work trees of the host, and archives that a guest might send.

use std::fs;
use std::io::{Cursor, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use super::*;

/// A work tree with a commit.
fn tree() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    fs::create_dir_all(root.join("src")).unwrap();
    fs::write(root.join("src/main.c"), "int main;\n").unwrap();
    fs::write(root.join("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join(".gitignore"), "build/\n").unwrap();
    symlink("src/main.c", root.join("link")).unwrap();
    git(&root, &["init", "-q", "-b", "trunk"]);
    git(&root, &["add", "."]);
    git(&root, &["commit", "-q", "-m", "one"]);
    let tree = Tree::at(root);
    (dir, tree)
}

fn git(root: &Path, args: &[&str]) -> String {
    let output = git::command(root)
        .args([
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "commit.gpgSign=false",
        ])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn names(files: &[PathBuf]) -> Vec<&str> {
    files.iter().map(|file| file.to_str().unwrap()).collect()
}

#[test]
fn selections_are_what_they_say() {
    let (_dir, tree) = tree();
    let root = tree.root();
    fs::create_dir(root.join("build")).unwrap();
    fs::write(root.join("build/out"), "x").unwrap();
    fs::write(root.join("new.c"), "x").unwrap();
    fs::remove_file(root.join("run.sh")).unwrap();
    let tracked = tree.files(Selection::Tracked).unwrap();
    assert_eq!(names(&tracked), [".gitignore", "link", "src/main.c"]);
    let untracked = tree.files(Selection::WithUntracked).unwrap();
    assert_eq!(
        names(&untracked),
        [".gitignore", "link", "new.c", "src/main.c"]
    );
    let all = tree.files(Selection::Everything).unwrap();
    for file in ["build", "build/out", "new.c", ".git/HEAD"] {
        assert!(names(&all).contains(&file), "{file}");
    }
    assert_eq!(names(&tree.ignored().unwrap()), ["build/"]);
}

#[tokio::test]
async fn a_tree_is_found_from_below_and_not_elsewhere() {
    let (dir, tree) = tree();
    let found = Tree::open(tree.root().join("src")).await.unwrap();
    assert_eq!(
        found.root().canonicalize().unwrap(),
        tree.root().canonicalize().unwrap()
    );
    let error = Tree::open(dir.path().join("none")).await.unwrap_err();
    assert!(error.to_string().contains("cannot copy"), "{error}");
    let outside = tempfile::tempdir().unwrap();
    let error = Tree::open(outside.path()).await.unwrap_err().to_string();
    assert!(error.contains("not a git repository"), "{error}");
}

#[tokio::test]
async fn a_commit_has_its_own_files() {
    let (_dir, tree) = tree();
    git(tree.root(), &["rm", "-q", "link"]);
    git(tree.root(), &["commit", "-q", "-m", "two"]);
    let options = ShipOptions {
        from: Some("HEAD~1".to_owned()),
        ..ShipOptions::default()
    };
    let files = tree.list(&options).await.unwrap();
    assert!(names(&files).contains(&"link"));
    let files = tree.list(&ShipOptions::default()).await.unwrap();
    assert!(!names(&files).contains(&"link"));
    let options = ShipOptions {
        from: Some("--output=x".to_owned()),
        ..options
    };
    assert!(tree.list(&options).await.is_err());
}

/// A tree as a guest that unpacked the shipment would have it.
fn shipped(tree: &Tree, options: &ShipOptions) -> (tempfile::TempDir, Workspace) {
    let (workspace, bytes) = ship::tests::archive(tree, options);
    let dir = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("tar")
        .args(["-x", "-f", "-"])
        .current_dir(dir.path())
        .stdin({
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), bytes).unwrap();
            fs::File::open(file.path()).unwrap()
        })
        .status()
        .unwrap();
    assert!(status.success());
    (dir, workspace)
}

#[test]
fn the_guest_has_files_modes_links_and_a_repository() {
    let (_dir, tree) = tree();
    fs::write(tree.root().join("src/main.c"), "changed\n").unwrap();
    let options = ShipOptions {
        branch: Some("topic/x".to_owned()),
        ..ShipOptions::default()
    };
    let (guest, workspace) = shipped(&tree, &options);
    let guest = guest.path();
    assert_eq!(fs::read(guest.join("src/main.c")).unwrap(), b"changed\n");
    assert_eq!(
        fs::read_link(guest.join("link")).unwrap(),
        Path::new("src/main.c")
    );
    let mode = fs::metadata(guest.join("run.sh"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o111, 0o111);
    assert!(workspace.is_dirty());
    // A git in the guest would see what the host's does.
    assert_eq!(
        git(guest, &["rev-parse", "HEAD"]),
        workspace.commit.unwrap()
    );
    assert_eq!(git(guest, &["symbolic-ref", "--short", "HEAD"]), "topic/x");
    assert_eq!(git(guest, &["status", "--porcelain"]), "M src/main.c");
    assert_eq!(git(guest, &["log", "--format=%s"]), "one");
    git(guest, &["fsck", "--strict"]);
}

#[test]
fn a_branch_from_a_commit_has_that_commits_files() {
    let (_dir, tree) = tree();
    fs::write(tree.root().join("src/main.c"), "two\n").unwrap();
    git(tree.root(), &["commit", "-q", "-a", "-m", "two"]);
    let options = ShipOptions {
        branch: Some("old".to_owned()),
        from: Some("HEAD~1".to_owned()),
        ..ShipOptions::default()
    };
    let (guest, workspace) = shipped(&tree, &options);
    assert_eq!(
        fs::read(guest.path().join("src/main.c")).unwrap(),
        b"int main;\n"
    );
    assert_eq!(git(guest.path(), &["status", "--porcelain"]), "");
    assert!(!workspace.is_dirty());
    for branch in ["a b", "-x", "a..b"] {
        let options = ShipOptions {
            branch: Some(branch.to_owned()),
            ..ShipOptions::default()
        };
        assert!(ship::tests::refused(&tree, &options), "{branch}");
    }
}

#[test]
fn a_whole_copy_has_what_is_ignored_and_the_history() {
    let (_dir, tree) = tree();
    fs::create_dir_all(tree.root().join("build/empty")).unwrap();
    let options = ShipOptions {
        selection: Selection::Everything,
        ..ShipOptions::default()
    };
    let (guest, _) = shipped(&tree, &options);
    assert!(guest.path().join("build/empty").is_dir());
    assert_eq!(git(guest.path(), &["log", "--format=%s"]), "one");
}

#[test]
fn a_patch_has_the_guests_changes_and_nothing_else() {
    let (_dir, tree) = tree();
    let commit = tree.commit(None).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("src")).unwrap();
    fs::create_dir_all(files.join("build")).unwrap();
    for (name, content) in [
        ("src/main.c", &b"int main, more;\n"[..]),
        ("added", b"\0binary\xff"),
        ("build/out", b"ignored"),
        (".gitignore", b"build/\n"),
        // Nothing that the guest's attributes name is run.
        (".gitattributes", b"* filter=evil diff=evil\n"),
    ] {
        fs::write(files.join(name), content).unwrap();
    }
    symlink("src/main.c", files.join("link")).unwrap();
    let patch = patch::compare(&tree, &commit, dir.path()).unwrap();
    let text = String::from_utf8_lossy(&patch);
    assert!(text.contains("+int main, more;"), "{text}");
    assert!(
        text.contains("b/added") && text.contains("deleted file mode 100755"),
        "{text}"
    );
    assert!(
        !text.contains("ignored") && !text.contains("b/link"),
        "{text}"
    );
    // The host's repository takes it.
    let file = dir.path().join("patch");
    fs::write(&file, &patch).unwrap();
    git(tree.root(), &["apply", "--index", file.to_str().unwrap()]);
    assert_eq!(
        fs::read(tree.root().join("added")).unwrap(),
        b"\0binary\xff"
    );
    assert!(!tree.root().join("run.sh").exists());
    let before = git(tree.root(), &["count-objects"]);
    patch::compare(&tree, &commit, &{
        let again = dir.path().join("again");
        fs::create_dir_all(again.join("files")).unwrap();
        again
    })
    .unwrap();
    assert_eq!(
        git(tree.root(), &["count-objects"]),
        before,
        "the host's repository was written to"
    );
}

/// An archive of entries: name, type, content or target.
fn hostile(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        // Not by the library's own setters, which refuse such names.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let data = match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                header.set_link_name_literal(content).unwrap();
                ""
            }
            _ => content,
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn nothing_is_written_outside_of_the_tree() {
    use tar::EntryType::{Block, Directory, Link, Regular, Symlink};
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let absolute = format!("{target}/absolute");
    for entries in [
        &[("../escaped", Regular, "x")][..],
        &[("a/../../escaped", Regular, "x")],
        &[(absolute.as_str(), Regular, "x")],
        &[("out", Symlink, target), ("out/through", Regular, "x")],
        &[("out", Symlink, target), ("out/through", Symlink, "x")],
        &[("out", Symlink, target), ("out/sub", Directory, "")],
        &[("out", Symlink, target), ("again", Link, "out/x")],
        &[("stolen", Link, "/etc/passwd")],
        &[("stolen", Link, "../../../../../../etc/passwd")],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        fs::create_dir(&files).unwrap();
        let result = archive::extract(Cursor::new(hostile(entries)), &files);
        assert_eq!(
            fs::read_dir(outside.path()).unwrap().count(),
            0,
            "{entries:?}"
        );
        assert!(!dir.path().join("escaped").exists(), "{entries:?}");
        assert!(!files.join("stolen").exists(), "{entries:?}: {result:?}");
    }
    // What is git's or no file is passed over; the rest is there.
    let dir = tempfile::tempdir().unwrap();
    let entries = [
        (".git/config", Regular, "[core]"),
        ("sub/.GIT/config", Regular, "[core]"),
        ("disk", Block, ""),
        ("./a", Regular, "content"),
        ("b", Link, "./a"),
        ("out", Symlink, target),
    ];
    archive::extract(Cursor::new(hostile(&entries)), dir.path()).unwrap();
    let mut there: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, ["a", "b", "out"]);
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"content");
    // A long path comes in an entry of its own, which may not be of any length.
    let long = "long/".repeat(40) + "name";
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    builder.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    archive::extract(Cursor::new(archive), dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join(&long)).unwrap(), b"x");
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let endless = Cursor::new(*header.as_bytes()).chain(std::io::repeat(b'x'));
        let error = archive::extract(endless, dir.path()).unwrap_err();
        assert!(error.contains("a header of 1099511627776 bytes"), "{error}");
    }
    // Nonsense is an error.
    assert!(archive::extract(Cursor::new(vec![b'x'; 2000]), dir.path()).is_err());
}

#[test]
fn a_tree_that_has_moved_on_is_noticed() {
    let (_dir, tree) = tree();
    let (_guest, workspace) = shipped(&tree, &ShipOptions::default());
    let moved = || {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(workspace.host_changes())
            .unwrap()
    };
    assert_eq!(moved(), None);
    fs::write(tree.root().join("new"), "untracked").unwrap();
    assert_eq!(moved(), None);
    fs::write(tree.root().join("run.sh"), "#!/bin/sh\nexit 1\n").unwrap();
    assert_eq!(moved().unwrap(), "files have changed");
    git(tree.root(), &["commit", "-q", "-a", "-m", "two"]);
    assert!(moved().unwrap().starts_with("it was at "));
}

#[test]
fn commands_run_in_the_workspace_and_through_mise() {
    let (dir, tree) = tree();
    let (_guest, mut workspace) = shipped(&tree, &ShipOptions::default());
    let words = [
        "printf".to_owned(),
        "%s|".to_owned(),
        "a b".to_owned(),
        "$HOME".to_owned(),
    ];
    let run = |workspace: &Workspace, words: &[String]| {
        std::process::Command::new("sh")
            .arg("-c")
            .arg(workspace.command(words))
            .env("HOME", dir.path())
            .output()
            .unwrap()
    };
    let output = run(&workspace, &words);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|$HOME|");
    let output = run(&workspace, &["cat".to_owned(), "src/main.c".to_owned()]);
    assert_eq!(output.stdout, b"int main;\n");
    let command = workspace.command_in("src", &["cat".to_owned(), "main.c".to_owned()]);
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .env("HOME", dir.path())
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"int main;\n");
    // Without mise it is said and run all the same; with it, it is run through it.
    workspace.mise = true;
    let bin = dir.path().join(".local/bin");
    fs::create_dir_all(&bin).unwrap();
    let output = run(&workspace, &words);
    assert_eq!(output.stdout, b"a b|$HOME|");
    assert!(String::from_utf8_lossy(&output.stderr).contains("from mise"));
    fs::write(bin.join("mise"), "#!/bin/sh\necho \"mise $*\"\n").unwrap();
    fs::set_permissions(bin.join("mise"), fs::Permissions::from_mode(0o755)).unwrap();
    let output = run(&workspace, &words);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "mise exec -- printf %s| a b $HOME\n"
    );
    // A log-in has the tools, too.
    let output = std::process::Command::new("sh")
        .args(["-c", &workspace.command(&[])])
        .env("HOME", dir.path())
        .env("SHELL", "/bin/some shell")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "mise exec -- /bin/some shell\n"
    );
}

#[test]
fn a_tree_that_declares_mise_is_known() {
    let (_dir, tree) = tree();
    fs::write(tree.root().join(".tool-versions"), "node 22\n").unwrap();
    let (_guest, workspace) = shipped(&tree, &ShipOptions::default());
    assert!(!workspace.mise, "the file is not shipped");
    git(tree.root(), &["add", ".tool-versions"]);
    let (_guest, workspace) = shipped(&tree, &ShipOptions::default());
    assert!(workspace.mise);
}

/// With GNU's tar, and with one that knows no long options, as busybox's is.
#[test]
fn all_files_come_back_by_whatever_tar_the_guest_has() {
    let (dir, tree) = tree();
    let (_guest, workspace) = shipped(&tree, &ShipOptions::default());
    fs::create_dir(tree.root().join("build")).unwrap();
    fs::write(tree.root().join("build/out"), "ignored").unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let simple = "#!/bin/sh\nfor a; do case $a in --*) exit 1;; esac; done\n\
                  PATH=${PATH#*:}\nexec tar \"$@\"\n";
    fs::write(bin.join("tar"), simple).unwrap();
    fs::set_permissions(bin.join("tar"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let command = patch::archive_command(&workspace, &tree.ignored().unwrap());
    let simple_path = format!("{}:{path}", bin.display());
    for (path, build) in [(&path, false), (&simple_path, true)] {
        let output = std::process::Command::new("sh")
            .args(["-c", &command])
            .env("HOME", dir.path())
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let files = tempfile::tempdir().unwrap();
        archive::extract(Cursor::new(output.stdout), files.path()).unwrap();
        for file in ["src/main.c", "run.sh", ".gitignore", "link"] {
            assert!(files.path().join(file).exists(), "{path}: {file}");
        }
        assert!(!files.path().join(".git").exists());
        assert_eq!(files.path().join("build/out").exists(), build, "{path}");
    }
    // A workspace that is gone is an error, not a tree without files.
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .env("HOME", dir.path().join("none"))
        .output()
        .unwrap();
    assert!(!output.status.success());
}
