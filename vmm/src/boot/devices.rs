//! The disk's partitions, named as in GRUB: `(hd0,gpt1)/boot/vmlinuz`.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use super::budget::Budget;
use super::content::{Content, probe};
use super::fs::{FsError, Kind, Volume};
use super::partition::{Partition, Table};
use super::window::Window;

/// Maximum number of problems, and of partitions, in an error.
const MAX_PROBLEMS: usize = 32;

/// A partition and, once it has been read, its content.
pub(super) struct Device {
    /// `hd0,gpt1`; `hd0` for a disk without partitions.
    pub(super) name: String,
    pub(super) esp: bool,
    window: Option<Window>,
    content: OnceCell<Content>,
}

impl Device {
    /// Its content.
    pub(super) fn content(&self) -> &Content {
        self.content
            .get_or_init(|| self.window.as_ref().map_or(Content::Unknown, probe))
    }

    /// Its file system, if it can be read.
    pub(super) fn volume(&self) -> Option<&dyn Volume> {
        match self.content() {
            Content::Volume(volume) => Some(&**volume),
            _ => None,
        }
    }
}

/// A file, named by device and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Index of the device.
    pub(super) device: usize,
    /// Absolute path.
    pub(super) path: String,
}

/// All partitions of a machine's disk that may be booted from.
pub(super) struct Devices {
    all: Vec<Device>,
    /// What went wrong while a configuration was looked for.
    problems: RefCell<Vec<String>>,
    budget: Rc<Budget>,
}

impl Devices {
    pub(super) fn new(table: Table, budget: Rc<Budget>) -> Self {
        let device = |partition: Partition| Device {
            name: match partition.name.as_str() {
                "" => "hd0".into(),
                name => format!("hd0,{name}"),
            },
            esp: partition.esp,
            window: Some(partition.window),
            content: OnceCell::new(),
        };
        Self {
            all: table.partitions.into_iter().map(device).collect(),
            problems: RefCell::new(table.problems),
            budget,
        }
    }

    /// Devices with the given content.
    #[cfg(test)]
    pub(super) fn of(contents: Vec<(&str, Content)>) -> Self {
        let device = |(name, content): (&str, Content)| Device {
            name: name.into(),
            esp: false,
            window: None,
            content: OnceCell::from(content),
        };
        Self {
            all: contents.into_iter().map(device).collect(),
            problems: RefCell::default(),
            budget: Budget::ample(),
        }
    }

