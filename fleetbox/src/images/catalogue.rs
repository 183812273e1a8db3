//! The catalogue of images: aliases with a pinned address and SHA-256 for each architecture.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ImageError;
use crate::util::fs::read_limited;

/// Environment variable that names a catalogue file. Its entries are added to the built-in ones, or
/// replace them.
pub const CATALOGUE_VARIABLE: &str = "FLEETBOX_CATALOGUE";

/// The built-in catalogue.
const BUILT_IN: &str = include_str!("catalogue.json");
/// The version of the catalogue's format.
const FORMAT: u32 = 1;
const FILE_LIMIT: u64 = 1 << 20;

/// A processor architecture. The names are those that distributions use for their images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86_64.
    Amd64,
    /// aarch64.
    Arm64,
}

impl Arch {
    /// The architecture of this program, which is also that of its guests.
    ///
    /// # Errors
    /// [`ImageError::Host`] if there are no images for it.
    pub fn host() -> Result<Self, ImageError> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            arch => Err(ImageError::Host { arch }),
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        })
    }
}

/// A SHA-256 sum, shown and stored as 64 lower-case hexadecimal digits.
///
/// ```
/// use fleetbox::images::Sha256;
///
/// let sum = Sha256::try_from("ab".repeat(32))?;
/// assert_eq!(sum.0[0], 0xab);
/// assert!(Sha256::try_from("short".to_owned()).is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    pub(super) fn of(content: &[u8]) -> Self {
        Self::from_digest(&ring::digest::digest(&ring::digest::SHA256, content))
    }

    pub(super) fn from_digest(digest: &ring::digest::Digest) -> Self {
        let mut sum = [0; 32];
        // A SHA-256 digest has 32 bytes.
        sum.copy_from_slice(digest.as_ref());
        Self(sum)
    }

    /// The first 16 digits, enough to tell files apart by name.
    pub(super) fn short(&self) -> String {
        self.to_string().chars().take(16).collect()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Sha256 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fail = || format!("{text:?} is not a SHA-256 sum of 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(fail());
        }
        let mut sum = [0; 32];
        for (byte, digits) in sum.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = std::str::from_utf8(digits)
                .ok()
                .and_then(|d| u8::from_str_radix(d, 16).ok())
                .ok_or_else(fail)?;
        }
        Ok(Self(sum))
    }
}

impl From<Sha256> for String {
    fn from(sum: Sha256) -> Self {
        sum.to_string()
    }
}

/// The address of an image and the checksum of its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePin {
    /// The address: `http`, `https` or `file`.
    pub url: String,
    /// SHA-256 of the whole file.
    pub sha256: Sha256,
}

/// The catalogue's entry for an alias.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    /// The distribution's name for this snapshot of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The image for x86_64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amd64: Option<ImagePin>,
    /// The image for aarch64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm64: Option<ImagePin>,
}

