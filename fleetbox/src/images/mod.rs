//! Images: what an alias, a path or an address stands for, and how it gets here.
//!
//! Images are the read-only base of VMs' disks and are used as they are, raw or qcow2; nothing
//! is converted. What is downloaded is kept in `images/` of the state directory.

mod catalogue;
#[cfg(feature = "download")]
mod client;
mod download;
mod keep;
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

pub use self::catalogue::{Arch, CATALOGUE_VARIABLE, Catalogue, CatalogueEntry, Pinned, Sha256};
pub use self::keep::Freshness;
pub use self::url::ImageUrl;
use self::url::Place;
use crate::disk::format::format_of;
pub use crate::disk::format::{FormatError, ImageFormat};
use crate::model::names::InvalidValue;
use crate::progress::{Progress, ProgressEvent};
use crate::store::{Lock, Store, StoreError};
use crate::util::fs::read_limited;

/// The image of a VM for which none is named.
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
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image is made for this host.
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
        "unknown image {alias:?}; known are {known}; a file is given as a path such as ./{alias}"
    )]
    UnknownAlias {
        /// The alias as given.
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
    /// A file is no disk image that can be used.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file system is full.
    #[error(
        "no space left for {} after {written} bytes{}; free some, or put the state elsewhere by FLEETBOX_HOME",
        path.display(), total.map_or_else(String::new, |t| format!(" of {t}"))
    )]
    DiskFull {
        /// The file that was being written; it has been removed.
        path: PathBuf,
        /// How many bytes it had.
        written: u64,
        /// How many it would have had, if known.
        total: Option<u64>,
    },
    /// The server could not be reached, or the connection broke.
    #[error("cannot download {url}: {why}; what has arrived is kept, try again")]
    Network {
        /// The address.
        url: String,
        /// What happened.
        why: String,
    },
    /// The server answered with an error.
    #[error("cannot download {url}: the server answered {status}{advice}")]
    Status {
        /// The address, after redirections.
        url: String,
        /// The HTTP status, such as "404 Not Found".
        status: String,
        /// What to do about it, beginning with a semicolon, or empty.
        advice: &'static str,
    },
    /// The downloaded file is not what the catalogue promises; it has been removed.
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
    /// The image is not here, and this build of the library cannot download.
    #[error(
        "cannot download {url}: fleetbox was built without its feature `download`; \
         enable the feature, or use the file of an image"
    )]
    DownloadDisabled {
        /// The address.
        url: String,
    },
    /// An image that something needs is not deleted.
    #[error("{} is not deleted: {user} needs it", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who needs it.
        user: String,
    },
    /// TLS cannot be used.
    #[error("cannot verify https servers: {why}; install the ca-certificates package")]
    Tls {
        /// What is missing.
        why: String,
    },
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImageError {
    /// `name` is something else than a disk image that can be used.
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

/// How a user names an image.
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
    /// A file on this host, used where it is.
    Path(PathBuf),
    /// An `http` or `https` address, downloaded once and not verified.
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
        fail("it has characters that no alias has".into())
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

/// Where a resolved image comes from.
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

/// An image reference that has been looked up; nothing has been downloaded yet.
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
pub struct Resolved {
    reference: String,
    source: Source,
}

impl Resolved {
    /// The image, as the user named it.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Where it is downloaded from; `None` for a local file.
    pub fn url(&self) -> Option<&str> {
        match &self.source {
            Source::Path(_) => None,
            Source::Download { url, .. } => Some(url.as_str()),
        }
    }

    /// The sum that a download is verified against, if there is one.
    pub fn sha256(&self) -> Option<Sha256> {
        match &self.source {
            Source::Path(_) => None,
            Source::Download { sha256, .. } => *sha256,
        }
    }
}

/// An image that is on this host and can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What the user asked for.
    pub reference: String,
    /// The file, an absolute path. It is never written.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Sum of the downloaded file; none for a local file, which is not read whole.
    pub sha256: Option<Sha256>,
    /// Size of the file in bytes (of a qcow2 image that is not the size of the disk).
    pub bytes: u64,
}

/// One line of a listing of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The alias.
    pub alias: String,
    /// The distribution's name of this state of the image.
    pub snapshot: Option<String>,
    /// Where it comes from.
    pub url: String,
    /// Its sum.
    pub sha256: Sha256,
    /// The downloaded file, if it is here.
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
    /// The images in `store`, by the catalogue of [`Catalogue::load`], for this host.
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

    /// The images in `store`, by a given catalogue and for a given architecture.
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

    /// Looks up `reference`, without network and without reading a file's content.
    ///
    /// # Errors
    /// [`ImageError::UnknownAlias`], [`ImageError::NoArch`], [`ImageError::Catalogue`];
    /// [`ImageError::Format`] or [`ImageError::Io`] for a path that cannot be an image.
    pub fn resolve(&self, reference: &ImageRef) -> Result<Resolved, ImageError> {
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
        Ok(Resolved {
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
        let pinned = entry.pinned(self.arch).ok_or_else(|| ImageError::NoArch {
            alias: alias.to_owned(),
            arch: self.arch,
        })?;
        let url = ImageUrl::parse(&pinned.url).map_err(|why| ImageError::Catalogue {
            path: PathBuf::from(&pinned.url),
            why,
        })?;
        let extension = match url.file_name().rsplit_once('.') {
            Some((_, "qcow2")) => "qcow2",
            Some((_, "raw")) => "raw",
            _ => "img",
        };
        Ok(Source::Download {
            file: format!(
                "{alias}-{}-{}.{extension}",
                self.arch,
                pinned.sha256.short()
            ),
            sha256: Some(pinned.sha256),
            url,
        })
    }

    /// The image, if it is here already and needs no download.
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
    /// [`ImageError::Io`] for the file system; for a local file also [`ImageError::Format`].
    pub fn cached(&self, image: &Resolved) -> Result<Option<Image>, ImageError> {
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
            tracing::warn!(path = %path.display(), "the stored image was cut or changed; it is downloaded again");
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

    /// Makes the image available: a local file is used where it is, anything else is downloaded
    /// unless it is here already. Of several processes that want the same image one downloads
    /// and the others wait for it. A download that was interrupted is continued.
    ///
    /// Dropping the future stops the download; what has arrived is kept for the next.
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
    /// [`ImageError`] says what went wrong; a wrong checksum leaves nothing behind.
    pub async fn pull(
        &self,
        image: &Resolved,
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
        // Whoever held the lock before may have finished it.
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

    /// The catalogue for this architecture, with what is downloaded.
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
    /// [`ImageError::Io`] for the file system.
    pub fn list(&self) -> Result<Vec<Listed>, ImageError> {
        let mut list = Vec::new();
        for (alias, entry) in self.catalogue.iter() {
            let Some(pinned) = entry.pinned(self.arch) else {
                continue;
            };
            let resolved = self.resolve(&ImageRef::Alias(alias.to_owned()))?;
            let image = self.cached(&resolved)?;
            list.push(Listed {
                alias: alias.to_owned(),
                snapshot: entry.snapshot.clone(),
                url: pinned.url.clone(),
                sha256: pinned.sha256,
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

/// A file name for what an address gives: readable, safe, and different for each address.
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
        format: format_of(path, &name)?,
        path: path.to_owned(),
        sha256: None,
        bytes,
    })
}

#[cfg(all(test, not(feature = "download")))]
mod offline_tests;
#[cfg(all(test, feature = "download"))]
mod tests;
