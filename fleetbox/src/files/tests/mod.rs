//! Copies between this host and a server in this process.

mod server;
mod whole;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use self::server::{Lies, Server};
use super::walk::Tree;
use super::*;

const REGULAR: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;

struct Dirs {
    dir: tempfile::TempDir,
}

impl Dirs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["host", "guest"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join("host").join(name)
    }

    fn guest(&self, name: &str) -> PathBuf {
        self.dir.path().join("guest").join(name)
    }

    fn server(&self) -> Server {
        Server::new(self.guest(""))
    }

    fn lying(&self, lies: Lies) -> Server {
        Server::lying(self.guest(""), lies)
    }
}

async fn to(server: &Server, source: &Path, target: &str) -> Result<CopySummary, FilesError> {
    let sftp = server.session().await;
    let tree = Tree::of(source)?;
    upload::copy(&sftp, source, target, tree, &FileOptions::new()).await
}

async fn from(server: &Server, source: &str, target: &Path) -> Result<CopySummary, FilesError> {
    download::copy(&server.session().await, source, target, &FileOptions::new()).await
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

fn at(path: &Path, seconds: u64) {
    let file = fs::File::open(path).unwrap();
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    file.set_modified(time).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A tree with all that is kept.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("bin/deep")).unwrap();
    fs::create_dir(root.join("closed")).unwrap();
    fs::write(root.join("bin/run"), content(300_000)).unwrap();
    fs::write(root.join("bin/deep/empty"), "").unwrap();
    fs::write(root.join("closed/secret"), "s").unwrap();
    for i in 0..40 {
        fs::write(root.join(format!("bin/deep/{i}")), content(i * 100)).unwrap();
    }
    symlink("bin/run", root.join("link")).unwrap();
    symlink("/nowhere", root.join("bin/broken")).unwrap();
    mode(&root.join("bin/run"), 0o755);
    mode(&root.join("closed/secret"), 0o400);
    at(&root.join("bin/run"), 1_000_000_000);
    mode(&root.join("closed"), 0o500);
    at(&root.join("bin"), 1_100_000_000);
    at(root, 1_200_000_000);
}

/// Makes what [`plant`] closed removable and writable by others than root.
fn open(root: &Path) {
    mode(&root.join("closed"), 0o700);
    mode(&root.join("closed/secret"), 0o600);
}

/// Path, mode, time and content of all that is below.
fn snapshot(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let (mut time, mut bytes) = (metadata.mtime(), Vec::new());
        if metadata.is_symlink() {
            // Links have no mode, and their time is not kept.
            time = 0;
            bytes = fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes();
        } else if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            bytes = fs::read(&path).unwrap();
        }
        let relative = path.strip_prefix(root).unwrap().to_owned();
        found.push((relative, metadata.mode(), time, bytes));
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_tree_goes_there_and_back_as_it_was() {
    let dirs = Dirs::new();
    let source = dirs.host("source");
    fs::create_dir(&source).unwrap();
    plant(&source);
    let server = dirs.server();
    let there = to(&server, &source, "/copy").await.unwrap();
    assert_eq!(
        (there.files, there.directories, there.links),
        (43, 4, 2),
        "{there:?}"
    );
    assert_eq!(snapshot(&dirs.guest("copy")), snapshot(&source));

    let back = from(&server, "/copy", &dirs.host("back")).await.unwrap();
    assert_eq!(back, there);
    assert_eq!(snapshot(&dirs.host("back")), snapshot(&source));

    // Into a directory, under the source's name; and once more, over what is there.
    for _ in 0..2 {
        to(&server, &source, "/").await.unwrap();
        open(&dirs.guest("source"));
    }
    assert_eq!(
        fs::read(dirs.guest("source/link")).unwrap(),
        content(300_000)
    );
    let parent = PathBuf::from(format!("{}/", dirs.host("").display()));
    from(&server, "/copy", &parent).await.unwrap();
    assert_eq!(fs::read(dirs.host("copy/link")).unwrap(), content(300_000));
    for name in ["source", "back", "copy"] {
        open(&dirs.host(name));
    }
    open(&dirs.guest("copy"));
}

#[tokio::test]
async fn a_large_file_arrives_whole_whatever_the_pieces() {
    let dirs = Dirs::new();
    let bytes = content((9 << 20) + 17);
    fs::write(dirs.host("large"), &bytes).unwrap();
    to(&dirs.server(), &dirs.host("large"), "/large")
        .await
        .unwrap();
    assert!(fs::read(dirs.guest("large")).unwrap() == bytes);

    let cases = [
        Lies::default(),
        // Answers that are shorter than what was asked for, in the middle of the file.
        Lies {
            short: Some(10_007),
            ..Lies::default()
        },
        // A length that is not known, as in /proc, or wrong.
        Lies {
            size: Some(0),
            short: Some(100_000),
            ..Lies::default()
        },
        Lies {
            size: Some(100 << 20),
            ..Lies::default()
        },
    ];
    for lies in cases {
        let shown = format!("{lies:?}");
        from(&dirs.lying(lies), "/large", &dirs.host("back"))
            .await
            .unwrap();
        assert!(fs::read(dirs.host("back")).unwrap() == bytes, "{shown}");
    }
}

