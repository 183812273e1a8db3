//! One download: resumable, hashed on the way, written sparsely, moved into place when verified.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::url::{ImageUrl, Place};
use super::{Image, ImageError, Sha256, Sidecar, sidecar_path};
#[cfg(feature = "download")]
use super::{client, range};
use crate::disk::format::{image_format, sniff};
use crate::progress::{Progress, ProgressEvent};
use crate::store::Lock;
#[cfg(feature = "download")]
use crate::util::fs::read_limited;
use crate::util::fs::{open_private, remove_file_if_there, sync_dir, write_atomic, write_sparse};

/// Number of network failures in a row, without any data between them, before giving up.
const ATTEMPTS: u32 = 4;
/// Maximum size of an image; anything larger is a mistake or an attack.
const LARGEST: u64 = 256 << 30;
/// Maximum number of chunks in memory between the network and the disk.
const QUEUE: usize = 32;

/// A download to do.
pub(super) struct Job<'a> {
    pub(super) reference: &'a str,
    pub(super) url: &'a ImageUrl,
    pub(super) sha256: Option<Sha256>,
    pub(super) path: &'a Path,
    pub(super) progress: &'a dyn Progress,
}

/// The state of a partial file, in `NAME.part.json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PartState {
    url: String,
    /// The value of `If-Range`: a strong entity tag or a date (RFC 9110 section 13.1.5).
    validator: Option<String>,
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// Trying again may help.
    Transient(ImageError),
    /// The partial file does not match the server's file: start again from the beginning.
    #[cfg_attr(not(feature = "download"), expect(dead_code))]
    Stale,
    Fatal(ImageError),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Fatal(error)
    }
}

