//! Names of any bytes, holes, files that appear whole or not at all, and the rights of copies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::Ordering;

use super::*;

fn names_in(dir: &Path) -> Vec<Vec<u8>> {
    let list = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = list
        .map(|e| e.unwrap().file_name().as_bytes().to_vec())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn names_and_links_of_any_bytes_go_there_and_back() {
    let dirs = Dirs::new();
    let source = dirs.host("source");
    let dir = source.join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir_all(&dir).unwrap();
    for name in [
        &b"\xff\xfe"[..],
        b"r\xe9sum\xe9.txt",
        "caf\u{e9}".as_bytes(),
        "\u{fffd}".as_bytes(),
        "\u{10feff}".as_bytes(),
        b"\xf4\x8f\xbb",
        b"plain",
    ] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let target = OsStr::from_bytes(b"../\xc3\x28/nowhere");
    symlink(target, source.join(OsStr::from_bytes(b"link\x80"))).unwrap();
    let server = dirs.server();
    let there = to(&server, &source, "/copy").await.unwrap();
    assert_eq!((there.files, there.links), (7, 1));
    assert_eq!(snapshot(&dirs.guest("copy")), snapshot(&source));
    let back = from(&server, "/copy", &dirs.host("back")).await.unwrap();
    assert_eq!(back, there);
    assert_eq!(snapshot(&dirs.host("back")), snapshot(&source));

    // One file, and a name that comes from the host's path.
    let one = dir.join(OsStr::from_bytes(b"\xff\xfe"));
    to(&server, &one, "/").await.unwrap();
    assert_eq!(
        fs::read(dirs.guest("").join(OsStr::from_bytes(b"\xff\xfe"))).unwrap(),
        b"\xff\xfe"
    );
    let host = dirs.host("").join(OsStr::from_bytes(b"\xfd"));
    from(&server, "/copy/caf\u{e9}", &host).await.unwrap_err();
    fs::write(dirs.guest("plain"), "p").unwrap();
    from(&server, "/plain", &host).await.unwrap();
    assert_eq!(fs::read(&host).unwrap(), b"p");
}

#[tokio::test]
async fn holes_are_neither_sent_nor_stored() {
    use std::os::unix::fs::FileExt as _;
    const SIZE: u64 = 512 << 20;
    let dirs = Dirs::new();
    let file = fs::File::create(dirs.host("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    for at in [4 << 20, 300 << 20] {
        file.write_all_at(&content(100_000), at).unwrap();
    }
    let server = dirs.server();
    let copied = to(&server, &dirs.host("sparse"), "/sparse").await.unwrap();
    assert_eq!(copied.bytes, SIZE);
    let sent = server.written.load(Ordering::Relaxed);
    assert!((200_000..2 << 20).contains(&sent), "{sent} bytes were sent");

    // Shorter, since the way back has the zeros.
    let file = fs::File::options()
        .write(true)
        .open(dirs.guest("sparse"))
        .unwrap();
    file.set_len((5 << 20) + 5).unwrap();
    from(&server, "/sparse", &dirs.host("back")).await.unwrap();
    for (path, len) in [
        (dirs.guest("sparse"), (5 << 20) + 5),
        (dirs.host("back"), (5 << 20) + 5),
    ] {
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), len);
        assert!(metadata.blocks() * 512 < 1 << 20, "{path:?} is not sparse");
        let bytes = fs::read(&path).unwrap();
        let (data, end) = (4 << 20, (4 << 20) + 100_000);
        assert!(bytes[data..end] == content(100_000), "{path:?}");
        assert!(
            bytes[..data].iter().chain(&bytes[end..]).all(|b| *b == 0),
            "{path:?}"
        );
    }
}

/// A full disk in the guest, in the middle of a file.
#[tokio::test]
async fn a_copy_that_fails_leaves_no_part_of_a_file() {
    let dirs = Dirs::new();
    fs::write(dirs.host("large"), content(3 << 20)).unwrap();
    fs::write(dirs.guest("there"), "as before").unwrap();
    let server = dirs.lying(Lies {
        full: Some(1 << 20),
        ..Lies::default()
    });
    for target in ["/new", "/there"] {
        let error = to(&server, &dirs.host("large"), target).await.unwrap_err();
        assert!(error.to_string().contains(target), "{error}");
    }
    assert_eq!(names_in(&dirs.guest("")), [b"there"]);
    assert_eq!(fs::read(dirs.guest("there")).unwrap(), b"as before");
}