#[tokio::test]
async fn bytes_are_written_and_read() {
    let dirs = Dirs::new();
    let sftp = dirs.server().session().await;
    let bytes = content(70_000);
    let options = FileOptions::new();
    upload::write(&sftp, "a", &bytes, &options).await.unwrap();
    assert_eq!(download::read(&sftp, "a", &options).await.unwrap(), bytes);
    assert_eq!(dirs.guest("a").metadata().unwrap().mode() & 0o777, 0o644);

    // Shorter than before, and with a mode.
    let options = options.mode(0o755);
    upload::write(&sftp, "a", b"x", &options).await.unwrap();
    assert_eq!(fs::read(dirs.guest("a")).unwrap(), b"x");
    assert_eq!(dirs.guest("a").metadata().unwrap().mode() & 0o777, 0o755);

    upload::write(&sftp, "empty", b"", &options).await.unwrap();
    assert_eq!(download::read(&sftp, "empty", &options).await.unwrap(), b"");
}

#[tokio::test]
async fn what_a_guest_sends_is_bounded() {
    let dirs = Dirs::new();
    fs::write(dirs.guest("a"), content(1000)).unwrap();
    let options = FileOptions::new().limit(999);
    let sftp = dirs.server().session().await;
    let error = download::read(&sftp, "a", &options).await.unwrap_err();
    assert!(
        matches!(error, FilesError::TooLarge { limit: 999, .. }),
        "{error}"
    );
    let limited = FileOptions::new().limit(1000);
    assert_eq!(
        download::read(&sftp, "a", &limited).await.unwrap().len(),
        1000
    );

    // Neither a length that no memory has nor a file without an end gets further.
    for size in [0, u64::MAX] {
        let server = dirs.lying(Lies {
            endless: true,
            size: Some(size),
            ..Lies::default()
        });
        let sftp = server.session().await;
        let options = FileOptions::new().limit(1 << 20);
        let error = download::read(&sftp, "a", &options).await.unwrap_err();
        assert!(matches!(error, FilesError::TooLarge { .. }), "{error}");
        let error = download::copy(&sftp, "a", &dirs.host("a"), &options)
            .await
            .unwrap_err();
        assert!(matches!(error, FilesError::TooLarge { .. }), "{error}");
    }
    let server = dirs.lying(Lies {
        excess: true,
        ..Lies::default()
    });
    let error = from(&server, "a", &dirs.host("a")).await.unwrap_err();
    assert!(
        error.to_string().contains("violated the protocol"),
        "{error}"
    );
    // What was begun is gone.
    assert_eq!(fs::read_dir(dirs.host("")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_listing_reaches_nothing_outside_of_the_destination() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.guest("d")).unwrap();
    fs::write(dirs.guest("evil"), "evil").unwrap();
    let long = "n".repeat(256);
    for name in ["../evil", "/evil", "a/b", "", "a\0b", &long] {
        for mode in [REGULAR, DIRECTORY, 0o120_777] {
            let server = dirs.lying(Lies {
                listing: Some(vec![(name.to_owned(), mode)]),
                ..Lies::default()
            });
            let error = from(&server, "/d", &dirs.host("out")).await.unwrap_err();
            assert!(
                matches!(error, FilesError::Entry { .. }),
                "{name:?}: {error}"
            );
        }
    }
    for kind in [0o010_644, 0o020_644, 0o060_644, 0o140_755] {
        let server = dirs.lying(Lies {
            listing: Some(vec![("x".to_owned(), kind)]),
            ..Lies::default()
        });
        let error = from(&server, "/d", &dirs.host("out")).await.unwrap_err();
        assert!(matches!(error, FilesError::Special { .. }), "{error}");
    }
    assert!(!dirs.host("evil").exists() && !dirs.host("out/evil").exists());
    assert_eq!(fs::read_dir(dirs.host("out")).unwrap().count(), 0);

    // Directories without end.
    let server = dirs.lying(Lies {
        listing: Some(vec![("d".to_owned(), DIRECTORY)]),
        ..Lies::default()
    });
    let error = from(&server, "/d", &dirs.host("deep")).await.unwrap_err();
    assert!(matches!(error, FilesError::TooDeep { .. }), "{error}");
}

#[tokio::test]
async fn links_that_a_guest_sent_are_not_followed() {
    let dirs = Dirs::new();
    let outside = dirs.host("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "mine").unwrap();
    // First a link to a directory of the host's, and one to a file.
    fs::create_dir(dirs.guest("d")).unwrap();
    symlink(&outside, dirs.guest("d/x")).unwrap();
    symlink(outside.join("file"), dirs.guest("d/file")).unwrap();
    let server = dirs.server();
    from(&server, "/d", &dirs.host("out")).await.unwrap();
    assert_eq!(fs::read_link(dirs.host("out/x")).unwrap(), outside);

    // Then a directory and a file of these names.
    fs::remove_file(dirs.guest("d/file")).unwrap();
    fs::write(dirs.guest("d/file"), "evil").unwrap();
    from(&server, "/d", &dirs.host("out")).await.unwrap();
    assert_eq!(fs::read(dirs.host("out/file")).unwrap(), b"evil");
    fs::remove_file(dirs.guest("d/x")).unwrap();
    fs::create_dir(dirs.guest("d/x")).unwrap();
    fs::write(dirs.guest("d/x/file"), "evil").unwrap();
    let error = from(&server, "/d", &dirs.host("out")).await.unwrap_err();
    assert!(matches!(error, FilesError::Link { .. }), "{error}");
    assert!(error.to_string().contains("out/x"), "{error}");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);

    // Both in one listing.
    fs::write(dirs.guest("target"), "t").unwrap();
    mode(&dirs.guest("d/file"), 0o4755);
    fs::remove_file(dirs.host("out/x")).unwrap();
    from(&server, "/d", &dirs.host("out")).await.unwrap();
    let kept = dirs.host("out/file").metadata().unwrap().mode();
    assert_eq!(kept & 0o7777, 0o755, "no set-user-id bit");
}

#[tokio::test]
async fn errors_name_file_and_side() {
    let dirs = Dirs::new();
    let server = dirs.server();
    fs::write(dirs.host("a"), "a").unwrap();
    fs::create_dir(dirs.guest("d")).unwrap();

    let error = to(&server, &dirs.host("missing"), "/a").await.unwrap_err();
    assert!(matches!(error, FilesError::Host { .. }), "{error}");
    assert!(
        error.to_string().contains("host/missing on this host"),
        "{error}"
    );
    let error = to(&server, &dirs.host("a"), "/no/a").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot open /no/a in the guest: no such file or directory"
    );
    let error = to(&server, &dirs.host("a"), "/d").await.unwrap_err();
    assert!(error.to_string().contains("add '/' at its end"), "{error}");
    to(&server, &dirs.host("a"), "/d/").await.unwrap();
    assert_eq!(fs::read(dirs.guest("d/a")).unwrap(), b"a");

    let error = from(&server, "/missing", &dirs.host("b"))
        .await
        .unwrap_err();
    let FilesError::Guest { why, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*why, GuestReason::NotFound);
    let error = from(&server, "/d/a", &dirs.host("no/a")).await.unwrap_err();
    assert!(
        error.to_string().contains("host/no on this host"),
        "{error}"
    );
    fs::create_dir(dirs.host("e")).unwrap();
    let error = from(&server, "/d/a", &dirs.host("e")).await.unwrap_err();
    assert!(error.to_string().contains("add '/' at its end"), "{error}");

    let _socket = std::os::unix::net::UnixListener::bind(dirs.host("e/s")).unwrap();
    let error = to(&server, &dirs.host("e"), "/e").await.unwrap_err();
    assert!(
        error.to_string().contains("host/e/s is a socket"),
        "{error}"
    );
}

