//! A directory of files, to run configurations on.

use std::collections::HashMap;

use super::interpreter::Choice;
use super::run;
use crate::boot::content::Content;
use crate::boot::devices::{Devices, Location};
use crate::boot::fs::{FsError, Kind, Volume};
use crate::boot::{BootError, Limits};

pub(super) const UUID: &str = "3f0a9f8e-7c53-4b57-8d6f-0a52ce7b9f11";

/// A file system of a few files.
struct Files {
    uuid: &'static str,
    files: HashMap<String, Vec<u8>>,
}

impl Volume for Files {
    fn uuid(&self) -> Option<String> {
        Some(self.uuid.into())
    }

    fn label(&self) -> Option<String> {
        let label = if self.uuid == UUID {
            "cloudimg-rootfs"
        } else {
            "UEFI"
        };
        Some(label.into())
    }

    fn kind_name(&self) -> &'static str {
        "ext2"
    }

    fn kind(&self, path: &str) -> Result<Option<Kind>, FsError> {
        let directory = format!("{}/", path.trim_end_matches('/'));
        Ok(match self.files.get(path) {
            Some(content) => Some(Kind::File(content.len() as u64)),
            None if self.files.keys().any(|name| name.starts_with(&directory)) => {
                Some(Kind::Directory)
            }
            None => None,
        })
    }

    fn read(&self, path: &str, limit: u64, bytes: &mut Vec<u8>) -> Result<(), FsError> {
        let found = self.files.get(path).ok_or(FsError::NotFound)?;
        let size = found.len() as u64;
        if size > limit {
            Err(FsError::TooLarge { size, limit })
        } else {
            bytes.extend_from_slice(found);
            Ok(())
        }
    }

    fn head(&self, path: &str, most: usize) -> Result<Vec<u8>, FsError> {
        let found = self.files.get(path).ok_or(FsError::NotFound)?;
        Ok(found.iter().take(most).copied().collect())
    }

    fn modified(&self, path: &str) -> Result<Option<i64>, FsError> {
        // Files whose names end in a number were changed at that time.
        let digits = path.rsplit(|c: char| !c.is_ascii_digit()).next();
        Ok(digits.and_then(|digits| digits.parse().ok()))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let directory = format!("{}/", path.trim_end_matches('/'));
        let below = self
            .files
            .keys()
            .filter_map(|name| name.strip_prefix(&directory));
        let names = below.filter_map(|name| name.split('/').next());
        let mut names: Vec<String> = names.map(str::to_string).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

pub(super) fn volume(uuid: &'static str, files: &[(&str, &str)]) -> Content {
    let files = files
        .iter()
        .map(|(path, text)| (path.to_string(), text.as_bytes().to_vec()));
    Content::Volume(Box::new(Files {
        uuid,
        files: files.collect(),
    }))
}

/// Runs `config` on a root partition that also holds some kernels and `files`.
pub(super) fn boot_with(config: &str, files: &[(&str, &str)]) -> Result<Choice, BootError> {
    let mut all = vec![
        ("/boot/grub/grub.cfg", config),
        ("/boot/vmlinuz-6.1.0-18-cloud-amd64", "kernel"),
        ("/boot/initrd.img-6.1.0-18-cloud-amd64", "initrd"),
        ("/boot/vmlinuz-6.1.0-17-cloud-amd64", "old kernel"),
        ("/boot/initrd.img-6.1.0-17-cloud-amd64", "old initrd"),
        ("/k", "kernel"),
        ("/i", "initrd"),
        ("/j", "initrd"),
        ("/both", "kernel"),
        ("/time-1", "x"),
        ("/time-2", "x"),
    ];
    all.extend_from_slice(files);
    let devices = Devices::of(vec![
        ("hd0,gpt1", volume(UUID, &all)),
        ("hd0,gpt14", Content::Unknown),
        ("hd0,gpt15", volume("AAAA-BBBB", &[("/both", "kernel")])),
    ]);
    let config = Location {
        device: 0,
        path: "/boot/grub/grub.cfg".into(),
    };
    run(&devices, &config, &Limits::default())
}

pub(super) fn boot(config: &str) -> Result<Choice, BootError> {
    boot_with(config, &[])
}

/// The command line that `config` boots.
pub(super) fn cmdline(config: &str) -> String {
    boot(config)
        .unwrap_or_else(|error| panic!("{error}"))
        .cmdline
}

/// Line, construct and message of the error that `config` ends with.
pub(super) fn problem(config: &str) -> (u32, String, String) {
    match boot(config) {
        Err(BootError::Config {
            file,
            line,
            construct,
            problem,
        }) => {
            assert_eq!(file, "(hd0,gpt1)/boot/grub/grub.cfg");
            (line, construct, problem)
        }
        other => panic!("{other:?}"),
    }
}
