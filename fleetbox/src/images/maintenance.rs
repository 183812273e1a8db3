//! Deletes images, and looks for newer ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

#[cfg(feature = "download")]
use super::client;
use super::{ImageError, ImageRef, ImageSource, ImageUrl, Images, Source, sidecar_path};
use crate::store::{Lock, Store, StoreError};
use crate::util::fs::remove_file_if_there;

/// Maximum bytes of a page that lists snapshots.
#[cfg(feature = "download")]
const PAGE_LIMIT: usize = 4 << 20;

/// Whether a distribution publishes a newer snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Freshness {
    /// The alias.
    pub alias: String,
    /// The snapshot that the catalogue has.
    pub snapshot: Option<String>,
    /// The newest published snapshot, which may be the same. `None` if the address does not show where snapshots are
    /// listed.
    pub newest: Option<String>,
    /// The address of the newest snapshot.
    pub url: Option<String>,
}

impl Images {
    /// Deletes a downloaded image, or the partial file of an interrupted download. Returns its path, or `None` if there
    /// is nothing to delete. A local file is never deleted.
    ///
    /// ```
    /// use fleetbox::images::{Arch, Catalogue, ImageRef, Images};
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let images = Images::with_catalogue(&Store::open(home)?, Catalogue::built_in()?, Arch::Amd64);
    /// let debian = images.resolve(&"debian-12".parse::<ImageRef>()?)?;
    /// assert_eq!(images.remove(&debian)?, None); // it was not here
    /// assert!(images.remove_unused()?.is_empty());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ImageError::InUse`] if a VM is based on it or it is being downloaded; [`ImageError::Io`].
    pub fn remove(&self, image: &ImageSource) -> Result<Option<PathBuf>, ImageError> {
        match &image.source {
            Source::Path(path) => Err(ImageError::not_an_image(
                &path.display().to_string(),
                "it is your own file, which fleetbox never deletes",
            )),
            Source::Download { file, .. } => self.remove_file(file),
        }
    }

    /// Deletes all downloaded images that no VM is based on, and returns their paths.
    ///
    /// # Errors
    /// The file system fails, or a VM's record is damaged.
    pub fn remove_unused(&self) -> Result<Vec<PathBuf>, ImageError> {
        let entries = std::fs::read_dir(&self.dir).map_err(ImageError::io("list", &self.dir))?;
        let mut files = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(ImageError::io("list", &self.dir))?;
            // `NAME`, `NAME.json`, `NAME.part` and so on are those of one image.
            if let Some(name) = entry.file_name().to_str()
                && !name.starts_with('.')
            {
                let mut name = name;
                for suffix in [".json", ".part", ".lock"] {
                    name = name.strip_suffix(suffix).unwrap_or(name);
                }
                files.insert(name.to_owned());
            }
        }
        let mut removed = Vec::new();
        for file in files {
            match self.remove_file(&file) {
                Ok(path) => removed.extend(path),
                Err(ImageError::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    fn remove_file(&self, file: &str) -> Result<Option<PathBuf>, ImageError> {
        let path = self.dir.join(file);
        if let Some(user) = self.user_of(&path)? {
            return Err(ImageError::InUse { path, user });
        }
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        if !path.exists() && !part.exists() {
            return Ok(None);
        }
        let Some(lock) = Lock::try_acquire(&self.dir.join(format!("{file}.lock")))? else {
            return Err(ImageError::InUse {
                path,
                user: "a download".to_owned(),
            });
        };
        for path in [&path, &sidecar_path(&path), &part, &sidecar_path(&part)] {
            remove_file_if_there(path).map_err(ImageError::io("remove", path))?;
        }
        lock.remove()?;
        Ok(Some(path))
    }

    /// The VM whose disk is a layer over `path`.
    fn user_of(&self, path: &Path) -> Result<Option<String>, ImageError> {
        let Some(home) = self.dir.parent() else {
            return Ok(None);
        };
        for vm in Store::open(home)?.vms()? {
            match vm.record() {
                Ok(record) if record.image.path == path => {
                    return Ok(Some(format!("VM {}", record.name)));
                }
                Ok(_) => {}
                // Removed just now, and perhaps created again with this image.
                Err(StoreError::Gone { .. }) => return self.user_of(path),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Asks the server of a catalogue image which snapshots it has. No image is downloaded, and the catalogue is not
    /// changed, because a newer image has another checksum.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::images::Images;
    /// use fleetbox::store::Store;
    ///
    /// let images = Images::new(&Store::open_default()?)?;
    /// if let Some(url) = images.freshness("debian-12").await?.url {
    ///     println!("the newest is at {url}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ImageError::UnknownAlias`], and the errors of a download.
    pub async fn freshness(&self, alias: &str) -> Result<Freshness, ImageError> {
        let resolved = self.resolve(&ImageRef::Alias(alias.to_owned()))?;
        let snapshot = self
            .catalogue
            .get(alias)
            .and_then(|entry| entry.snapshot.clone());
        let mut freshness = Freshness {
            alias: alias.to_owned(),
            snapshot: snapshot.clone(),
            newest: None,
            url: None,
        };
        let (Source::Download { url, .. }, Some(snapshot)) = (&resolved.source, snapshot) else {
            return Ok(freshness);
        };
        let Some(listing) = url.directory_of(&snapshot) else {
            return Ok(freshness);
        };
        let page = page(&listing).await?;
        if let Some(newest) = newest(&page, &snapshot) {
            freshness.url = Some(format!("{listing}{newest}/"));
            freshness.newest = Some(newest);
        }
        Ok(freshness)
    }
}

#[cfg(feature = "download")]
async fn page(url: &ImageUrl) -> Result<String, ImageError> {
    client::page(url, PAGE_LIMIT).await
}

#[cfg(not(feature = "download"))]
async fn page(url: &ImageUrl) -> Result<String, ImageError> {
    Err(ImageError::DownloadDisabled {
        url: url.to_string(),
    })
}

/// The greatest link of the page that is named like `snapshot`. `snapshot` itself is one of these links if it is still
/// published.
fn newest(page: &str, snapshot: &str) -> Option<String> {
    page.split("href=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .map(|link| link.trim_start_matches("./").trim_end_matches('/'))
        .filter(|link| shape(link) == shape(snapshot))
        .max_by_key(|link| numbers(link))
        .map(str::to_owned)
        .filter(|newest| numbers(newest) >= numbers(snapshot))
}

/// The text between the numbers, which is the same for all snapshots of an image.
fn shape(text: &str) -> Vec<&str> {
    text.split(|c: char| c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .collect()
}

/// The numbers in a name, in order. A date such as `20260601` is one number.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(|digits| digits.parse().unwrap_or(u64::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_the_same_kind_is_found() {
        let page = r#"<a href="../">up</a> <a href="20260601-2496/">x</a>
            <a href="20260715-2540/">x</a> <a href="20260715-999/">x</a> <a href="daily/">x</a>
            <a href="latest/">x</a> <a href="20991231-1.txt">x</a>"#;
        assert_eq!(
            newest(page, "20260601-2496").as_deref(),
            Some("20260715-2540")
        );
        assert_eq!(newest(page, "20270101-1"), None);
        assert_eq!(
            newest("<a href=\"./release-20260520/\">", "release-20260515").as_deref(),
            Some("release-20260520")
        );
        assert_eq!(newest("", "release-20260515"), None);
    }
}
