//! A small HTTP server on loopback for tests of downloads: `GET` and `HEAD` with ranges (RFC 9110, section 14), and
//! connections that break on demand.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::error::{Context, Result};

/// Maximum bytes of a request's head.
const HEAD: u64 = 16 << 10;

/// How long a client may be silent before its connection is closed.
const PATIENCE: Duration = Duration::from_secs(30);

/// One request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path, without the query.
    pub path: String,
    /// Value of the `Range` header.
    pub range: Option<String>,
    /// Status of the answer.
    pub status: u16,
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    stop: AtomicBool,
    /// How many bytes of the next body are sent before its connection breaks; `u64::MAX` for all.
    cut: AtomicU64,
    requests: Mutex<Vec<Request>>,
}

impl Server {
    /// Serves the files below `root` on 127.0.0.1. A `port` of 0 chooses a free one.
    ///
    /// # Errors
    /// `root` is not a directory, or the port is taken.
    pub fn start(root: &Path, port: u16) -> Result<Self> {
        let root = fs::canonicalize(root).context(|| format!("cannot serve {}", root.display()))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .context(|| format!("cannot listen on port {port}"))?;
        let address = listener.local_addr().context(|| "cannot get the address")?;
        let shared = Arc::new(Shared {
            root,
            stop: AtomicBool::new(false),
            cut: AtomicU64::new(u64::MAX),
            requests: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A client that goes away is no failure of the server.
                thread::spawn(move || drop(shared.answer(&stream)));
            }
        });
        Ok(Self { address, shared })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of a file.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{}", self.address, path.trim_start_matches('/'))
    }

    /// Breaks the connection of the next answer after `bytes` of its body.
    pub fn cut_next(&self, bytes: u64) {
        self.shared.cut.store(bytes, Ordering::Relaxed);
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared
            .requests
            .lock()
            .map(|r| r.clone())
            .unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

/// The part of a file that a `Range` header requests.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// The whole file: there is no header, or one that may be ignored.
    All,
    /// From the first byte to the last, inclusive.
    Part(u64, u64),
    /// A part that the file does not have.
    Outside,
}

