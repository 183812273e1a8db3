//! Wildcards in words: `*` and `?` in paths that begin with `/`, `(` or `*`.
//!
//! GRUB expands them in all commands, not only in `for`, in the order of the directory. A word that
//! nothing matches stays as it is.

use super::account::Account;
use crate::boot::budget::{Exceeded, Limit};
use crate::boot::devices::{Devices, Location};

/// A word, with the positions of the characters that are wildcards because no quotes or backslash
/// hide them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) text: String,
    wild: Vec<usize>,
}

impl Field {
    /// Appends text that stands for itself.
    pub(super) fn push_quoted(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Appends text that may have wildcards.
    pub(super) fn push_plain(&mut self, text: &str) {
        let start = self.text.len();
        let wild = text.bytes().enumerate();
        let wild = wild.filter(|(_, byte)| matches!(byte, b'*' | b'?'));
        self.wild.extend(wild.map(|(at, _)| start + at));
        self.text.push_str(text);
    }

    /// The word's parts between slashes, which stay at the end of each part.
    fn parts(&self) -> Vec<Part<'_>> {
        let mut start = 0;
        let mut wild = self.wild.as_slice();
        let mut parts = Vec::new();
        for text in self.text.split_inclusive('/') {
            let end = start + text.len();
            let (own, rest) = wild.split_at(wild.partition_point(|at| *at < end));
            parts.push(Part {
                text: text.trim_end_matches('/'),
                slash: text.ends_with('/'),
                wild: own.iter().map(|at| at - start).collect(),
            });
            (start, wild) = (end, rest);
        }
        parts
    }
}

struct Part<'a> {
    text: &'a str,
    /// Whether a slash follows.
    slash: bool,
    wild: Vec<usize>,
}

impl Part<'_> {
    /// Whether `name` matches. Charges the work for it.
    fn matches(&self, name: &str, account: &Account) -> Result<bool, Exceeded> {
        let pattern = self.text.as_bytes();
        let name = name.as_bytes();
        account
            .budget()
            .work((pattern.len() as u64).saturating_mul(name.len() as u64))?;
        let star =
            |at: usize| pattern.get(at) == Some(&b'*') && self.wild.binary_search(&at).is_ok();
        let one = |at: usize, byte: u8| match pattern.get(at) {
            Some(b'?') if self.wild.binary_search(&at).is_ok() => true,
            have => have == Some(&byte) && !star(at),
        };
        let (mut at, mut seen) = (0, 0);
        // After the last star: where the pattern goes on, and up to where the star reaches.
        let mut back = None;
        while let Some(byte) = name.get(seen) {
            if one(at, *byte) {
                (at, seen) = (at + 1, seen + 1);
            } else if star(at) {
                back = Some((at + 1, seen));
                at += 1;
            } else if let Some((after, reach)) = back {
                back = Some((after, reach + 1));
                (at, seen) = (after, reach + 1);
            } else {
                return Ok(false);
            }
        }
        while star(at) {
            at += 1;
        }
        Ok(at == pattern.len())
    }
}

/// The paths that `field` stands for; `None` if it has no wildcards, or nothing matches.
///
/// # Errors
/// They are too many.
pub(super) fn expand(
    field: &Field,
    devices: &Devices,
    root: &str,
    account: &Account,
) -> Result<Option<Vec<String>>, Exceeded> {
    if field.wild.is_empty() || !field.text.starts_with(['/', '(', '*']) {
        return Ok(None);
    }
    let mut paths = vec![String::new()];
    let mut matched = false;
    for (index, part) in field.parts().iter().enumerate() {
        let slash = if part.slash { "/" } else { "" };
        let mut next = Vec::new();
        for path in &paths {
            if part.wild.is_empty() {
                let path = format!("{path}{}{slash}", part.text);
                if !matched || exists(&path, devices, root) {
                    next.push(path);
                }
                continue;
            }
            let names = if index == 0 {
                device_names(devices, part.text.starts_with('('))
            } else {
                list(path, devices, root)
            };
            account
                .budget()
                .charge(Limit::Entries, names.len() as u64)?;
            for name in names {
                if part.matches(&name, account)? {
                    let path = format!("{path}{name}{slash}");
                    account.keep(path.len())?;
                    next.push(path);
                }
            }
        }
        matched |= !part.wild.is_empty();
        paths = next;
        if paths.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(paths))
}

/// The names of disks and, if asked for, of partitions, in parentheses and in GRUB's order.
fn device_names(devices: &Devices, partitions: bool) -> Vec<String> {
    let all = devices.in_search_order().map(|device| device.name.as_str());
    let all = all.filter(|name| partitions && name.contains(','));
    let disk = std::iter::once("hd0");
    disk.chain(all).map(|name| format!("({name})")).collect()
}

fn list(directory: &str, devices: &Devices, root: &str) -> Vec<String> {
    let location = devices.locate(directory, root);
    location
        .ok()
        .and_then(|location| devices.list(&location).ok())
        .unwrap_or_default()
}

fn exists(path: &str, devices: &Devices, root: &str) -> bool {
    // Nothing but a device.
    if path.ends_with(')') {
        return true;
    }
    let location: Result<Location, _> = devices.locate(path, root);
    location.is_ok_and(|location| matches!(devices.kind(&location), Ok(Some(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        let mut field = Field::default();
        let mut plain = true;
        for piece in pattern.split('\'') {
            if plain {
                field.push_plain(piece);
            } else {
                field.push_quoted(piece);
            }
            plain = !plain;
        }
        let parts = field.parts();
        let account = Account::ample();
        parts.first().unwrap().matches(name, &account).unwrap()
    }

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("*", ""),
            ("*", ".hidden"),
            ("*.cfg", "a.cfg"),
            ("vmlinuz-*-amd64", "vmlinuz-6.1-amd64-amd64"),
            ("a?c", "abc"),
            ("'*'*", "*x"),
            ("a**b", "ab"),
            ("[a]*", "[a]x"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.cfg", "a.cfgx"),
            ("a?c", "ac"),
            ("'*'*", "x"),
            ("*a*b", "xbxa"),
            ("a", "ab"),
            ("[a]*", "ax"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
