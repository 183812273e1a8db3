//! Images: resolves an alias, a path or an address, and downloads it.
//!
//! An image is the read-only base of VMs' disks. It is raw or qcow2 and used as it is, without conversion. Downloads
//! are kept in `images/` of the state directory.

mod catalogue;
#[cfg(feature = "download")]
mod client;
mod download;
mod maintenance;
#[cfg(feature = "download")]
mod proxy;
#[cfg(feature = "download")]
mod range;
mod url;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::catalogue::{Arch, CATALOGUE_VARIABLE, Catalogue, CatalogueEntry, ImagePin, Sha256};
pub use self::maintenance::Freshness;
pub use self::url::ImageUrl;
use self::url::Place;
use crate::disk::format::image_format;
pub use crate::disk::format::{FormatError, ImageFormat};
use crate::model::names::InvalidValue;
use crate::progress::{Progress, ProgressEvent};
use crate::store::{Lock, Store, StoreError};
use crate::util::fs::read_limited;
use crate::util::readable::readable_debug;

/// The default image of a VM.
pub const DEFAULT_IMAGE: &str = "debian-12";

/// Why an image could not be found, downloaded or used.
///
/// ```
/// use fleetbox::images::{Arch, Catalogue, ImageError, ImageRef, Images};
/// use fleetbox::store::Store;
/// # let dir = tempfile::tempdir().unwrap();
/// # let home = dir.path();
///
/// let store = Store::open(home)?;
/// let images = Images::with_catalogue(&store, Catalogue::built_in()?, Arch::Amd64);
/// match images.resolve(&"debian-99".parse::<ImageRef>()?) {
///     Err(ImageError::UnknownAlias { known, .. }) => assert!(known.contains("debian-12")),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There are no images for this host's architecture.
    #[error("there are no images for {arch} hosts; only x86_64 and aarch64 are supported")]
    Host {
        /// The architecture, as Rust names it.
        arch: &'static str,
    },
    /// The catalogue file cannot be used.
    #[error("cannot use the image catalogue {}: {why}", path.display())]
    Catalogue {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No such alias.
    #[error(
        "unknown image {alias:?}; known images: {known}; for a file give a path such as ./{alias}"
    )]
    UnknownAlias {
        /// The alias.
        alias: String,
        /// The aliases of the catalogue.
        known: String,
    },
    /// The catalogue has the image for other architectures only.
    #[error("the catalogue has no {arch} image for {alias}")]
    NoArch {
        /// The alias.
        alias: String,
        /// The architecture asked for.
        arch: Arch,
    },
    /// A file is not a usable disk image.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action, such as "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file system is full.
    #[error(
        "no space left for {} after {written} bytes{}; free some space, or set FLEETBOX_HOME to a directory on another disk",
        path.display(), total.map_or_else(String::new, |t| format!(" of {t}"))
    )]
    DiskFull {
        /// The file that was being written; it has been removed.
        path: PathBuf,
        /// The number of bytes written.
        written: u64,
        /// Its full size, if known.
        total: Option<u64>,
    },
    /// The server could not be reached, or the connection broke.
    #[error("cannot download {url}: {why}; try again, it continues where it stopped")]
    Network {
        /// The address.
        url: String,
        /// What happened.
        why: String,
    },
    /// The server answered with an error.
    #[error("cannot download {url}: the server answered {status}{advice}")]
    Status {
        /// The address, after redirects.
        url: String,
        /// The HTTP status, such as "404 Not Found".
        status: String,
        /// What to do about it: text that starts with a semicolon, or nothing.
        advice: &'static str,
    },
    /// The downloaded file does not match the catalogue's checksum; it has been removed.
    #[error(
        "{url} has the wrong content: SHA-256 is {found}, expected {expected}; nothing was kept. \
         The file changed on the server or on the way; try again, or report it"
    )]
    Checksum {
        /// The address.
        url: String,
        /// The catalogue's sum.
        expected: Sha256,
        /// The file's sum.
        found: Sha256,
    },
    /// The image is not on this host, and this build of the library cannot download.
    #[error(
        "cannot download {url}: fleetbox was built without its feature `download`; \
         enable the feature, or use the file of an image"
    )]
    DownloadDisabled {
        /// The address.
        url: String,
    },
    /// The image is in use, so it is not deleted.
    #[error("cannot delete {}: {user} needs it", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who needs it.
        user: String,
    },
    /// TLS cannot be used.
    #[error("cannot verify HTTPS servers: {why}; install the package ca-certificates")]
    Tls {
        /// What is missing.
        why: String,
    },
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
}

readable_debug!(ImageError);

