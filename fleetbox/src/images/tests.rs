//! Downloads from a small HTTP server in this process.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};

use super::*;
use crate::disk::format_test::qcow2;

/// How the server misbehaves.
#[derive(Debug, Clone, Default)]
struct Behaviour {
    content: Vec<u8>,
    etag: Option<&'static str>,
    /// Answers these statuses first, one for each request.
    statuses: Vec<&'static str>,
    /// Closes the connection after so many bytes of the first bodies, one entry for each.
    cuts: Vec<usize>,
    /// Answers these statuses after a body that was cut.
    after_cut: Vec<&'static str>,
    /// Ignores `Range`.
    no_ranges: bool,
    /// Sends everybody elsewhere.
    redirect: Option<String>,
    /// Waits before each body.
    delay: Duration,
}

struct Server {
    address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    /// The `Range` of each request, or an empty text.
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            behaviour: Arc::new(Mutex::new(behaviour)),
            ranges: Arc::default(),
        };
        let behaviour = Arc::clone(&server.behaviour);
        let ranges = Arc::clone(&server.ranges);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let behaviour = Arc::clone(&behaviour);
                let ranges = Arc::clone(&ranges);
                // A client that goes away is no failure of the server.
                std::thread::spawn(move || drop(answer(stream, &behaviour, &ranges)));
            }
        });
        server
    }

    fn url(&self) -> ImageUrl {
        ImageUrl::parse(&format!("http://{}/x/disk.raw", self.address)).unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.ranges.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    behaviour: &Mutex<Behaviour>,
    ranges: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut headers = std::collections::HashMap::new();
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ") {
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
    }
    let (now, status, cut) = {
        let mut b = behaviour.lock().unwrap();
        let status = (!b.statuses.is_empty()).then(|| b.statuses.remove(0));
        let cut = (status.is_none() && !b.cuts.is_empty()).then(|| b.cuts.remove(0));
        let now = b.clone();
        if cut.is_some() {
            b.statuses = std::mem::take(&mut b.after_cut);
        }
        (now, status, cut)
    };
    let range = headers.get("range").cloned().unwrap_or_default();
    ranges.lock().unwrap().push(range.clone());
    if let Some(status) = status {
        return write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if let Some(target) = &now.redirect {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let total = now.content.len();
    let fresh = headers
        .get("if-range")
        .is_none_or(|tag| Some(tag.as_str()) == now.etag);
    let first = range
        .strip_prefix("bytes=")
        .and_then(|r| r.trim_end_matches('-').parse::<usize>().ok())
        .filter(|_| fresh && !now.no_ranges);
    let mut head = match first {
        Some(first) if first >= total => {
            return write!(
                stream,
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{total}\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        Some(first) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{}/{total}\r\n",
            total - 1
        ),
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    let body = &now.content[first.unwrap_or(0)..];
    if let Some(etag) = now.etag {
        head += &format!("ETag: {etag}\r\n");
    }
    head += &format!(
        "Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    std::thread::sleep(now.delay);
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}

/// Remembers what happened.
#[derive(Default)]
struct Recorded(Mutex<Vec<String>>);

impl Progress for Recorded {
    fn event(&self, event: ProgressEvent<'_>) {
        let text = match event {
            ProgressEvent::Advanced { .. } => return,
            ProgressEvent::Waiting { .. } => "waiting".to_owned(),
            ProgressEvent::Started { resumed_from, .. } => format!("started {resumed_from}"),
            ProgressEvent::Retrying { .. } => "retrying".to_owned(),
            ProgressEvent::Finished { bytes } => format!("finished {bytes}"),
            ProgressEvent::Failed => "failed".to_owned(),
            other => unreachable!("no event of a download: {other:?}"),
        };
        self.0.lock().unwrap().push(text);
    }
}

impl Recorded {
    fn events(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

struct Setup {
    _dir: tempfile::TempDir,
    images: Images,
    recorded: Recorded,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state")).unwrap();
        Self {
            images: Images::with_catalogue(&store, Catalogue::built_in().unwrap(), Arch::Amd64),
            recorded: Recorded::default(),
            _dir: dir,
        }
    }

    /// With `tiny` in the catalogue, found at `url` and summed over `content`.
    fn with_tiny(url: &str, content: &[u8]) -> (Self, ImageSource) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("catalogue.json");
        let text = serde_json::json!({"format": 1, "images": {
            "tiny": {"amd64": {"url": url, "sha256": Sha256::of(content)}},
        }});
        fs::write(&file, text.to_string()).unwrap();
        let store = Store::open(dir.path().join("state")).unwrap();
        let catalogue = Catalogue::load_with(Some(&file)).unwrap();
        let images = Images::with_catalogue(&store, catalogue, Arch::Amd64);
        let tiny = images.resolve(&"tiny".parse().unwrap()).unwrap();
        let setup = Self {
            images,
            recorded: Recorded::default(),
            _dir: dir,
        };
        (setup, tiny)
    }

    async fn pull(&self, image: &ImageSource) -> Result<Image, ImageError> {
        self.images.pull(image, &self.recorded).await
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.images.dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// A disk of 3 MiB that begins like a boot sector, with a hole in the middle.
fn disk() -> Vec<u8> {
    let mut content = vec![0; 3 << 20];
    for (i, byte) in content.iter_mut().enumerate().take(1 << 20) {
        *byte = (i % 251) as u8;
    }
    content[(3 << 20) - 5000..(3 << 20) - 4500].fill(9);
    content
}

fn serve(content: Vec<u8>) -> Behaviour {
    Behaviour {
        content,
        etag: Some("\"v1\""),
        ..Behaviour::default()
    }
}

#[test]
fn references_are_told_apart() {
    let parse = |text: &str| text.parse::<ImageRef>();
    assert_eq!(
        parse("debian-12").unwrap(),
        ImageRef::Alias("debian-12".into())
    );
    for path in ["./x", "/x/y", "x/y", "disk.qcow2", "a.img", ".."] {
        assert_eq!(parse(path).unwrap(), ImageRef::Path(path.into()));
    }
    assert_eq!(parse("file:///x/y").unwrap(), ImageRef::Path("/x/y".into()));
    assert!(matches!(
        parse("https://h/x.raw").unwrap(),
        ImageRef::Url(_)
    ));
    for bad in [
        "",
        "ftp://h/x",
        "http://",
        "debian 12",
        "-x",
        "a:b",
        "file://host/x",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn unknown_aliases_and_architectures_are_explained() {
    let setup = Setup::new();
    let unknown = setup.images.resolve(&"debian-99".parse().unwrap());
    let text = unknown.unwrap_err().to_string();
    assert!(
        text.contains("debian-12") && text.contains("./debian-99"),
        "{text}"
    );

    let (tiny, _) = Setup::with_tiny("http://h/x", b"");
    let arm = Images {
        arch: Arch::Arm64,
        ..tiny.images
    };
    let error = arm.resolve(&"tiny".parse().unwrap()).unwrap_err();
    assert!(matches!(
        error,
        ImageError::NoArch {
            arch: Arch::Arm64,
            ..
        }
    ));
}

#[tokio::test]
async fn local_files_are_used_in_place() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.raw");
    fs::write(&path, disk()).unwrap();
    let resolved = setup.images.resolve(&ImageRef::Path(path.clone())).unwrap();
    let image = setup.pull(&resolved).await.unwrap();
    assert_eq!(
        (image.path, image.format, image.sha256),
        (path.clone(), ImageFormat::Raw, None)
    );
    assert!(setup.files().is_empty());

    fs::write(&path, qcow2(None)).unwrap();
    assert_eq!(
        setup.pull(&resolved).await.unwrap().format,
        ImageFormat::Qcow2
    );
    for (content, why) in [
        (&b"\xfd7zXZ\0rest"[..], "xz -d"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\n <!DOCTYPE html>", "web page"),
        (b"", "empty"),
    ] {
        fs::write(&path, content).unwrap();
        let error = setup.pull(&resolved).await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("x.raw"), "{error}");
    }
    let error = setup.images.resolve(&ImageRef::Path(dir.path().into()));
    assert!(error.unwrap_err().to_string().contains("directory"));
    let missing = ImageRef::Path(dir.path().join("none"));
    assert!(matches!(
        setup.images.resolve(&missing),
        Err(ImageError::Io { .. })
    ));
}

/// Whatever the way by which it comes, and though its checksum is right.
#[tokio::test]
async fn an_image_that_names_a_file_of_the_host_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, [7; 4096]).unwrap();
    for named in [secret.to_str().unwrap(), "secret", "json:{}", "nbd://h/x"] {
        let evil = qcow2(Some(named));
        let path = dir.path().join("evil.qcow2");
        fs::write(&path, &evil).unwrap();
        let server = Server::new(serve(evil.clone()));
        let (setup, alias) = Setup::with_tiny(server.url().as_str(), &evil);
        let resolve = |reference| setup.images.resolve(&reference).unwrap();
        for source in [
            resolve(ImageRef::Path(path.clone())),
            resolve(ImageRef::Url(server.url())),
            resolve(format!("file://{}", path.display()).parse().unwrap()),
            alias,
        ] {
            let error = setup.pull(&source).await.unwrap_err();
            assert!(matches!(error, ImageError::Format(_)), "{error}");
            let text = error.to_string();
            assert!(
                text.contains(named) && text.contains("backing file"),
                "{text}"
            );
            assert!(!text.contains(".part"), "{text}");
        }
        assert!(setup.files().is_empty(), "{:?}", setup.files());
    }
}

#[tokio::test]
async fn a_download_is_verified_sparse_and_made_once() {
    let server = Server::new(serve(disk()));
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    assert!(setup.images.cached(&tiny).unwrap().is_none());
    let image = setup.pull(&tiny).await.unwrap();
    assert_eq!(image.sha256, Some(Sha256::of(&disk())));
    assert_eq!(image.format, ImageFormat::Raw);
    assert!(fs::read(&image.path).unwrap() == disk());
    let metadata = fs::metadata(&image.path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 < 2 << 20, "zeros take no space");
    assert_eq!(setup.recorded.events(), ["started 0", "finished 3145728"]);
    assert_eq!(setup.files().len(), 2, "{:?}", setup.files());

    assert_eq!(setup.pull(&tiny).await.unwrap(), image);
    assert_eq!(server.requests().len(), 1);
    let listed = setup.images.list().unwrap();
    let tiny_line = listed.iter().find(|l| l.alias == "tiny").unwrap();
    assert_eq!(tiny_line.path.as_ref(), Some(&image.path));

    // A file that was cut is not used.
    fs::File::options()
        .write(true)
        .open(&image.path)
        .unwrap()
        .set_len(5)
        .unwrap();
    assert!(setup.pull(&tiny).await.is_ok());
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_wrong_checksum_names_both_sums_and_leaves_nothing() {
    let server = Server::new(serve(b"something else".to_vec()));
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let error = setup.pull(&tiny).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&Sha256::of(&disk()).to_string()), "{text}");
    assert!(
        text.contains(&Sha256::of(b"something else").to_string()),
        "{text}"
    );
    assert!(setup.files().is_empty(), "{:?}", setup.files());
    assert_eq!(setup.recorded.events().last().unwrap(), "failed");
}

#[tokio::test]
async fn a_cut_connection_is_continued() {
    let server = Server::new(Behaviour {
        cuts: vec![700_000, 500_001],
        ..serve(disk())
    });
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let image = setup.pull(&tiny).await.unwrap();
    assert!(fs::read(image.path).unwrap() == disk());
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests[1].starts_with("bytes=") && requests[2].starts_with("bytes="));
}

#[tokio::test]
async fn a_later_pull_continues_and_notices_a_changed_file() {
    let server = Server::new(Behaviour {
        cuts: vec![700_000],
        after_cut: vec!["503 Busy"; 4],
        ..serve(disk())
    });
    let setup = Setup::new();
    let resolved = setup.images.resolve(&ImageRef::Url(server.url())).unwrap();
    // The first pull gets a part and then only refusals.
    let error = setup.pull(&resolved).await.unwrap_err();
    assert!(matches!(error, ImageError::Status { .. }), "{error}");
    assert!(setup.files().iter().any(|f| f.ends_with(".part")));
    server.behaviour.lock().unwrap().statuses.clear();
    let image = setup.pull(&resolved).await.unwrap();
    assert!(fs::read(&image.path).unwrap() == disk());
    assert!(server.requests().last().unwrap().starts_with("bytes="));

    // The same again, but the file on the server is another one by then.
    fs::remove_file(&image.path).unwrap();
    {
        let mut b = server.behaviour.lock().unwrap();
        b.cuts = vec![700_000];
        b.after_cut = vec!["503 Busy"; 4];
    }
    setup.pull(&resolved).await.unwrap_err();
    {
        let mut b = server.behaviour.lock().unwrap();
        b.statuses.clear();
        b.etag = Some("\"v2\"");
        b.content = vec![5; 2 << 20];
    }
    let image = setup.pull(&resolved).await.unwrap();
    assert!(fs::read(&image.path).unwrap() == vec![5; 2 << 20]);
}

#[tokio::test]
async fn a_damaged_part_is_fetched_anew() {
    let server = Server::new(serve(disk()));
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let Source::Download { file, .. } = &tiny.source else {
        panic!("a download");
    };
    let part = setup.images.dir.join(format!("{file}.part"));
    fs::write(&part, vec![1; 1 << 20]).unwrap();
    let state = serde_json::json!({"url": server.url().as_str(), "validator": "\"v1\""});
    fs::write(
        setup.images.dir.join(format!("{file}.part.json")),
        state.to_string(),
    )
    .unwrap();
    let image = setup.pull(&tiny).await.unwrap();
    assert!(fs::read(image.path).unwrap() == disk());
    assert_eq!(server.requests(), ["bytes=1048576-", ""]);
}

#[tokio::test]
async fn a_complete_part_needs_no_more_bytes() {
    let server = Server::new(serve(disk()));
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let Source::Download { file, .. } = &tiny.source else {
        panic!("a download");
    };
    fs::write(setup.images.dir.join(format!("{file}.part")), disk()).unwrap();
    let state = serde_json::json!({"url": server.url().as_str(), "validator": "\"v1\""});
    fs::write(
        setup.images.dir.join(format!("{file}.part.json")),
        state.to_string(),
    )
    .unwrap();
    assert!(setup.pull(&tiny).await.is_ok());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn servers_without_ranges_and_with_redirections_work() {
    let server = Server::new(Behaviour {
        cuts: vec![700_000],
        no_ranges: true,
        statuses: vec!["503 Busy"],
        ..serve(disk())
    });
    // Another host name, as mirrors have.
    let target = server.url().as_str().replace("127.0.0.1", "localhost");
    let front = Server::new(Behaviour {
        redirect: Some(target),
        ..Behaviour::default()
    });
    let (setup, tiny) = Setup::with_tiny(front.url().as_str(), &disk());
    let image = setup.pull(&tiny).await.unwrap();
    assert!(fs::read(image.path).unwrap() == disk());
}

#[tokio::test]
async fn errors_of_the_server_are_told_and_leave_nothing() {
    let server = Server::new(Behaviour {
        statuses: vec!["404 Not Found"],
        ..Behaviour::default()
    });
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let text = setup.pull(&tiny).await.unwrap_err().to_string();
    assert!(
        text.contains("404 Not Found; the image was moved"),
        "{text}"
    );
    assert_eq!(server.requests().len(), 1, "not tried again");
    assert!(!setup.files().iter().any(|f| f.contains(".part")));

    // Nobody listens.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (setup, tiny) = Setup::with_tiny(&format!("http://{free}/x.raw"), &disk());
    let text = setup.pull(&tiny).await.unwrap_err().to_string();
    assert!(text.contains("refused"), "{text}");
}

#[tokio::test]
async fn what_is_no_image_is_refused_at_its_first_byte() {
    let server = Server::new(serve(b"<html>sign in</html>".to_vec()));
    let setup = Setup::new();
    let resolved = setup.images.resolve(&ImageRef::Url(server.url())).unwrap();
    let error = setup.pull(&resolved).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Format(FormatError::NotAnImage { .. })),
        "{error}"
    );
    assert!(!setup.files().iter().any(|f| f.contains(".part")));
}

#[tokio::test]
async fn one_downloads_and_the_others_wait() {
    let server = Server::new(Behaviour {
        delay: Duration::from_millis(300),
        ..serve(disk())
    });
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let others = [Recorded::default(), Recorded::default()];
    let (a, b, c) = tokio::join!(
        setup.pull(&tiny),
        setup.images.pull(&tiny, &others[0]),
        setup.images.pull(&tiny, &others[1]),
    );
    assert_eq!(a.unwrap(), b.unwrap());
    c.unwrap();
    assert_eq!(server.requests().len(), 1);
    for other in &others {
        assert_eq!(other.events(), ["waiting"]);
    }
    assert_eq!(setup.files().len(), 2, "{:?}", setup.files());
}

#[tokio::test]
async fn a_dropped_pull_can_be_taken_up() {
    let server = Server::new(Behaviour {
        delay: Duration::from_millis(200),
        ..serve(disk())
    });
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let dropped = tokio::time::timeout(Duration::from_millis(50), setup.pull(&tiny)).await;
    assert!(dropped.is_err());
    let image = setup.pull(&tiny).await.unwrap();
    assert!(fs::read(image.path).unwrap() == disk());
}

#[tokio::test]
async fn catalogue_files_may_be_local() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.qcow2");
    let mut content = qcow2(None);
    content.resize(70_000, 3);
    fs::write(&path, &content).unwrap();
    let url = format!("file://{}", path.display());
    let (setup, tiny) = Setup::with_tiny(&url, &content);
    let image = setup.pull(&tiny).await.unwrap();
    assert_eq!(image.format, ImageFormat::Qcow2);
    assert_ne!(image.path, path);
    assert!(fs::read(&image.path).unwrap() == content);

    fs::write(&path, b"changed").unwrap();
    let (setup, tiny) = Setup::with_tiny(&url, &content);
    assert!(matches!(
        setup.pull(&tiny).await,
        Err(ImageError::Checksum { .. })
    ));
    assert!(setup.files().is_empty());
}

#[tokio::test]
async fn https_needs_no_process_wide_provider() {
    // A TLS handshake with what speaks no TLS fails, and nothing panics on the way.
    let server = Server::new(serve(disk()));
    let url = format!("https://{}/x.raw", server.address);
    let (setup, tiny) = Setup::with_tiny(&url, &disk());
    let error = setup.pull(&tiny).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Network { .. } | ImageError::Tls { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn redirections_are_bounded() {
    let server = Server::new(serve(disk()));
    server.behaviour.lock().unwrap().redirect = Some(server.url().to_string());
    let (setup, tiny) = Setup::with_tiny(server.url().as_str(), &disk());
    let error = setup.pull(&tiny).await.unwrap_err();
    assert!(matches!(error, ImageError::Network { .. }), "{error}");
    assert_eq!(server.requests().len(), 11, "not tried again");
}

#[tokio::test]
async fn a_dropped_pull_closes_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.raw", listener.local_addr().unwrap());
    let (begun, wait) = tokio::sync::oneshot::channel();
    // Sends a part of the body, and then waits for the client's end of the connection.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        assert!(lines.map(Result::unwrap).any(|line| line.is_empty()));
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n12345678";
        stream.write_all(head.as_bytes()).unwrap();
        begun.send(()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        std::io::Read::read(&mut stream, &mut [0])
    });
    let (setup, tiny) = Setup::with_tiny(&url, &disk());
    tokio::select! {
        result = setup.pull(&tiny) => panic!("{result:?}"),
        begun = wait => begun.unwrap(),
    }
    let end = tokio::task::spawn_blocking(|| server.join().unwrap());
    assert_eq!(end.await.unwrap().unwrap(), 0);
}
