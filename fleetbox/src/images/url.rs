//! Addresses of images.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use http::Uri;

use crate::model::names::InvalidValue;

/// The address of an image: `http`, `https` or `file`.
///
/// It is ASCII: other characters must be percent-encoded, or in a host name written in Punycode.
///
/// ```
/// use fleetbox::images::ImageUrl;
///
/// let url: ImageUrl = "https://example.org/disk.raw".parse()?;
/// assert_eq!(url.as_str(), "https://example.org/disk.raw");
/// assert!("ftp://example.org/disk.raw".parse::<ImageUrl>().is_err());
/// # Ok::<(), fleetbox::names::InvalidValue>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUrl {
    text: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A server, over HTTP or HTTPS.
    Web(Uri),
    /// A file on this host.
    File(PathBuf),
}

impl ImageUrl {
    /// Parses an address. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => {
                let uri: Uri = text
                    .parse()
                    .map_err(|e: http::uri::InvalidUri| e.to_string())?;
                check_authority(&uri)?;
                Ok(Self {
                    text: uri.to_string(),
                    place: Place::Web(uri),
                })
            }
            "file" => Ok(Self {
                text: format!("file://{rest}"),
                place: Place::File(local_path(rest).ok_or("it names no local file")?),
            }),
            other => Err(format!("{other} addresses are not supported")),
        }
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The last part of its path, used to make a file name. It may be empty.
    pub(super) fn file_name(&self) -> &str {
        let path = match &self.place {
            Place::Web(uri) => uri.path(),
            Place::File(_) => &self.text,
        };
        path.rsplit('/').next().unwrap_or_default()
    }

    /// The address of the directory above `part`, if this is an address on a server and `part` is
    /// one of its directories.
    pub(super) fn directory_of(&self, part: &str) -> Option<Self> {
        let Place::Web(uri) = &self.place else {
            return None;
        };
        let parts: Vec<_> = uri.path().split('/').collect();
        let at = parts.iter().position(|p| *p == part)?;
        // The last part is the file.
        if at + 1 >= parts.len() {
            return None;
        }
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        let path = parts.get(..at)?.join("/");
        Self::parse(&format!("{scheme}://{authority}{path}/")).ok()
    }
}

/// Checks the host, and the port if there is one. [`Uri`] treats a port that is not a number as the
/// default port.
fn check_authority(uri: &Uri) -> Result<(), String> {
    let authority = uri.authority().ok_or("it names no host")?;
    if authority.host().is_empty() {
        return Err("it names no host".to_owned());
    }
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or_default();
    if host_and_port != authority.host() && authority.port_u16().is_none() {
        return Err("its port is not a number between 0 and 65535".to_owned());
    }
    Ok(())
}

/// The path of a `file` address, from the text after `file://`.
fn local_path(rest: &str) -> Option<PathBuf> {
    let rest = rest.split(['?', '#']).next()?;
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return None;
    }
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    Some(Path::new(&OsString::from_vec(bytes)).to_owned())
}

impl FromStr for ImageUrl {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).map_err(|why| InvalidValue::Image {
            text: text.to_owned(),
            why,
        })
    }
}

impl fmt::Display for ImageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for (text, same) in [
            (
                "https://example.org/a/b.raw?x=1",
                "https://example.org/a/b.raw?x=1",
            ),
            ("HTTPS://example.org", "https://example.org/"),
            ("http://u:p@h:8080/x#part", "http://u:p@h:8080/x"),
            ("http://[::1]:80/x", "http://[::1]:80/x"),
            ("FILE:///a", "file:///a"),
        ] {
            assert_eq!(ImageUrl::parse(text).unwrap().as_str(), same);
        }
        for bad in [
            "http://",
            "http:///x",
            "http://:80/x",
            "http://h:99999/x",
            "http://h:port/x",
            "http://h/a b",
            "ftp://h/x",
            "file://host/x",
            "file:x",
        ] {
            assert!(ImageUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_decoded() {
        for (text, path) in [
            ("file:///a%20b/c.raw", "/a b/c.raw"),
            ("file://localhost/x?y", "/x"),
        ] {
            let url = ImageUrl::parse(text).unwrap();
            assert_eq!(url.place(), &Place::File(path.into()));
        }
    }

    #[test]
    fn the_directory_is_above_the_part() {
        let of = |text: &str, part| {
            let directory = ImageUrl::parse(text).unwrap().directory_of(part);
            directory.map(|url| url.to_string())
        };
        assert_eq!(
            of("https://example.org/a/2026/b.raw?x", "2026").as_deref(),
            Some("https://example.org/a/")
        );
        assert_eq!(
            of("https://example.org/2026/b", "2026").as_deref(),
            Some("https://example.org/")
        );
        for none in [
            "https://example.org/2026",
            "https://example.org/b.raw",
            "file:///2026/b.raw",
        ] {
            assert_eq!(of(none, "2026"), None, "{none}");
        }
    }
}