impl Range {
    fn of(header: Option<&str>, size: u64) -> Self {
        let Some((first, last)) = header
            .and_then(|h| h.trim().strip_prefix("bytes="))
            .and_then(|r| r.split_once('-'))
        else {
            return Self::All;
        };
        let (first, last) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
            (Ok(first), Err(_)) if last.trim().is_empty() => (first, size.saturating_sub(1)),
            (Err(_), Ok(length)) if first.trim().is_empty() => {
                (size.saturating_sub(length), size.saturating_sub(1))
            }
            // Several ranges, or none that is well formed: the whole file is a right answer.
            _ => return Self::All,
        };
        if first < size && first <= last {
            Self::Part(first, last)
        } else {
            Self::Outside
        }
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream.take(HEAD));
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_ascii_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let (mut range, mut if_range) = (None, None);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "range" => range = Some(value.trim().to_owned()),
                    "if-range" => if_range = Some(value.trim().to_owned()),
                    _ => {}
                }
            }
        }
        let log = |status| {
            if let Ok(mut requests) = self.requests.lock() {
                requests.push(Request {
                    method: method.clone(),
                    path: path.clone(),
                    range: range.clone(),
                    status,
                });
            }
        };
        let mut out = stream;
        let refuse = |mut out: &TcpStream, status: &str, more: &str| {
            write!(
                out,
                "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n"
            )
        };
        if method != "GET" && method != "HEAD" {
            log(405);
            return refuse(out, "405 Method Not Allowed", "Allow: GET, HEAD\r\n");
        }
        let Some(mut file) = self.open(&path) else {
            log(404);
            return refuse(out, "404 Not Found", "");
        };
        let meta = file.metadata()?;
        let size = meta.len();
        let tag = format!(
            "\"{:x}-{:x}-{:x}\"",
            meta.ino(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        // A condition that does not hold makes the range void (RFC 9110, section 13.1.5).
        let wanted = if if_range.is_none_or(|t| t == tag) {
            range.as_deref()
        } else {
            None
        };
        let (first, length, status) = match Range::of(wanted, size) {
            Range::All => (0, size, "200 OK"),
            Range::Part(first, last) => (first, last - first + 1, "206 Partial Content"),
            Range::Outside => {
                log(416);
                return refuse(
                    out,
                    "416 Range Not Satisfiable",
                    &format!("Content-Range: bytes */{size}\r\n"),
                );
            }
        };
        log(
            if length == size && first == 0 && status.starts_with("200") {
                200
            } else {
                206
            },
        );
        let mut head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nContent-Type: application/octet-stream\r\n\
             Accept-Ranges: bytes\r\nETag: {tag}\r\nConnection: close\r\n"
        );
        if status.starts_with("206") {
            head.push_str(&format!(
                "Content-Range: bytes {first}-{}/{size}\r\n",
                first + length - 1
            ));
        }
        head.push_str("\r\n");
        out.write_all(head.as_bytes())?;
        if method == "GET" {
            let cut = self.cut.swap(u64::MAX, Ordering::Relaxed);
            file.seek(SeekFrom::Start(first))?;
            std::io::copy(&mut file.take(length.min(cut)), &mut out)?;
        }
        out.flush()
    }

    /// The regular file below the root that a path names.
    fn open(&self, path: &str) -> Option<File> {
        let relative = Path::new(path.strip_prefix('/')?);
        if !relative
            .components()
            .all(|c| matches!(c, Component::Normal(_)))
        {
            return None;
        }
        let file = File::open(self.root.join(relative)).ok()?;
        file.metadata().ok()?.is_file().then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(server: &Server, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        write!(stream, "{request}\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        (
            String::from_utf8(answer[..end].to_vec()).unwrap(),
            answer[end + 4..].to_vec(),
        )
    }

    fn server() -> (tempfile::TempDir, Server) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"0123456789").unwrap();
        let server = Server::start(dir.path(), 0).unwrap();
        (dir, server)
    }

    #[test]
    fn ranges() {
        assert_eq!(Range::of(None, 10), Range::All);
        assert_eq!(Range::of(Some("bytes=2-4"), 10), Range::Part(2, 4));
        assert_eq!(Range::of(Some("bytes=2-"), 10), Range::Part(2, 9));
        assert_eq!(Range::of(Some("bytes=-3"), 10), Range::Part(7, 9));
        assert_eq!(Range::of(Some("bytes=-30"), 10), Range::Part(0, 9));
        assert_eq!(Range::of(Some("bytes=2-99"), 10), Range::Part(2, 9));
        assert_eq!(Range::of(Some("bytes=10-"), 10), Range::Outside);
        assert_eq!(Range::of(Some("bytes=0-"), 0), Range::Outside);
        assert_eq!(Range::of(Some("bytes=-0"), 10), Range::Outside);
        assert_eq!(Range::of(Some("bytes=1-2,4-5"), 10), Range::All);
        assert_eq!(Range::of(Some("lines=1-2"), 10), Range::All);
    }

    #[test]
    fn whole_files_parts_and_refusals() {
        let (_dir, server) = server();
        let (head, body) = ask(&server, "GET /file HTTP/1.1");
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("Content-Length: 10"),
            "{head}"
        );
        assert_eq!(body, b"0123456789");
        let (head, body) = ask(&server, "GET /file?x HTTP/1.1\r\nrange: bytes=7-");
        assert!(
            head.contains("206") && head.contains("Content-Range: bytes 7-9/10"),
            "{head}"
        );
        assert_eq!(body, b"789");
        let (head, body) = ask(&server, "HEAD /file HTTP/1.1");
        assert!(head.contains("Content-Length: 10") && body.is_empty());
        assert!(
            ask(&server, "GET /file HTTP/1.1\r\nRange: bytes=10-")
                .0
                .contains("416")
        );
        assert!(ask(&server, "GET /../file HTTP/1.1").0.contains("404"));
        assert!(ask(&server, "GET //etc/passwd HTTP/1.1").0.contains("404"));
        assert!(ask(&server, "PUT /file HTTP/1.1").0.contains("405"));
        let statuses: Vec<_> = server.requests().iter().map(|r| r.status).collect();
        assert_eq!(statuses, [200, 206, 200, 416, 404, 404, 405]);
    }

    #[test]
    fn a_range_of_another_version_is_void() {
        let (dir, server) = server();
        let (head, _) = ask(&server, "HEAD /file HTTP/1.1");
        let tag = head
            .lines()
            .find_map(|l| l.strip_prefix("ETag: "))
            .unwrap()
            .to_owned();
        let request = format!("GET /file HTTP/1.1\r\nRange: bytes=7-\r\nIf-Range: {tag}");
        assert_eq!(ask(&server, &request).1, b"789");
        fs::write(dir.path().join("new"), b"abcdefghij").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("file")).unwrap();
        assert_eq!(ask(&server, &request).1, b"abcdefghij");
    }

    #[test]
    fn a_cut_connection_ends_early_once() {
        let (_dir, server) = server();
        server.cut_next(4);
        assert_eq!(ask(&server, "GET /file HTTP/1.1").1, b"0123");
        assert_eq!(ask(&server, "GET /file HTTP/1.1").1, b"0123456789");
    }
}
