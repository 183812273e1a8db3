//! Menus: makes entries, finds the default one and runs it.

use std::rc::Rc;

use super::table::{Call, Outcome};
use super::{Entry, Flow, Interpreter, MAX_ENTRIES};
use crate::boot::error::BootError;
use crate::boot::grub::number::{is_space, leading};

/// `menuentry TITLE [WORD...] { ... }` and `submenu`.
pub(super) fn menuentry(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let arguments = &call.arguments;
    let body = match (arguments.value("source"), call.block) {
        (None, Some(block)) => block.clone(),
        (Some(source), None) => {
            let (file, line) = (grub.current.clone(), grub.line);
            grub.parse(source.as_bytes(), &file, line)?
        }
        (Some(_), Some(_)) => return Ok(Outcome::Failed("it has two bodies".into())),
        (None, None) => return Ok(Outcome::Failed("it has no `{ ... }`".into())),
    };
    let words: Vec<String> = arguments.rest.iter().map(|word| word.to_string()).collect();
    let Some(title) = words.first().cloned() else {
        return Ok(Outcome::Failed("it has no title".into()));
    };
    let id = arguments
        .value("id")
        .map_or_else(|| title.clone(), str::to_string);
    grub.entries += 1;
    if grub.entries > MAX_ENTRIES {
        let problem = format!("the configuration makes more than {MAX_ENTRIES} menu entries");
        return Err(grub.error(call.name, problem));
    }
    let bytes = words.iter().map(|word| word.len() + size_of::<String>());
    grub.account
        .keep(size_of::<Entry>() + title.len() + id.len() + bytes.sum::<usize>())?;
    let entry = Rc::new(Entry {
        title,
        id,
        arguments: words,
        body,
        submenu: call.name == "submenu",
        file: grub.current.clone(),
        line: grub.line,
    });
    if let Some(menu) = grub.menus.last_mut() {
        menu.push(entry);
    }
    Ok(Outcome::Done)
}

impl Interpreter<'_> {
    /// Opens a context, with the exported variables and an empty menu.
    pub(super) fn open_context(&mut self, construct: &str) -> Result<(), BootError> {
        let opened = self.env.open();
        opened.map_err(|full| self.error(construct, full.to_string()))?;
        self.menus.push(Vec::new());
        Ok(())
    }

    pub(super) fn close_context(&mut self) {
        self.menus.pop();
        self.env.close();
    }

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
        let default = self.variable("default")?;
        // As GRUB, the first if there is no such entry.
        let first = find(&entries, &default).unwrap_or(0);
        if self.run_entry(&entries, first, &default)? {
            return Ok(true);
        }
        // An entry that fails may set it.
        let fallback = self.variable("fallback")?;
        for spec in fallback.split(is_space).filter(|spec| !spec.is_empty()) {
            if let Some(index) = find(&entries, spec)
                && self.run_entry(&entries, index, &default)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn run_entry(
        &mut self,
        entries: &[Rc<Entry>],
        index: usize,
        default: &str,
    ) -> Result<bool, BootError> {
        let Some(entry) = entries.get(index) else {
            return Ok(false);
        };
        let booted = self.nest(&entry.title, |grub| grub.enter(entry, default))?;
        if !booted {
            tracing::warn!(title = entry.title, "the menu entry loads no kernel");
        }
        Ok(booted)
    }

    fn enter(&mut self, entry: &Entry, default: &str) -> Result<bool, BootError> {
        if entry.submenu {
            self.open_context(&entry.title)?;
        }
        let id = entry.id.replace('>', ">>");
        let outer = self.variable("chosen")?;
        let chosen = if outer.is_empty() {
            id
        } else {
            format!("{outer}>{id}")
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
        let (line, loops) = (self.line, std::mem::take(&mut self.loops));
        self.line = entry.line;
        self.scopes += 1;
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
        self.scopes -= 1;
        (self.parameters, self.current) = (parameters, file);
        (self.line, self.loops) = (line, loops);
        if entry.submenu {
            self.close_context();
        }
        if !booted {
            self.titles.pop();
            self.restore("chosen", &outer)?;
            self.restore("default", default)?;
        }
        Ok(booted)
    }

    /// Gives a variable the value back that it had before an entry, where empty is unset.
    fn restore(&mut self, name: &str, value: &str) -> Result<(), BootError> {
        if value.is_empty() {
            self.env.unset(name);
            return Ok(());
        }
        self.set(name, value)
    }
}

/// The entry that `spec` names by its index, title or identifier. Only the part before the first
/// single `>` is used; the rest names an entry of the submenu.
fn find(entries: &[Rc<Entry>], spec: &str) -> Option<usize> {
    let name = head(spec);
    let named = || {
        entries
            .iter()
            .position(|entry| entry.title == name || entry.id == name)
    };
    let within = |index: u64| {
        let index = usize::try_from(index).ok();
        index.filter(|index| *index < entries.len())
    };
    match leading(&name) {
        Some((index, rest)) if rest.trim_start_matches(is_space).is_empty() => within(index),
        // GRUB takes leading digits for an index even if a name follows; some distributions' GRUBs,
        // and this, prefer a name that is there.
        Some((index, _)) => named().or_else(|| within(index)),
        None => named(),
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
    use super::*;

    #[test]
    fn specifications() {
        let entry = |title: &str, id: &str| {
            Rc::new(Entry {
                title: title.into(),
                id: id.into(),
                arguments: Vec::new(),
                body: Rc::new([]),
                submenu: false,
                file: "".into(),
                line: 0,
            })
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
        // White space before a number is skipped, and after it; names are taken as they are.
        assert_eq!(
            (found(" 1> 0"), found("\t0 "), found("01"), found("0x1>")),
            (Some(1), Some(0), Some(1), Some(1))
        );
        assert_eq!((found(" linux"), found("linux >0")), (None, None));
        assert_eq!(found("99999999999999999999"), None);
        assert_eq!(
            (below("1>2>3"), below("a>>b"), below("a>")),
            (Some("2>3"), None, Some(""))
        );
    }
}