#[tokio::test]
async fn progress_goes_up_to_the_total() {
    let dirs = Dirs::new();
    let source = dirs.host("d");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), content(1 << 20)).unwrap();
    fs::write(source.join("b"), content(5)).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let options = FileOptions::new().progress({
        let seen = Arc::clone(&seen);
        move |p| seen.lock().unwrap().push(p.clone())
    });
    let sftp = dirs.server().session().await;
    let tree = Tree::of(&source).unwrap();
    upload::copy(&sftp, &source, "/d", tree, &options)
        .await
        .unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.first().unwrap().bytes, 0);
    assert!(seen.len() > 5, "{}", seen.len());
    assert!(seen.is_sorted_by_key(|p| p.bytes));
    let last = seen.last().unwrap();
    assert_eq!((last.bytes, last.files), ((1 << 20) + 5, 2));
    assert_eq!(last.total, Some((1 << 20) + 5));
    assert!(seen.iter().any(|p| p.path == "b"));
}

#[test]
fn guest_paths_begin_at_the_home_directory() {
    for (given, taken) in [
        ("/etc/hosts", "/etc/hosts"),
        ("a/b/", "a/b/"),
        ("~", "."),
        ("~/", "./"),
        ("~/a", "./a"),
        ("~user/a", "~user/a"),
    ] {
        assert_eq!(guest_path(given).unwrap(), taken);
    }
    for bad in ["", "a\0b"] {
        assert!(guest_path(bad).is_err(), "{bad:?}");
    }
    assert_eq!(shown("a\x1b[31mb\nc"), "ab c");
    assert!(shown(&"x".repeat(10_000)).len() < 500);
}