impl Job<'_> {
    /// Downloads the image. `lock` is the image's lock, held.
    pub(super) async fn run(&self, lock: Lock) -> Result<Image, ImageError> {
        // Shared with the thread that writes, so that no other process begins while that still
        // drains its queue after this future was dropped.
        let lock = Arc::new(lock);
        let part = self.part();
        let mut failures = 0;
        let mut begun_anew = false;
        let (digest, bytes) = loop {
            let before = part_len(&part);
            match self.attempt(&lock).await {
                Ok(done) if self.sha256.is_none_or(|expected| expected == done.sha256) => {
                    break (done.sha256, done.bytes);
                }
                // The beginning was of another file, or damaged: once more, all of it.
                Ok(done) if done.resumed && !begun_anew => {
                    begun_anew = true;
                    self.discard()?;
                    self.progress.event(ProgressEvent::Retrying {
                        why: "the continued download has the wrong checksum",
                    });
                }
                Ok(done) => {
                    self.discard()?;
                    self.unlock(lock)?;
                    return Err(ImageError::Checksum {
                        url: self.url.to_string(),
                        expected: self.sha256.unwrap_or(done.sha256),
                        found: done.sha256,
                    });
                }
                Err(Failure::Stale) if !begun_anew => {
                    begun_anew = true;
                    self.discard()?;
                }
                Err(Failure::Stale) => {
                    return Err(ImageError::Network {
                        url: self.url.to_string(),
                        why: "the server sent invalid ranges".into(),
                    });
                }
                Err(Failure::Transient(error)) => {
                    failures = if part_len(&part) > before {
                        1
                    } else {
                        failures + 1
                    };
                    if failures >= ATTEMPTS {
                        return Err(error);
                    }
                    self.progress.event(ProgressEvent::Retrying {
                        why: &error.to_string(),
                    });
                    tokio::time::sleep(Duration::from_millis(250) * (1 << failures)).await;
                }
                Err(Failure::Fatal(error)) => {
                    if part_len(&part) == 0 {
                        self.discard()?;
                    }
                    return Err(error);
                }
            }
        };
        let finished = self.finish(digest, bytes);
        self.unlock(lock)?;
        let image = finished?;
        self.progress.event(ProgressEvent::Finished { bytes });
        Ok(image)
    }

    fn part(&self) -> PathBuf {
        with_suffix(self.path, ".part")
    }

    fn part_state(&self) -> PathBuf {
        with_suffix(self.path, ".part.json")
    }

    /// Removes the partial file.
    fn discard(&self) -> Result<(), ImageError> {
        for path in [self.part(), self.part_state()] {
            remove_file_if_there(&path).map_err(ImageError::io("remove", &path))?;
        }
        Ok(())
    }

    fn unlock(&self, lock: Arc<Lock>) -> Result<(), ImageError> {
        // The writing thread has ended; had it not, its end would give up the lock.
        if let Some(lock) = Arc::into_inner(lock) {
            lock.remove()?;
        }
        Ok(())
    }

    /// Moves the verified file into place.
    fn finish(&self, sha256: Sha256, bytes: u64) -> Result<Image, ImageError> {
        let part = self.part();
        let format = match image_format(&part, self.url.as_str()) {
            Ok(format) => format,
            Err(error) => {
                self.discard()?;
                return Err(error.into());
            }
        };
        // First what describes the file, then the file: without its description it is not used.
        let sidecar = sidecar_path(self.path);
        let text = serde_json::to_vec(&Sidecar {
            url: self.url.to_string(),
            sha256,
            bytes,
            format,
        })
        .map_err(|e| ImageError::io("describe", &sidecar)(e.into()))?;
        write_atomic(&sidecar, &text).map_err(ImageError::io("write", &sidecar))?;
        std::fs::rename(&part, self.path).map_err(ImageError::io("rename to", self.path))?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir).map_err(ImageError::io("sync", dir))?;
        }
        self.discard()?;
        Ok(Image {
            reference: self.reference.to_owned(),
            path: self.path.to_owned(),
            format,
            sha256: Some(sha256),
            bytes,
        })
    }

    /// The number of bytes that can be continued from, and the validator for `If-Range`.
    #[cfg(feature = "download")]
    fn resumable(&self) -> (u64, Option<String>) {
        let state = read_limited(&self.part_state(), 1 << 16)
            .ok()
            .and_then(|text| serde_json::from_slice::<PartState>(&text).ok());
        match state {
            // With neither validator nor checksum a continued file could be of two halves.
            Some(state)
                if state.url == self.url.as_str()
                    && (state.validator.is_some() || self.sha256.is_some()) =>
            {
                (part_len(&self.part()), state.validator)
            }
            _ => (0, None),
        }
    }

    /// One attempt: requests the rest of the file and receives it.
    async fn attempt(&self, lock: &Arc<Lock>) -> Result<Done, Failure> {
        let body = match self.url.place() {
            Place::File(path) => open_file(path).await?,
            Place::Web(uri) => self.request(uri).await?,
        };
        let too_large = body.total.is_some_and(|total| total > LARGEST);
        if too_large {
            return Err(Failure::Fatal(self.too_large()));
        }
        if !matches!(body.source, Source::Complete) {
            self.begin(&body)?;
        }
        self.receive(lock, body).await
    }

    #[cfg(feature = "download")]
    async fn request(&self, uri: &http::Uri) -> Result<Body, Failure> {
        let (offset, validator) = self.resumable();
        range::rest(self, uri, offset, validator).await
    }

    #[cfg(not(feature = "download"))]
    async fn request(&self, _: &http::Uri) -> Result<Body, Failure> {
        Err(Failure::Fatal(ImageError::DownloadDisabled {
            url: self.url.to_string(),
        }))
    }

    /// Records what is being received, before the first byte is written.
    fn begin(&self, body: &Body) -> Result<(), ImageError> {
        if body.offset == 0 {
            // An old beginning must not be taken for one of the new file.
            self.discard()?;
        }
        let path = self.part_state();
        let text = serde_json::to_vec(&PartState {
            url: self.url.to_string(),
            validator: body.validator.clone(),
        })
        .map_err(|e| ImageError::io("describe", &path)(e.into()))?;
        write_atomic(&path, &text).map_err(ImageError::io("write", &path))?;
        self.progress.event(ProgressEvent::Started {
            image: self.reference,
            url: self.url.as_str(),
            resumed_from: body.offset,
            total: body.total,
            verified: self.sha256.is_some(),
        });
        Ok(())
    }

    /// Passes the body to the thread that writes and hashes, and waits for both to end.
    async fn receive(&self, lock: &Arc<Lock>, mut body: Body) -> Result<Done, Failure> {
        let part = self.part();
        let (sender, queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let writer = tokio::task::spawn_blocking({
            let lock = Arc::clone(lock);
            let part = part.clone();
            let offset = body.offset;
            move || {
                let result = write_part(&part, offset, queue);
                drop(lock);
                result
            }
        });
        let mut received = body.offset;
        let outcome = loop {
            match body.chunk().await {
                Ok(None) => break Ok(()),
                Ok(Some(chunk)) => {
                    // Better to fail at the first byte than after gigabytes.
                    if received == 0
                        && self.sha256.is_none()
                        && let Err(error) = sniff(&chunk, self.url.as_str())
                    {
                        break Err(Failure::Fatal(error.into()));
                    }
                    received += chunk.len() as u64;
                    if received > LARGEST {
                        break Err(Failure::Fatal(self.too_large()));
                    }
                    if sender.send(chunk).await.is_err() {
                        // The writer has failed and says why below.
                        break Ok(());
                    }
                    self.progress
                        .event(ProgressEvent::Advanced { bytes: received });
                }
                #[cfg(feature = "download")]
                Err(BodyError::Network(error)) => {
                    break Err(Failure::Transient(error.at(self.url)));
                }
                Err(BodyError::File(error, path)) => {
                    break Err(Failure::Fatal(ImageError::io("read", &path)(error)));
                }
            }
        };
        drop(sender);
        let written = writer
            .await
            .unwrap_or_else(|e| Err((io::Error::other(e), received)));
        let (sha256, bytes) = match written {
            Ok(written) => written,
            Err((error, written)) => {
                return Err(Failure::Fatal(self.write_error(error, written, body.total)));
            }
        };
        if let Err(failure) = outcome {
            if let Failure::Fatal(_) = failure {
                self.discard()?;
            }
            return Err(failure);
        }
        if let Some(total) = body.total
            && total != bytes
        {
            return Err(Failure::Transient(ImageError::Network {
                url: self.url.to_string(),
                why: format!("the connection ended after {bytes} of {total} bytes"),
            }));
        }
        Ok(Done {
            sha256,
            bytes,
            resumed: body.offset > 0,
        })
    }

    fn write_error(&self, error: io::Error, written: u64, total: Option<u64>) -> ImageError {
        let path = self.part();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                // A full disk is of no use to anybody: give back what was taken.
                if let Err(error) = self.discard() {
                    return error;
                }
                ImageError::DiskFull {
                    path: self.path.to_owned(),
                    written,
                    total,
                }
            }
            _ => ImageError::io("write", &path)(error),
        }
    }

    fn too_large(&self) -> ImageError {
        ImageError::not_an_image(
            self.url.as_str(),
            format!("it is larger than {} GiB", LARGEST >> 30),
        )
    }
}

