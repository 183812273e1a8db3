//! Commands whose result decides what is run.

use super::Interpreter;
use super::table::{Call, Outcome};
use crate::boot::budget::Limit;
use crate::boot::error::BootError;
use crate::boot::fs::Kind;
use crate::boot::grub::expression::{self, Files};
use crate::boot::grub::regexp as expressions;

/// The files that conditions ask for.
struct Disk<'a, 'i> {
    grub: &'a Interpreter<'i>,
    root: &'a str,
}

impl Disk<'_, '_> {
    /// As GRUB does, takes a path without a leading slash for one on the root device, and a device
    /// alone for its topmost directory.
    fn path(path: &str) -> String {
        let end = match path.find(')') {
            Some(end) if path.starts_with('(') => end + 1,
            _ => 0,
        };
        let (device, path) = path.split_at(end);
        format!("{device}/{}", path.trim_start_matches('/'))
    }
}

impl Files for Disk<'_, '_> {
    fn kind(&mut self, path: &str) -> Option<Kind> {
        let location = self.grub.devices.locate(&Self::path(path), self.root);
        self.grub.devices.kind(&location.ok()?).ok().flatten()
    }

    fn modified(&mut self, path: &str) -> Option<i64> {
        let location = self.grub.devices.locate(&Self::path(path), self.root);
        self.grub.devices.modified(&location.ok()?).ok().flatten()
    }
}

/// `test` and `[`.
pub(super) fn test(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let mut words: Vec<String> = call
        .arguments
        .rest
        .iter()
        .map(|word| word.to_string())
        .collect();
    if words.last().is_some_and(|word| word == "]") {
        words.pop();
    }
    let root = grub.variable("root")?;
    let mut disk = Disk { grub, root: &root };
    Ok(match expression::evaluate(&words, &mut disk) {
        Ok(holds) => holds.into(),
        Err(why) => Outcome::Undecided(why),
    })
}

pub(super) fn yes(_: &mut Interpreter<'_>, _: &Call<'_>) -> Result<Outcome, BootError> {
    Ok(Outcome::Done)
}

pub(super) fn no(_: &mut Interpreter<'_>, _: &Call<'_>) -> Result<Outcome, BootError> {
    Ok(Outcome::False)
}

/// `cpuid`: every CPU of the machine has long mode and PAE.
pub(super) fn cpuid(_: &mut Interpreter<'_>, _: &Call<'_>) -> Result<Outcome, BootError> {
    Ok(Outcome::Done)
}

/// `smbios`: the machine has no such tables. The variable is left as it is.
pub(super) fn smbios(_: &mut Interpreter<'_>, _: &Call<'_>) -> Result<Outcome, BootError> {
    Ok(Outcome::Failed("the machine has no SMBIOS tables".into()))
}

/// `regexp [--set=[NUMBER:]VARIABLE]... EXPRESSION TEXT`.
pub(super) fn regexp(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let [expression, text] = call.arguments.rest.as_slice() else {
        return Ok(Outcome::Failed("two arguments are expected".into()));
    };
    let budget = grub.account.budget();
    budget.charge(Limit::Steps, expressions::STEPS)?;
    budget.check()?;
    let groups = match expressions::find(expression, text) {
        Ok(Some(groups)) => groups,
        Ok(None) => return Ok(Outcome::False),
        // What it would set and decide is not known.
        Err(why) => {
            let why = format!("it cannot be evaluated: {why}");
            let command = grub.not_decided(&format!("regexp {expression} {text}"), &why);
            for name in call.arguments.values("set") {
                let name = name.split_once(':').map_or(name, |(_, name)| name);
                let set = grub.env.set_undecided(name, command.clone());
                set.map_err(|full| grub.error("regexp", full.to_string()))?;
            }
            return Ok(Outcome::Undecided(why));
        }
    };
    for name in call.arguments.values("set") {
        let (group, name) = match name.split_once(':') {
            None => (1, name),
            Some((group, name)) => match group.parse::<usize>() {
                Ok(group) => (group, name),
                Err(_) => {
                    return Ok(Outcome::Failed(format!(
                        "`{group}` is not a group's number"
                    )));
                }
            },
        };
        match groups.get(group) {
            Some(Some(text)) => grub.set(name, text)?,
            _ => grub.env.unset(name),
        }
    }
    Ok(Outcome::Done)
}

/// `insmod`: whether a module is there. One that is not a file may be built into the guest's GRUB.
pub(super) fn insmod(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let prefix = grub.variable("prefix")?;
    for name in &call.arguments.rest {
        if name.starts_with(['/', '(']) {
            if !exists(grub, name)? {
                return Ok(Outcome::False);
            }
            continue;
        }
        let places = ["x86_64-efi", "i386-pc"];
        let mut there = false;
        for place in places {
            there = there || exists(grub, &format!("{prefix}/{place}/{name}.mod"))?;
        }
        if !there {
            let why = format!("the module `{name}` is not on the disk, and may be built in or not");
            return Ok(Outcome::Undecided(why));
        }
    }
    Ok(Outcome::Done)
}

/// `loadfont`, whose fonts are paths, or names of files beside the configuration.
pub(super) fn loadfont(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let prefix = grub.variable("prefix")?;
    for name in &call.arguments.rest {
        let path = if name.starts_with(['/', '(']) {
            name.to_string()
        } else {
            format!("{prefix}/fonts/{name}.pf2")
        };
        if !exists(grub, &path)? {
            return Ok(Outcome::False);
        }
    }
    Ok(Outcome::Done)
}

/// `background_image [FILE]`.
pub(super) fn background_image(
    grub: &mut Interpreter<'_>,
    call: &Call<'_>,
) -> Result<Outcome, BootError> {
    match call.arguments.rest.first() {
        Some(path) => Ok(exists(grub, path)?.into()),
        None => Ok(Outcome::Done),
    }
}

fn exists(grub: &Interpreter<'_>, path: &str) -> Result<bool, BootError> {
    let kind = grub
        .locate(path)?
        .map(|location| grub.devices.kind(&location));
    Ok(matches!(kind, Ok(Ok(Some(Kind::File(_))))))
}