impl ImageError {
    /// The error for `name`, which is not a usable disk image.
    fn not_an_image(name: &str, why: impl Into<String>) -> Self {
        Self::Format(FormatError::NotAnImage {
            name: name.to_owned(),
            why: why.into(),
        })
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// A reference to an image, as a user writes it.
///
/// ```
/// use fleetbox::images::ImageRef;
///
/// assert!(matches!("debian-12".parse()?, ImageRef::Alias(_)));
/// assert!(matches!("./disk.qcow2".parse()?, ImageRef::Path(_)));
/// assert!(matches!("https://example.org/disk.raw".parse()?, ImageRef::Url(_)));
/// # Ok::<(), fleetbox::names::InvalidValue>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// An alias of the catalogue.
    Alias(String),
    /// A file on this host. It is used in place.
    Path(PathBuf),
    /// An `http` or `https` address. It is downloaded once, and not verified by a checksum.
    Url(ImageUrl),
}

impl FromStr for ImageRef {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |why: String| {
            Err(InvalidValue::Image {
                text: text.to_owned(),
                why,
            })
        };
        if text.is_empty() {
            return fail("it is empty".into());
        }
        if text.contains("://") {
            let url: ImageUrl = text.parse()?;
            return Ok(match url.place() {
                Place::Web(_) => Self::Url(url),
                Place::File(path) => Self::Path(path.clone()),
            });
        }
        let file_like = [".raw", ".img", ".qcow2"].iter().any(|e| text.ends_with(e));
        if text.contains('/') || text == "." || text == ".." || file_like {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if catalogue::is_alias(text) {
            return Ok(Self::Alias(text.to_owned()));
        }
        fail("use only letters, digits, '.' and '-' in an alias".into())
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(alias) => f.write_str(alias),
            Self::Path(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// The kind of an image's source.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Path(PathBuf),
    Download {
        url: ImageUrl,
        sha256: Option<Sha256>,
        // File name in the images directory.
        file: String,
    },
}

/// Where an image comes from: a resolved reference. Nothing has been downloaded yet.
///
/// ```
/// use fleetbox::images::{Arch, Catalogue, ImageRef, Images};
/// use fleetbox::store::Store;
/// # let dir = tempfile::tempdir().unwrap();
/// # let home = dir.path();
///
/// let store = Store::open(home)?;
/// let images = Images::with_catalogue(&store, Catalogue::built_in()?, Arch::Amd64);
/// let debian = images.resolve(&"debian-12".parse::<ImageRef>()?)?;
/// assert_eq!(debian.reference(), "debian-12");
/// assert!(debian.url().is_some_and(|url| url.starts_with("https://")));
/// assert!(debian.sha256().is_some());
/// assert_eq!(images.cached(&debian)?, None);
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    reference: String,
    source: Source,
}

impl ImageSource {
    /// The image, as the user named it.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// The address that it is downloaded from; `None` for a local file.
    pub fn url(&self) -> Option<&str> {
        match &self.source {
            Source::Path(_) => None,
            Source::Download { url, .. } => Some(url.as_str()),
        }
    }

    /// The checksum that a download is verified with, if there is one.
    pub fn sha256(&self) -> Option<Sha256> {
        match &self.source {
            Source::Path(_) => None,
            Source::Download { sha256, .. } => *sha256,
        }
    }
}

/// An image on this host, ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The image, as the user named it.
    pub reference: String,
    /// The absolute path of the file. The file is never written to.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Checksum of the downloaded file; `None` for a local file, which is not read completely.
    pub sha256: Option<Sha256>,
    /// Size of the file in bytes. For a qcow2 image this is not the size of the disk.
    pub bytes: u64,
}

/// An image of the catalogue, as [`Images::list`] returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// The alias.
    pub alias: String,
    /// The distribution's name for this snapshot of the image.
    pub snapshot: Option<String>,
    /// The address that it is downloaded from.
    pub url: String,
    /// Its checksum.
    pub sha256: Sha256,
    /// The downloaded file, if it is on this host.
    pub path: Option<PathBuf>,
    /// Size of that file in bytes.
    pub bytes: Option<u64>,
}

/// Stored beside a downloaded image, in `NAME.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    url: String,
    sha256: Sha256,
    bytes: u64,
    format: ImageFormat,
}

/// The images of a state directory.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::images::{ImageRef, Images};
/// use fleetbox::progress;
/// use fleetbox::store::Store;
///
/// let images = Images::new(&Store::open_default()?)?;
/// let debian = images.resolve(&"debian-12".parse::<ImageRef>()?)?;
/// let image = images.pull(&debian, progress::stderr().as_ref()).await?;
/// println!("{}", image.path.display());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Images {
    dir: PathBuf,
    catalogue: Catalogue,
    arch: Arch,
}