    /// What all work is charged to.
    pub(super) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &Device)> {
        self.all.iter().enumerate()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Device> {
        self.all.get(index)
    }

    /// The device that GRUB calls `name`, with or without parentheses. A partition may be given by
    /// its number alone (`hd0,1`).
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let name = name
            .strip_prefix('(')
            .and_then(|name| name.strip_suffix(')'))
            .unwrap_or(name);
        let same = |device: &Device| {
            device.name == name
                || name.split_once(',').is_some_and(|(disk, number)| {
                    device
                        .name
                        .split_once(',')
                        .is_some_and(|(have, partition)| {
                            disk == have
                                && number.bytes().all(|byte| byte.is_ascii_digit())
                                && partition.trim_start_matches(|c: char| c.is_ascii_alphabetic())
                                    == number
                        })
                })
        };
        self.all.iter().position(same)
    }

    /// Resolves `path`: on the device in parentheses before it, or else on `root`.
    ///
    /// # Errors
    /// There is no such device, or the path is not absolute.
    pub(super) fn locate(&self, path: &str, root: &str) -> Result<Location, String> {
        let (device, rest) = match path.strip_prefix('(') {
            Some(inner) => inner.split_once(')').ok_or("a `(` that is never closed")?,
            None => (root, path),
        };
        if !rest.starts_with('/') {
            return Err(format!("`{path}` is not a path that starts with `/`"));
        }
        let index = self
            .find(device)
            .ok_or_else(|| format!("there is no device `{device}`"))?;
        Ok(Location {
            device: index,
            path: rest.into(),
        })
    }

    /// `(hd0,gpt1)/path`.
    pub(super) fn display(&self, location: &Location) -> String {
        let name = self
            .get(location.device)
            .map_or("?", |device| device.name.as_str());
        format!("({name}){}", location.path)
    }

    fn volume(&self, location: &Location) -> Result<&dyn Volume, FsError> {
        match self.get(location.device).map(Device::content) {
            Some(Content::Volume(volume)) => Ok(&**volume),
            Some(Content::Unreadable { what, why }) => Err(FsError::Unsupported(format!(
                "the partition holds {what}: {why}"
            ))),
            _ => Err(FsError::Unsupported(
                "the partition holds no known file system".into(),
            )),
        }
    }

    pub(super) fn kind(&self, location: &Location) -> Result<Option<Kind>, FsError> {
        self.volume(location)?.kind(&location.path)
    }

    pub(super) fn read(&self, location: &Location, limit: u64) -> Result<Vec<u8>, FsError> {
        let mut bytes = Vec::new();
        self.append(location, limit, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends the file at `location`, of at most `limit` bytes, to `bytes`.
    pub(super) fn append(
        &self,
        location: &Location,
        limit: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<(), FsError> {
        self.volume(location)?.read(&location.path, limit, bytes)
    }

    /// When the file or directory at `location` was changed last, in seconds since 1970; `None` if
    /// the file system does not say.
    pub(super) fn modified(&self, location: &Location) -> Result<Option<i64>, FsError> {
        self.volume(location)?.modified(&location.path)
    }

    /// The names in the directory at `location`, in its own order.
    pub(super) fn list(&self, location: &Location) -> Result<Vec<String>, FsError> {
        self.volume(location)?.list(&location.path)
    }

    /// All devices in the order in which GRUB looks for something: the last partition first.
    pub(super) fn in_search_order(&self) -> impl Iterator<Item = &Device> {
        self.iter().rev().map(|(_, device)| device)
    }

    /// Records a problem for the final error.
    pub(super) fn note(&self, problem: String) {
        tracing::warn!(problem, "cannot look for a boot configuration");
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS && !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// What cannot be read, and what else is wrong with the disk, for an error.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .all
            .iter()
            .filter_map(|device| match device.content() {
                Content::Unreadable { what, why } => {
                    Some(format!("({}) holds {what}: {why}", device.name))
                }
                _ => None,
            })
            .take(MAX_PROBLEMS)
            .collect();
        all.extend(self.problems.borrow().iter().cloned());
        all
    }

    /// [`Devices::problems`] for the end of an error; empty if there are none.
    pub(super) fn unreadable(&self) -> String {
        let mut text = String::new();
        for problem in self.problems() {
            text.push_str("; ");
            text.push_str(&problem);
        }
        text
    }

    /// The content of all partitions, for an error.
    pub(super) fn summary(&self) -> String {
        let names: Vec<String> = self
            .all
            .iter()
            .take(MAX_PROBLEMS)
            .map(|device| {
                let what = match device.content() {
                    Content::Volume(volume) => volume.kind_name().replace("ext2", "ext4"),
                    Content::Unreadable { what, why } => format!("{what}: {why}"),
                    Content::Unknown => "nothing known".into(),
                };
                format!("({}) holds {what}", device.name)
            })
            .collect();
        let mut text = if let [device] = self.all.as_slice()
            && !device.name.contains(',')
            && matches!(device.content(), Content::Unknown)
        {
            "it has neither a partition table nor a known file system".into()
        } else if names.is_empty() {
            "there are no partitions".into()
        } else {
            names.join("; ")
        };
        if self.all.len() > MAX_PROBLEMS {
            text.push_str(&format!("; and {} more", self.all.len() - MAX_PROBLEMS));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        let content = || Content::Unknown;
        let devices = Devices::of(vec![("hd0,gpt1", content()), ("hd0,gpt15", content())]);
        assert_eq!(devices.find("(hd0,gpt15)"), Some(1));
        assert_eq!(devices.find("hd0,1"), Some(0));
        assert_eq!(devices.find("hd0,"), None);
        assert_eq!(devices.find("hd1,gpt1"), None);
        let at = |device, path: &str| {
            Ok(Location {
                device,
                path: path.into(),
            })
        };
        assert_eq!(devices.locate("(hd0,gpt15)/a", "hd0,gpt1"), at(1, "/a"));
        assert_eq!(devices.locate("/b", "hd0,gpt1"), at(0, "/b"));
        assert!(devices.locate("b", "hd0,gpt1").is_err());
        assert!(devices.locate("/b", "hd9").is_err());
        assert!(devices.locate("(hd0", "hd0,gpt1").is_err());
    }
}
