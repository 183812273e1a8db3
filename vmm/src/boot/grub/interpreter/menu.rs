//! Menus: finds the default entry and runs it.

use super::{Entry, Flow, Interpreter};
use crate::boot::error::BootError;

impl Interpreter<'_> {
    /// Boots the current context's menu: its default entry, then those in `fallback`. Returns true
    /// if a kernel was loaded.
    ///
    /// # Errors
    /// An entry does something unsupported.
    pub(in crate::boot::grub) fn menu(&mut self) -> Result<bool, BootError> {
        let entries = self.menus.last().cloned().unwrap_or_default();
        if entries.is_empty() {
            return Ok(false);
        }
        let default = self.env.get("default").unwrap_or_default().to_string();
        // As GRUB, the first if there is no such entry.
        let first = find(&entries, &default).unwrap_or(0);
        let fallback = self.env.get("fallback").unwrap_or_default().to_string();
        let others = fallback
            .split_ascii_whitespace()
            .filter_map(|spec| find(&entries, spec));
        for index in std::iter::once(first).chain(others) {
            let Some(entry) = entries.get(index) else {
                continue;
            };
            if self.enter(entry, &default)? {
                return Ok(true);
            }
            tracing::warn!(title = entry.title, "the menu entry loads no kernel");
        }
        Ok(false)
    }

    fn enter(&mut self, entry: &Entry, default: &str) -> Result<bool, BootError> {
        self.depth += 1;
        if self.depth > super::MAX_DEPTH {
            return Err(self.error(entry.title.as_str(), "menus are nested too deeply"));
        }
        if entry.submenu {
            self.env.open();
            self.menus.push(Vec::new());
        }
        let chosen = match self.env.get("chosen") {
            Some(outer) if !outer.is_empty() => format!("{outer}>{}", entry.id.replace('>', ">>")),
            _ => entry.id.replace('>', ">>"),
        };
        self.set("chosen", &chosen)?;
        self.export("chosen")?;
        match below(default) {
            Some(rest) if !rest.is_empty() => self.set("default", rest)?,
            _ => self.env.unset("default"),
        }
        self.titles.push(entry.title.clone());
        let parameters = std::mem::replace(&mut self.parameters, entry.arguments.clone());
        let file = std::mem::replace(&mut self.current, entry.file.clone());
        let (line, outer) = (self.line, self.in_entry);
        self.line = entry.line;
        // A submenu's body only makes a menu; whatever else it does is not on the way to a kernel.
        self.in_entry = !entry.submenu;
        let flow = self.block(&entry.body)?;
        let mut booted = flow == Flow::Boot || self.loaded.is_some();
        if !booted && entry.submenu {
            booted = self.menu()?;
        }
        if !booted && !entry.submenu {
            self.note(
                &format!("menuentry '{}'", entry.title),
                "it loads no kernel",
            );
        }
        (self.parameters, self.current) = (parameters, file);
        (self.line, self.in_entry) = (line, outer);
        if entry.submenu {
            self.menus.pop();
            self.env.close();
        }
        if !booted {
            self.titles.pop();
        }
        self.depth -= 1;
        Ok(booted)
    }
}

/// The entry that `spec` names by its index, title or identifier. Only the part before the first
/// single `>` is used; the rest names an entry of the submenu.
fn find(entries: &[Entry], spec: &str) -> Option<usize> {
    let name = head(spec);
    let named = || {
        entries
            .iter()
            .position(|entry| entry.title == name || entry.id == name)
    };
    let digits = name.len() - name.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = name.split_at_checked(digits).unwrap_or_default();
    let index = number.parse().ok().filter(|index| *index < entries.len());
    // GRUB takes leading digits for an index even if a name follows; a name that is there is more
    // likely to be meant.
    if rest.is_empty() && digits > 0 {
        index
    } else {
        named().or(index)
    }
}

/// The position of the first single `>`. A double `>>` stands for the character itself.
fn separator(spec: &str) -> Option<usize> {
    let bytes = spec.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'>' {
            if bytes.get(at + 1) != Some(&b'>') {
                return Some(at);
            }
            at += 1;
        }
        at += 1;
    }
    None
}

fn head(spec: &str) -> String {
    let end = separator(spec).unwrap_or(spec.len());
    spec.get(..end).unwrap_or_default().replace(">>", ">")
}

fn below(spec: &str) -> Option<&str> {
    separator(spec).and_then(|at| spec.get(at + 1..))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn specifications() {
        let entry = |title: &str, id: &str| Entry {
            title: title.into(),
            id: id.into(),
            arguments: Vec::new(),
            body: Rc::new([]),
            submenu: false,
            file: "".into(),
            line: 0,
        };
        let menu = [entry("Linux", "linux"), entry("a > b", "more")];
        let found = |spec| find(&menu, spec);
        assert_eq!(
            (found("0"), found("1>3"), found("7"), found("")),
            (Some(0), Some(1), None, None)
        );
        assert_eq!(
            (found("linux"), found("more>x"), found("a >> b>0")),
            (Some(0), Some(1), Some(1))
        );
        assert_eq!((found("a > b"), found("1 and more")), (None, Some(1)));
        assert_eq!(
            (below("1>2>3"), below("a>>b"), below("a>")),
            (Some("2>3"), None, Some(""))
        );
    }
}