impl CatalogueEntry {
    /// The image for `arch`, if there is one.
    pub fn pin(&self, arch: Arch) -> Option<&ImagePin> {
        match arch {
            Arch::Amd64 => self.amd64.as_ref(),
            Arch::Arm64 => self.arm64.as_ref(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    images: BTreeMap<String, CatalogueEntry>,
}

/// A catalogue: aliases and the images that they stand for.
///
/// ```
/// use fleetbox::images::Catalogue;
///
/// let catalogue = Catalogue::built_in()?;
/// assert!(catalogue.iter().any(|(alias, _)| alias == "ubuntu-24.04"));
/// assert!(catalogue.get("debian-99").is_none());
/// # Ok::<(), fleetbox::images::ImageError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    entries: BTreeMap<String, CatalogueEntry>,
}

impl Catalogue {
    /// The built-in catalogue alone.
    ///
    /// # Errors
    /// None in practice: the tests read the embedded text.
    pub fn built_in() -> Result<Self, ImageError> {
        let mut catalogue = Self {
            entries: BTreeMap::new(),
        };
        catalogue.add(BUILT_IN.as_bytes(), Path::new("(built-in catalogue)"))?;
        Ok(catalogue)
    }

    /// The built-in catalogue with the entries of the file named by `FLEETBOX_CATALOGUE`.
    ///
    /// ```no_run
    /// use fleetbox::images::Catalogue;
    ///
    /// for (alias, entry) in Catalogue::load()?.iter() {
    ///     println!("{alias} {}", entry.snapshot.as_deref().unwrap_or("-"));
    /// }
    /// # Ok::<(), fleetbox::images::ImageError>(())
    /// ```
    ///
    /// # Errors
    /// [`ImageError::Catalogue`] if that file cannot be read or parsed.
    pub fn load() -> Result<Self, ImageError> {
        let file = std::env::var_os(CATALOGUE_VARIABLE).filter(|v| !v.is_empty());
        Self::load_with(file.map(PathBuf::from).as_deref())
    }

    /// The built-in catalogue with the entries of `file`, if one is given.
    ///
    /// ```
    /// use fleetbox::images::Catalogue;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let file = home.join("catalogue.json");
    /// std::fs::write(&file, r#"{"format": 1, "images": {"appliance": {}}}"#).unwrap();
    /// assert!(Catalogue::load_with(Some(&file))?.get("appliance").is_some());
    /// # Ok::<(), fleetbox::images::ImageError>(())
    /// ```
    ///
    /// # Errors
    /// [`ImageError::Catalogue`] if that file cannot be read or parsed.
    pub fn load_with(file: Option<&Path>) -> Result<Self, ImageError> {
        let mut catalogue = Self::built_in()?;
        if let Some(path) = file {
            let content = read_limited(path, FILE_LIMIT).map_err(|e| ImageError::Catalogue {
                path: path.to_owned(),
                why: e.to_string(),
            })?;
            catalogue.add(&content, path)?;
        }
        Ok(catalogue)
    }

    fn add(&mut self, content: &[u8], path: &Path) -> Result<(), ImageError> {
        let fail = |why: String| ImageError::Catalogue {
            path: path.to_owned(),
            why,
        };
        let file: File = serde_json::from_slice(content).map_err(|e| fail(e.to_string()))?;
        if file.format != FORMAT {
            return Err(fail(format!(
                "it has format {}, but this version reads format {FORMAT}",
                file.format
            )));
        }
        for alias in file.images.keys() {
            if !is_alias(alias) {
                return Err(fail(format!(
                    "invalid alias {alias:?}: use only letters, digits, '.' and '-'"
                )));
            }
        }
        self.entries.extend(file.images);
        Ok(())
    }

    /// The entry for `alias`.
    pub fn get(&self, alias: &str) -> Option<&CatalogueEntry> {
        self.entries.get(alias)
    }

    /// All aliases in order, with their entries.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &CatalogueEntry)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }
}

/// True if `text` is a valid alias. Aliases become parts of file names.
pub(super) fn is_alias(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_complete() {
        let catalogue = Catalogue::built_in().unwrap();
        let aliases: Vec<_> = catalogue.iter().map(|(alias, _)| alias).collect();
        assert_eq!(
            aliases,
            [
                "debian-11",
                "debian-12",
                "debian-13",
                "ubuntu-22.04",
                "ubuntu-24.04",
                "ubuntu-26.04"
            ]
        );
        for (alias, entry) in catalogue.iter() {
            for arch in [Arch::Amd64, Arch::Arm64] {
                let pin = entry.pin(arch).unwrap();
                assert!(pin.url.starts_with("https://"), "{alias}");
                assert!(pin.url.contains(&arch.to_string()), "{alias}");
            }
        }
    }

    #[test]
    fn a_file_adds_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        let sum = "ab".repeat(32);
        let text = serde_json::json!({"format": 1, "images": {
            "tiny": {"amd64": {"url": "http://127.0.0.1:1/tiny.raw", "sha256": sum}},
            "debian-12": {"amd64": {"url": "http://127.0.0.1:1/d.raw", "sha256": sum}},
        }});
        std::fs::write(&path, text.to_string()).unwrap();
        let catalogue = Catalogue::load_with(Some(&path)).unwrap();
        assert_eq!(
            catalogue
                .get("tiny")
                .unwrap()
                .amd64
                .as_ref()
                .unwrap()
                .sha256
                .to_string(),
            sum
        );
        assert!(catalogue.get("debian-12").unwrap().arm64.is_none());
        assert!(catalogue.get("debian-13").is_some());
    }

    #[test]
    fn bad_files_are_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        for (text, why) in [
            ("{", "EOF"),
            (r#"{"format": 2, "images": {}}"#, "format 2"),
            (r#"{"format": 1, "images": {"../x": {}}}"#, "invalid alias"),
            (
                r#"{"format": 1, "images": {"x": {"amd64": {"url": "u", "sha256": "12"}}}}"#,
                "64 hexadecimal",
            ),
            (r#"{"format": 1, "images": {"x": {"arm46": {}}}}"#, "arm46"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Catalogue::load_with(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("c.json") && error.contains(why), "{error}");
        }
        let missing = dir.path().join("none");
        assert!(Catalogue::load_with(Some(&missing)).is_err());
    }

    #[test]
    fn sums_are_those_of_the_standard() {
        // FIPS 180-4, the example "abc".
        assert_eq!(
            Sha256::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
