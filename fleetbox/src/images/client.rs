//! The HTTP client. It blocks, so each request has a separate thread.

use std::io::Read as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use tokio::sync::{mpsc, oneshot};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, ResponseExt as _};

use super::url::{ImageUrl, Place};
use super::{ImageError, proxy};

/// How long the server may be silent before the connection counts as broken.
const STALL: Duration = Duration::from_secs(60);
/// Limit for looking up a name, and for connecting.
const CONNECT: Duration = Duration::from_secs(30);
/// Maximum number of redirects that are followed.
const REDIRECTS: u32 = 10;
/// Maximum bytes of a chunk of a body.
const CHUNK: usize = 1 << 17;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum RequestError {
    /// Trying again may help.
    Transient(String),
    /// Trying again would fail the same way.
    Fatal(String),
    /// TLS servers cannot be verified.
    Tls(String),
}

impl RequestError {
    /// The error of a download from `url`.
    pub(super) fn at(self, url: &ImageUrl) -> ImageError {
        match self {
            Self::Tls(why) => ImageError::Tls { why },
            Self::Transient(why) | Self::Fatal(why) => ImageError::Network {
                url: url.to_string(),
                why,
            },
        }
    }
}

impl From<ureq::Error> for RequestError {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::RequireHttpsOnly(_) => Self::Fatal(
                "it redirects from https to http, and there is no checksum to verify the content with".to_owned(),
            ),
            // Made before there is a connection; what a handshake finds is an I/O error.
            ureq::Error::Rustls(error) => Self::Tls(error.to_string()),
            ureq::Error::TooManyRedirects
            | ureq::Error::RedirectFailed
            | ureq::Error::BadUri(_)
            | ureq::Error::Http(_)
            | ureq::Error::InvalidProxyUrl => Self::Fatal(causes(&error)),
            error => Self::Transient(causes(&error)),
        }
    }
}

/// The answer to a request. Dropping it closes its connection.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    chunks: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    _connection: Connection,
}

#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    /// The address, after redirects.
    pub(super) uri: Uri,
    /// Number of bytes of the body.
    pub(super) length: Option<u64>,
}

impl Answer {
    /// The next bytes of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, RequestError> {
        match self.chunks.recv().await {
            Some(Ok(chunk)) => Ok((!chunk.is_empty()).then_some(chunk)),
            Some(Err(error)) => Err(RequestError::Transient(causes(&error))),
            None => Err(RequestError::Transient(
                "the request's thread ended before the body did".to_owned(),
            )),
        }
    }
}

/// Interrupts the thread of a request when it is dropped.
#[derive(Debug)]
struct Connection(Agent);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.clone().shutdown();
    }
}

/// Requests `uri`. If `verified` is set, the content has a checksum and may come over any
/// connection.
pub(super) async fn get(
    uri: &Uri,
    verified: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> Result<Answer, RequestError> {
    let mut request = Request::get(uri.clone()).header(header::ACCEPT_ENCODING, "identity");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request
        .body(())
        .map_err(|e| RequestError::Fatal(e.to_string()))?;
    let agent = agent(uri, verified)?;
    let connection = Connection(agent.clone());
    let (head_sender, head) = oneshot::channel();
    let (chunk_sender, chunks) = mpsc::channel(1);
    // Not a task of the runtime, which would wait for it at its end.
    thread::Builder::new()
        .name("download".to_owned())
        .spawn(move || {
            let response = match agent.run(request) {
                Ok(response) => response,
                Err(error) => return drop(head_sender.send(Err(error))),
            };
            let head = Head {
                status: response.status(),
                headers: response.headers().clone(),
                uri: response.get_uri().clone(),
                length: response.body().content_length(),
            };
            if head_sender.send(Ok(head)).is_ok() {
                pass_on(response.into_body(), &chunk_sender);
            }
        })
        .map_err(|e| RequestError::Fatal(format!("cannot start a thread: {e}")))?;
    let head = head
        .await
        .map_err(|_| RequestError::Fatal("the request's thread has panicked".to_owned()))??;
    Ok(Answer {
        head,
        chunks,
        _connection: connection,
    })
}

/// Sends a body in chunks, with an empty one at its end, until it fails or the receiver is gone.
fn pass_on(body: ureq::Body, chunks: &mpsc::Sender<std::io::Result<Vec<u8>>>) {
    let mut reader = body.into_reader();
    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk = match reader.read(&mut buffer) {
            Ok(n) => Ok(buffer.get(..n).unwrap_or_default().to_vec()),
            Err(error) => Err(error),
        };
        let last = !chunk.as_ref().is_ok_and(|chunk| !chunk.is_empty());
        if chunks.blocking_send(chunk).is_err() || last {
            return;
        }
    }
}

fn agent(uri: &Uri, verified: bool) -> Result<Agent, RequestError> {
    // The provider is named here: nothing depends on, or sets, the process-wide default.
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let secure = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    let proxy = proxy::of(uri, |name| std::env::var(name).ok())?;
    Ok(Agent::config_builder()
        .tls_config(tls)
        .proxy(proxy)
        .https_only(secure && !verified)
        .http_status_as_error(false)
        .max_redirects(REDIRECTS)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(STALL))
        .timeout_per_write(Some(STALL))
        .user_agent(concat!("fleetbox/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent())
}

/// The text of a page of at most `limit` bytes.
///
/// # Errors
/// As for a download.
pub(super) async fn page(url: &ImageUrl, limit: usize) -> Result<String, ImageError> {
    let Place::Web(uri) = url.place() else {
        return Err(
            RequestError::Fatal("it is a local file, not a page on a server".to_owned()).at(url),
        );
    };
    let mut answer = get(uri, false, Vec::new()).await.map_err(|e| e.at(url))?;
    if !answer.head.status.is_success() {
        return Err(ImageError::Status {
            url: answer.head.uri.to_string(),
            status: answer.head.status.to_string(),
            advice: "; the distribution may have moved its images",
        });
    }
    let mut page = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| e.at(url))? {
        if page.len() + chunk.len() > limit {
            let why = format!("the page has more than {limit} bytes");
            return Err(RequestError::Fatal(why).at(url));
        }
        page.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// An error with all its causes, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
