//! `search` and `probe`, which find partitions.

use super::Interpreter;
use super::table::{Call, Outcome};
use crate::boot::devices::Device;
use crate::boot::error::BootError;
use crate::boot::fs::Kind;

/// What a partition is looked for by.
#[derive(Clone, Copy)]
enum By {
    File,
    Label,
    Uuid,
}

impl By {
    fn matches(self, device: &Device, wanted: &str) -> bool {
        let Some(volume) = device.volume() else {
            return false;
        };
        match self {
            Self::File => matches!(volume.kind(wanted), Ok(Some(Kind::File(_)))),
            Self::Label => volume.label().is_some_and(|label| label == wanted),
            Self::Uuid => volume
                .uuid()
                .is_some_and(|uuid| uuid.eq_ignore_ascii_case(wanted)),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Label => "label",
            Self::Uuid => "file system UUID",
        }
    }
}

/// `search`. Hints only decide between several matches.
pub(super) fn search(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let arguments = &call.arguments;
    // Hints for platforms that this GRUB does not know.
    let unknown_hint = |word: &&&str| word.starts_with("--hint-");
    let name = arguments.rest.iter().find(|word| !unknown_hint(word));
    let variable = arguments.value("set");
    let (wanted, variable) = match (name, variable) {
        (Some(name), variable) => {
            let set = arguments.has("set");
            (*name, set.then(|| variable.unwrap_or("root")))
        }
        // `search --label --set NAME`: the name was taken for a variable's.
        (None, Some(name)) => (name, Some("root")),
        (None, None) => return Ok(Outcome::Failed("it does not say what to search for".into())),
    };
    let by = if arguments.has("label") {
        By::Label
    } else if arguments.has("fs-uuid") {
        By::Uuid
    } else if arguments.has("file") {
        By::File
    } else {
        return Ok(Outcome::Failed("it does not say what to search by".into()));
    };
    if arguments.has("cryptodisk-only") {
        return Ok(Outcome::Failed(
            "encrypted partitions are not supported".into(),
        ));
    }
    let hints = ["hint", "hint-efi", "hint-baremetal"];
    let hints = hints.iter().flat_map(|name| arguments.values(name));
    find(grub, by, wanted, variable, hints)
}

/// `search.fs_uuid NAME [VARIABLE [HINT...]]`, and so for labels and files.
pub(super) fn search_short(
    grub: &mut Interpreter<'_>,
    call: &Call<'_>,
) -> Result<Outcome, BootError> {
    let by = match call.name {
        "search.file" => By::File,
        "search.fs_label" => By::Label,
        _ => By::Uuid,
    };
    let mut words = call.arguments.rest.iter().copied();
    match words.next() {
        Some(wanted) => {
            let variable = words.next();
            find(grub, by, wanted, variable, words)
        }
        None => Ok(Outcome::Failed("it does not say what to search for".into())),
    }
}

fn find<'a>(
    grub: &mut Interpreter<'_>,
    by: By,
    wanted: &str,
    variable: Option<&str>,
    hints: impl Iterator<Item = &'a str>,
) -> Result<Outcome, BootError> {
    let devices = grub.devices;
    let hinted = hints.filter_map(|hint| {
        let index = devices.find(hint.trim_end_matches(','))?;
        devices.get(index)
    });
    let mut candidates = hinted.chain(devices.in_search_order());
    let Some(found) = candidates.find(|device| by.matches(device, wanted)) else {
        let by = by.text();
        return Ok(Outcome::Failed(format!(
            "no partition with the {by} `{wanted}`"
        )));
    };
    if let Some(variable) = variable {
        let name = found.name.clone();
        grub.set(variable, &name)?;
    }
    Ok(Outcome::Done)
}

/// `probe --set=VARIABLE --fs-uuid|--label|--fs|--partmap|--driver|--part-uuid DEVICE`.
pub(super) fn probe(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let arguments = &call.arguments;
    let Some(name) = arguments.rest.first() else {
        return Ok(Outcome::Failed("it does not say which device".into()));
    };
    let variable = arguments.value("set");
    let devices = grub.devices;
    let Some(device) = devices.find(name).and_then(|index| devices.get(index)) else {
        return Ok(Outcome::Failed(format!("there is no device `{name}`")));
    };
    let partition = device.name.split_once(',').map(|(_, partition)| partition);
    let volume = device.volume();
    let value = if arguments.has("driver") || arguments.has("part-uuid") {
        // The names of drivers are those of real machines' firmware, and this is not read.
        let why = "this property of a disk is not known here";
        if let Some(variable) = variable {
            let command = grub.not_decided(&format!("probe {name}"), why);
            let set = grub.env.set_undecided(variable, command);
            set.map_err(|full| grub.error("probe", full.to_string()))?;
        }
        return Ok(Outcome::Undecided(why.into()));
    } else if arguments.has("partmap") {
        let kind = partition.map(|name| name.trim_end_matches(|c: char| c.is_ascii_digit()));
        Some(kind.unwrap_or("none").to_string())
    } else if let Some(volume) = volume {
        if arguments.has("fs") {
            Some(volume.kind_name().to_string())
        } else if arguments.has("fs-uuid") {
            volume.uuid()
        } else if arguments.has("label") {
            Some(volume.label().unwrap_or_default())
        } else {
            return Ok(Outcome::Failed("it does not say what to look for".into()));
        }
    } else {
        let problem = format!("`{name}` has no file system that can be read");
        return Ok(Outcome::Failed(problem));
    };
    match (value, variable) {
        (Some(value), Some(variable)) => grub.set(variable, &value).map(|()| Outcome::Done),
        (Some(_), None) => Ok(Outcome::Done),
        (None, _) => Ok(Outcome::Failed("it has no UUID".into())),
    }
}
