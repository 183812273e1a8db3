//! `linux` and `initrd`, which load files.

use super::table::{Call, Outcome};
use super::{Flow, Interpreter, LoadedLinux, Status};
use crate::boot::devices::Location;
use crate::boot::error::BootError;
use crate::boot::fs::{FsError, Kind};

impl Interpreter<'_> {
    /// The regular file at `path`.
    fn regular(&self, path: &str) -> Result<Result<Location, String>, BootError> {
        Ok(self.locate(path)?.and_then(|location| {
            let error = match self.devices.kind(&location) {
                Ok(Some(Kind::File(_))) => return Ok(location),
                Ok(Some(_)) => FsError::NotAFile,
                Ok(None) => FsError::NotFound,
                Err(error) => error,
            };
            Err(format!("{}: {error}", self.devices.display(&location)))
        }))
    }
}

/// `linux KERNEL [WORD...]`.
pub(super) fn linux(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    // What was loaded before is gone, whether this succeeds or not.
    grub.loaded = None;
    let words = &call.arguments.rest;
    let Some(path) = words.first() else {
        return Ok(Outcome::Failed("it names no kernel".into()));
    };
    let kernel = match grub.regular(path)? {
        Ok(kernel) => kernel,
        Err(problem) => return Ok(Outcome::Failed(problem)),
    };
    grub.loaded = Some(LoadedLinux {
        kernel,
        initrds: Vec::new(),
        cmdline: format!("BOOT_IMAGE={}", loader_words(words)),
        config: grub.current.clone(),
    });
    Ok(Outcome::Done)
}

/// `initrd FILE...`. Without its initrd a kernel would start and then find no root: unlike GRUB,
/// this stops.
pub(super) fn initrd(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    if grub.loaded.is_none() {
        // GRUB says so too; the failed `linux` before it is the cause and is reported.
        return Ok(Outcome::Failed("no kernel is loaded".into()));
    }
    let words = &call.arguments.rest;
    let stop = |problem: &str| {
        let words = words.join(" ");
        Err(grub.error(format!("{} {words}", call.name), problem))
    };
    if words.is_empty() {
        return stop("it names no file");
    }
    let mut initrds = Vec::new();
    for path in words {
        if path.starts_with("newc:") {
            return stop("archives of single files (`newc:`) are not supported");
        }
        match grub.regular(path)? {
            Ok(location) => initrds.push(location),
            Err(problem) => return stop(&problem),
        }
    }
    if let Some(loaded) = &mut grub.loaded {
        loaded.initrds = initrds;
    }
    Ok(Outcome::Done)
}

/// `boot`.
pub(super) fn boot(grub: &mut Interpreter<'_>, _: &Call<'_>) -> Result<Outcome, BootError> {
    if grub.loaded.is_none() {
        return Ok(Outcome::Failed("no kernel is loaded".into()));
    }
    grub.status = Status::Known(0);
    Ok(Outcome::Flow(Flow::Boot))
}

/// Joins words to a command line as GRUB does. A word with a space is put in double quotes. Quotes
/// and backslashes are escaped, except in `\xHH`.
fn loader_words(words: &[&str]) -> String {
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
        let expected = r#"/vmlinuz "root=LABEL=my disk" a=\'b\' c=\"d\" e=\x20 f\\g"#;
        assert_eq!(loader_words(&words), expected);
    }
}
