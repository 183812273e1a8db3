//! `search` and `probe`, which find partitions.

use super::Interpreter;
use crate::boot::devices::Device;
use crate::boot::error::BootError;

impl Interpreter<'_> {
    /// `search` and its short forms. Hints only decide between several matches.
    pub(super) fn search(
        &mut self,
        name: &str,
        words: &[String],
    ) -> Result<Result<(), String>, BootError> {
        let mut by = name.strip_prefix("search.").map(str::to_string);
        let mut variable = None;
        let mut hints = Vec::new();
        let mut names = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (option, value) = match word.split_once('=') {
                Some((option, value)) if option.starts_with("--") => (option, Some(value)),
                _ => (word.as_str(), None),
            };
            match option {
                "--fs-uuid" | "-u" => by = Some("fs_uuid".into()),
                "--label" | "--fs-label" | "-l" => by = Some("fs_label".into()),
                "--file" | "-f" => by = Some("file".into()),
                "--set" | "-s" => variable = Some(value.unwrap_or("root").to_string()),
                "--no-floppy" | "-n" | "--efidisk-only" | "--root-dev-only" | "--quiet" => {}
                "--hint" | "-h" => {
                    hints.extend(value.map(str::to_string).or_else(|| words.next().cloned()));
                }
                option if option.starts_with("--hint-") => {
                    hints.extend(value.filter(|_| option == "--hint-efi").map(str::to_string));
                }
                option if option.starts_with('-') => {
                    return Ok(Err(format!("unknown option `{option}`")));
                }
                _ => names.push(word.clone()),
            }
        }
        if name != "search" {
            // NAME [VARIABLE [HINT...]]
            if names.len() > 1 {
                variable = Some(names.remove(1));
                hints.extend(names.drain(1..));
            }
        }
        let (Some(by), Some(wanted)) = (by, names.first()) else {
            return Ok(Err("it does not say what to search for".into()));
        };
        let matches = |device: &Device| {
            let Some(volume) = device.volume() else {
                return false;
            };
            match by.as_str() {
                "fs_uuid" => volume
                    .uuid()
                    .is_some_and(|uuid| uuid.eq_ignore_ascii_case(wanted)),
                "fs_label" => volume.label().is_some_and(|label| label == *wanted),
                _ => matches!(volume.kind(wanted), Ok(Some(_))),
            }
        };
        let hinted = hints.iter().filter_map(|hint| {
            let index = self.devices.find(hint.trim_end_matches(','))?;
            self.devices.get(index)
        });
        let all = self.devices.iter().map(|(_, device)| device);
        let found = hinted
            .chain(all)
            .find(|device| matches(device))
            .map(|d| d.name.clone());
        let Some(found) = found else {
            let what = by
                .replace("fs_uuid", "file system UUID")
                .replace("fs_label", "label");
            return Ok(Err(format!("no partition with the {what} `{wanted}`")));
        };
        if let Some(variable) = variable {
            self.set(&variable, &found)?;
        }
        Ok(Ok(()))
    }

    /// `probe --set=VARIABLE --fs-uuid|--label|--fs DEVICE`.
    pub(super) fn probe(&mut self, words: &[String]) -> Result<Result<(), String>, BootError> {
        let (mut variable, mut what, mut device) = (None, None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-s" | "--set" => variable = words.next().cloned(),
                "-u" | "--fs-uuid" => what = Some("uuid"),
                "-l" | "--label" => what = Some("label"),
                "-f" | "--fs" => what = Some("fs"),
                word => match word.strip_prefix("--set=") {
                    Some(name) => variable = Some(name.to_string()),
                    None if word.starts_with('-') => {
                        return Ok(Err(format!("unknown option `{word}`")));
                    }
                    None => device = Some(word.to_string()),
                },
            }
        }
        let root = self.root();
        let device = device.unwrap_or(root);
        let volume = self
            .devices
            .find(&device)
            .and_then(|i| self.devices.get(i))
            .and_then(Device::volume);
        let Some(volume) = volume else {
            return Ok(Err(format!(
                "`{device}` has no file system that can be read"
            )));
        };
        let value = match what {
            Some("uuid") => volume.uuid(),
            Some("label") => Some(volume.label().unwrap_or_default()),
            Some("fs") => Some(volume.kind_name().to_string()),
            _ => None,
        };
        match (value, variable) {
            (Some(value), Some(name)) => self.set(&name, &value).map(Ok),
            (Some(_), None) => Ok(Ok(())),
            (None, _) => Ok(Err("this property is unknown".into())),
        }
    }
}