#[tokio::test]
async fn a_copy_that_is_stopped_leaves_no_part_of_a_file() {
    let dirs = Dirs::new();
    fs::write(dirs.host("large"), content(16 << 20)).unwrap();
    fs::write(dirs.guest("large"), content(16 << 20)).unwrap();
    fs::write(dirs.guest("there"), "as before").unwrap();
    let server = dirs.server();
    let stopping = || {
        let stop = Stop::new();
        FileOptions::new().stop(&stop).progress(move |at| {
            if at.bytes > 1 << 20 {
                stop.stop();
            }
        })
    };
    for target in ["/new", "/there"] {
        let source = dirs.host("large");
        let tree = Tree::of(&source).unwrap();
        let sftp = server.session().await;
        let error = upload::copy(&sftp, &source, target, tree, &stopping()).await;
        assert!(matches!(error, Err(FilesError::Stopped)), "{error:?}");
    }
    assert_eq!(names_in(&dirs.guest("")), [&b"large"[..], b"there"]);
    assert_eq!(fs::read(dirs.guest("there")).unwrap(), b"as before");

    let sftp = server.session().await;
    let error = download::copy(&sftp, "/large", &dirs.host("back"), &stopping()).await;
    assert!(matches!(error, Err(FilesError::Stopped)), "{error:?}");
    assert_eq!(names_in(&dirs.host("")), [b"large"]);
}

#[tokio::test]
async fn a_file_in_the_guest_is_replaced_through_links_and_where_none_can_be_created() {
    let dirs = Dirs::new();
    fs::write(dirs.host("a"), "new").unwrap();
    let plant = || {
        let _ = fs::remove_dir_all(dirs.guest("d"));
        fs::create_dir(dirs.guest("d")).unwrap();
        fs::write(dirs.guest("d/real"), "a longer old text").unwrap();
        symlink("real", dirs.guest("d/link")).unwrap();
        symlink("dangling-target", dirs.guest("d/dangling")).unwrap();
    };
    for lies in [
        Lies::default(),
        Lies {
            no_posix_rename: true,
            ..Lies::default()
        },
    ] {
        plant();
        let server = dirs.lying(lies);
        for target in ["/d/real", "/d/link", "/d/dangling", "/d/new"] {
            to(&server, &dirs.host("a"), target).await.unwrap();
        }
        assert!(dirs.guest("d/link").is_symlink() && dirs.guest("d/dangling").is_symlink());
        for name in ["real", "dangling-target", "new"] {
            assert_eq!(fs::read(dirs.guest("d").join(name)).unwrap(), b"new");
        }
        assert_eq!(names_in(&dirs.guest("d")).len(), 5);
    }
    plant();
    let server = dirs.lying(Lies {
        no_new_files: true,
        ..Lies::default()
    });
    to(&server, &dirs.host("a"), "/d/real").await.unwrap();
    assert_eq!(fs::read(dirs.guest("d/real")).unwrap(), b"new");
    let error = to(&server, &dirs.host("a"), "/d/new").await.unwrap_err();
    assert!(error.to_string().contains("permission denied"), "{error}");
}

/// A guest sends a link with one copy, and hopes that the user names it, or something behind it, in the next one.
#[tokio::test]
async fn a_destination_behind_a_link_is_refused() {
    let dirs = Dirs::new();
    let outside = dirs.host("outside");
    fs::create_dir_all(outside.join("below")).unwrap();
    fs::create_dir(dirs.guest("d")).unwrap();
    symlink(&outside, dirs.guest("d/x")).unwrap();
    symlink(outside.join("file"), dirs.guest("d/file")).unwrap();
    fs::create_dir(dirs.guest("more")).unwrap();
    fs::write(dirs.guest("more/evil"), "evil").unwrap();
    let server = dirs.server();
    from(&server, "/d", &dirs.host("out")).await.unwrap();
    let out = dirs.host("out");
    for (source, target) in [
        ("/more", out.join("x")),
        ("/more", out.join("x/")),
        ("/more", out.join("x/new")),
        ("/more", out.join("x/below/")),
        ("/more/evil", out.join("x/")),
        ("/more/evil", out.join("x/evil")),
        ("/more/evil", out.join("x/below/evil")),
    ] {
        let error = from(&server, source, &target).await.unwrap_err();
        let FilesError::Link { link, .. } = &error else {
            panic!("{}: {error}", target.display())
        };
        assert!(link.ends_with("out/x"), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("symbolic link") && text.contains("outside"),
            "{text}"
        );
    }
    // A link in place of a file is replaced.
    from(&server, "/more/evil", &out.join("file"))
        .await
        .unwrap();
    assert_eq!(fs::read(out.join("file")).unwrap(), b"evil");
    assert_eq!(names_in(&outside), [b"below"]);
    assert!(names_in(&outside.join("below")).is_empty());
}

/// The umask is one of the whole process, so this test runs itself in another.
#[test]
fn a_copy_gets_no_rights_that_the_umask_forbids() {
    const CHILD: &str = "FLEETBOX_TEST_UMASK";
    if std::env::var_os(CHILD).is_none() {
        let name = "files::tests::whole::a_copy_gets_no_rights_that_the_umask_forbids";
        let status = std::process::Command::new("sh")
            .args(["-c", "umask 027 && exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let dirs = Dirs::new();
        fs::create_dir(dirs.guest("d")).unwrap();
        fs::write(dirs.guest("d/file"), "f").unwrap();
        mode(&dirs.guest("d/file"), 0o6777);
        mode(&dirs.guest("d"), 0o2777);
        from(&dirs.server(), "/d", &dirs.host("d")).await.unwrap();
        for name in ["d", "d/file"] {
            let mode = dirs.host(name).metadata().unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o750, "{name}");
        }
    });
}