impl Images {
    /// The images in `store`, with the catalogue of [`Catalogue::load`] and this host's architecture.
    ///
    /// # Errors
    /// [`ImageError::Catalogue`], [`ImageError::Host`].
    pub fn new(store: &Store) -> Result<Self, ImageError> {
        Ok(Self::with_catalogue(
            store,
            Catalogue::load()?,
            Arch::host()?,
        ))
    }

    /// The images in `store`, with the given catalogue and architecture.
    ///
    /// ```
    /// use fleetbox::images::{Arch, Catalogue, Images};
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let images = Images::with_catalogue(&Store::open(home)?, Catalogue::built_in()?, Arch::Arm64);
    /// assert!(images.list()?.iter().all(|image| image.url.contains("arm64")));
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn with_catalogue(store: &Store, catalogue: Catalogue, arch: Arch) -> Self {
        Self {
            dir: store.images_dir(),
            catalogue,
            arch,
        }
    }

    /// Looks up `reference`. This neither uses the network nor reads a file's content.
    ///
    /// # Errors
    /// [`ImageError::UnknownAlias`], [`ImageError::NoArch`], [`ImageError::Catalogue`];
    /// [`ImageError::Format`] or [`ImageError::Io`] for a path that is not a usable file.
    pub fn resolve(&self, reference: &ImageRef) -> Result<ImageSource, ImageError> {
        let source = match reference {
            ImageRef::Alias(alias) => self.resolve_alias(alias)?,
            ImageRef::Path(path) => {
                let path = std::path::absolute(path).map_err(ImageError::io("find", path))?;
                check_path(&path)?;
                Source::Path(path)
            }
            ImageRef::Url(url) => Source::Download {
                file: url_file_name(url),
                url: url.clone(),
                sha256: None,
            },
        };
        Ok(ImageSource {
            reference: reference.to_string(),
            source,
        })
    }

