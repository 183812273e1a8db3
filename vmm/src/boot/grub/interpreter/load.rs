//! `linux` and `initrd`, which load files.

use super::{Interpreter, LoadedLinux};
use crate::boot::devices::Location;
use crate::boot::fs::{FsError, Kind};

impl Interpreter<'_> {
    /// The regular file at `path`.
    fn regular(&self, path: &str) -> Result<Location, String> {
        let location = self.locate(path)?;
        match self.devices.kind(&location) {
            Ok(Some(Kind::File(_))) => Ok(location),
            Ok(found) => {
                let error = if found.is_some() {
                    FsError::NotAFile
                } else {
                    FsError::NotFound
                };
                Err(format!("{}: {error}", self.devices.display(&location)))
            }
            Err(error) => Err(format!("{}: {error}", self.devices.display(&location))),
        }
    }

    pub(super) fn linux(&mut self, words: &[String]) -> Result<(), String> {
        // What was loaded before is gone, whether this succeeds or not.
        self.loaded = None;
        let path = words.first().ok_or("it names no kernel")?;
        let kernel = self.regular(path)?;
        let cmdline = format!("BOOT_IMAGE={}", loader_words(words));
        let config = self.current.clone();
        self.loaded = Some(LoadedLinux {
            kernel,
            initrds: Vec::new(),
            cmdline,
            config,
        });
        Ok(())
    }

    pub(super) fn initrd(&mut self, words: &[String]) -> Result<(), String> {
        if self.loaded.is_none() {
            // GRUB says so too; the failed `linux` before it is the cause and is reported.
            self.note("initrd", "no kernel is loaded");
            return Ok(());
        }
        if words.is_empty() {
            return Err("it names no file".into());
        }
        let mut initrds = Vec::new();
        for path in words {
            if path.starts_with("newc:") {
                return Err("archives of single files (`newc:`) are not supported".into());
            }
            initrds.push(self.regular(path)?);
        }
        if let Some(loaded) = &mut self.loaded {
            loaded.initrds = initrds;
        }
        Ok(())
    }
}

/// Joins words to a command line as GRUB does. A word with a space is put in double quotes. Quotes
/// and backslashes are escaped, except in `\xHH`.
fn loader_words(words: &[String]) -> String {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        let spaced = word.contains(' ');
        if spaced {
            line.push('"');
        }
        for (at, char) in word.char_indices() {
            let rest = word.as_bytes().get(at + 1..at + 4).unwrap_or_default();
            let hex =
                matches!(rest, [b'x', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
            if matches!(char, '\'' | '"') || (char == '\\' && !hex) {
                line.push('\\');
            }
            line.push(char);
        }
        if spaced {
            line.push('"');
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_quoted_as_grub_does() {
        let words = [
            "/vmlinuz",
            "root=LABEL=my disk",
            "a='b'",
            "c=\"d\"",
            r"e=\x20",
            r"f\g",
        ];
        let words = words.map(String::from);
        let expected = r#"/vmlinuz "root=LABEL=my disk" a=\'b\' c=\"d\" e=\x20 f\\g"#;
        assert_eq!(loader_words(&words), expected);
    }
}