/// A file that has been received whole.
struct Done {
    sha256: Sha256,
    bytes: u64,
    resumed: bool,
}

/// The rest of a file, starting at `offset`.
pub(super) struct Body {
    pub(super) source: Source,
    pub(super) offset: u64,
    /// Size of the whole file.
    pub(super) total: Option<u64>,
    pub(super) validator: Option<String>,
}

pub(super) enum Source {
    #[cfg(feature = "download")]
    Web(client::Answer),
    File(tokio::fs::File, PathBuf),
    /// The partial file is the whole file.
    #[cfg_attr(not(feature = "download"), expect(dead_code))]
    Complete,
}

enum BodyError {
    #[cfg(feature = "download")]
    Network(client::RequestError),
    File(io::Error, PathBuf),
}

impl Body {
    async fn chunk(&mut self) -> Result<Option<Vec<u8>>, BodyError> {
        match &mut self.source {
            #[cfg(feature = "download")]
            Source::Web(answer) => answer.chunk().await.map_err(BodyError::Network),
            Source::File(file, path) => {
                let mut buffer = vec![0; 1 << 18];
                match file.read(&mut buffer).await {
                    Ok(0) => Ok(None),
                    Ok(n) => {
                        buffer.truncate(n);
                        Ok(Some(buffer))
                    }
                    Err(e) => Err(BodyError::File(e, path.clone())),
                }
            }
            Source::Complete => Ok(None),
        }
    }
}

async fn open_file(path: &Path) -> Result<Body, ImageError> {
    let file = tokio::fs::File::open(path)
        .await
        .map_err(ImageError::io("open", path))?;
    let total = file.metadata().await.ok().map(|m| m.len());
    Ok(Body {
        source: Source::File(file, path.to_owned()),
        offset: 0,
        total,
        validator: None,
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn part_len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// Writes the chunks from `queue`, starting at `offset`, and returns the sum and size of the whole
/// file. An error comes with the number of bytes written before it.
fn write_part(
    path: &Path,
    offset: u64,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> Result<(Sha256, u64), (io::Error, u64)> {
    let at = |position| move |e| (e, position);
    let mut file = open_private(path).map_err(at(0))?;
    // Everything from here on is a hole, which zeros are left to be.
    file.set_len(offset).map_err(at(0))?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 18];
    let mut hashed = 0;
    while hashed < offset {
        match file.read(&mut buffer) {
            Ok(0) => return Err((io::ErrorKind::UnexpectedEof.into(), hashed)),
            Ok(n) => {
                context.update(buffer.get(..n).unwrap_or_default());
                hashed += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((e, hashed)),
        }
    }
    let mut position = offset;
    while let Some(chunk) = queue.blocking_recv() {
        context.update(&chunk);
        write_sparse(&file, position, &chunk).map_err(at(position))?;
        position += chunk.len() as u64;
    }
    // Zeros at the end were not written.
    file.set_len(position).map_err(at(position))?;
    file.sync_all().map_err(at(position))?;
    Ok((Sha256::from_digest(&context.finish()), position))
}