    fn resolve_alias(&self, alias: &str) -> Result<Source, ImageError> {
        let entry = self
            .catalogue
            .get(alias)
            .ok_or_else(|| ImageError::UnknownAlias {
                alias: alias.to_owned(),
                known: self
                    .catalogue
                    .iter()
                    .map(|(name, _)| name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        let pin = entry.pin(self.arch).ok_or_else(|| ImageError::NoArch {
            alias: alias.to_owned(),
            arch: self.arch,
        })?;
        let url = ImageUrl::parse(&pin.url).map_err(|why| ImageError::Catalogue {
            path: PathBuf::from(&pin.url),
            why,
        })?;
        let extension = match url.file_name().rsplit_once('.') {
            Some((_, "qcow2")) => "qcow2",
            Some((_, "raw")) => "raw",
            _ => "img",
        };
        Ok(Source::Download {
            file: format!("{alias}-{}-{}.{extension}", self.arch, pin.sha256.short()),
            sha256: Some(pin.sha256),
            url,
        })
    }

    /// The image, if it is already on this host and needs no download.
    ///
    /// ```no_run
    /// use fleetbox::images::Images;
    /// use fleetbox::store::Store;
    ///
    /// let images = Images::new(&Store::open_default()?)?;
    /// let debian = images.resolve(&"debian-12".parse()?)?;
    /// if images.cached(&debian)?.is_none() {
    ///     println!("{:?} has to be downloaded", debian.url());
    /// }
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ImageError::Io`]; for a local file also [`ImageError::Format`].
    pub fn cached(&self, image: &ImageSource) -> Result<Option<Image>, ImageError> {
        match &image.source {
            Source::Path(path) => in_place(&image.reference, path).map(Some),
            Source::Download { url, sha256, file } => {
                self.downloaded(&image.reference, url, *sha256, file)
            }
        }
    }

    fn downloaded(
        &self,
        reference: &str,
        url: &ImageUrl,
        expected: Option<Sha256>,
        file: &str,
    ) -> Result<Option<Image>, ImageError> {
        let path = self.dir.join(file);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ImageError::io("read", &path)(e)),
        };
        let sidecar = read_limited(&sidecar_path(&path), 1 << 16)
            .ok()
            .and_then(|text| serde_json::from_slice::<Sidecar>(&text).ok());
        let Some(sidecar) = sidecar.filter(|s| {
            s.bytes == metadata.len()
                && match expected {
                    Some(sum) => s.sha256 == sum,
                    None => s.url == url.as_str(),
                }
        }) else {
            tracing::warn!(path = %path.display(), "the stored image was truncated or changed; it will be downloaded again");
            return Ok(None);
        };
        Ok(Some(Image {
            reference: reference.to_owned(),
            path,
            format: sidecar.format,
            sha256: Some(sidecar.sha256),
            bytes: sidecar.bytes,
        }))
    }

    /// Makes the image available. A local file is used in place; any other image is downloaded unless it is already
    /// here. If several processes want the same image, one downloads it and the others wait. An interrupted download is
    /// continued.
    ///
    /// Dropping the future stops the download. The partial file is kept, so that the next download can continue.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::images::Images;
    /// use fleetbox::progress;
    /// use fleetbox::store::Store;
    ///
    /// let images = Images::new(&Store::open_default()?)?;
    /// let debian = images.resolve(&"debian-12".parse()?)?;
    /// let image = images.pull(&debian, progress::stderr().as_ref()).await?;
    /// println!("{} bytes at {}", image.bytes, image.path.display());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ImageError`] says what went wrong. After a wrong checksum the file is removed.
    pub async fn pull(
        &self,
        image: &ImageSource,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.cached(image)? {
            return Ok(image);
        }
        let Source::Download { url, sha256, file } = &image.source else {
            return Err(ImageError::not_an_image(
                &image.reference,
                "the file is gone",
            ));
        };
        let lock = self.wait_for_lock(&image.reference, file, progress).await?;
        // The previous holder of the lock may have finished it.
        if let Some(image) = self.cached(image)? {
            lock.remove()?;
            return Ok(image);
        }
        let path = self.dir.join(file);
        let job = download::Job {
            reference: &image.reference,
            url,
            sha256: *sha256,
            path: &path,
            progress,
        };
        let result = job.run(lock).await;
        if result.is_err() {
            progress.event(ProgressEvent::Failed);
        }
        result
    }

    async fn wait_for_lock(
        &self,
        image: &str,
        file: &str,
        progress: &dyn Progress,
    ) -> Result<Lock, ImageError> {
        let path = self.dir.join(format!("{file}.lock"));
        let mut told = false;
        loop {
            if let Some(lock) = Lock::try_acquire(&path)? {
                return Ok(lock);
            }
            if !told {
                told = true;
                progress.event(ProgressEvent::Waiting { image });
            }
            // Polled, since a thread that blocks in flock cannot be cancelled.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// All images of the catalogue for this architecture, with the downloaded files.
    ///
    /// ```
    /// use fleetbox::images::{Arch, Catalogue, Images};
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let images = Images::with_catalogue(&Store::open(home)?, Catalogue::built_in()?, Arch::Amd64);
    /// for image in images.list()? {
    ///     println!("{} {}: {}", image.alias, image.snapshot.unwrap_or_default(), image.url);
    ///     assert_eq!(image.path, None); // nothing is downloaded yet
    /// }
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let mut list = Vec::new();
        for (alias, entry) in self.catalogue.iter() {
            let Some(pin) = entry.pin(self.arch) else {
                continue;
            };
            let resolved = self.resolve(&ImageRef::Alias(alias.to_owned()))?;
            let image = self.cached(&resolved)?;
            list.push(ImageInfo {
                alias: alias.to_owned(),
                snapshot: entry.snapshot.clone(),
                url: pin.url.clone(),
                sha256: pin.sha256,
                bytes: image.as_ref().map(|i| i.bytes),
                path: image.map(|i| i.path),
            });
        }
        Ok(list)
    }
}

fn sidecar_path(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".json");
    path.into()
}

/// A file name for an address: readable, safe, and different for each address.
fn url_file_name(url: &ImageUrl) -> String {
    let base: String = url
        .file_name()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        .take(80)
        .collect();
    format!("url-{}-{base}", Sha256::of(url.as_str().as_bytes()).short())
}

fn check_path(path: &Path) -> Result<u64, ImageError> {
    use std::os::unix::fs::FileTypeExt as _;
    let metadata = std::fs::metadata(path).map_err(ImageError::io("use image", path))?;
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(metadata.len());
    }
    let why = if kind.is_dir() {
        "it is a directory"
    } else {
        "it is neither a file nor a block device"
    };
    Err(ImageError::not_an_image(&path.display().to_string(), why))
}

fn in_place(reference: &str, path: &Path) -> Result<Image, ImageError> {
    let bytes = check_path(path)?;
    let name = path.display().to_string();
    Ok(Image {
        reference: reference.to_owned(),
        format: image_format(path, &name)?,
        path: path.to_owned(),
        sha256: None,
        bytes,
    })
}

#[cfg(all(test, not(feature = "download")))]
mod offline_tests;
#[cfg(all(test, feature = "download"))]
mod tests;
