//! `Debug` of errors and output for people. A test that returns an error, `unwrap`, and an assertion with `{:?}` all
//! print with `Debug`.

use std::error::Error;
use std::fmt;

/// Maximum number of sources that are shown.
const SOURCES: usize = 16;

/// Maximum bytes of the beginning, and of the end, of a longer text that are shown.
const PART: usize = 2 << 10;

/// Implements `Debug` for error types: as [`describe`] does.
macro_rules! readable_debug {
    ($($error:ty),+) => {
        $(impl std::fmt::Debug for $error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::util::readable::describe(self, f)
            }
        })+
    };
}

pub(crate) use readable_debug;

/// Writes an error's message, and those of its sources that are not a part of it.
pub(crate) fn describe(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut shown = error.to_string();
    f.write_str(&shown)?;
    let mut source = error.source();
    for _ in 0..SOURCES {
        let Some(cause) = source else { break };
        let text = cause.to_string();
        if !shown.contains(&text) {
            write!(f, "\ncaused by: {text}")?;
            shown = text;
        }
        source = cause.source();
    }
    Ok(())
}

/// Bytes of a program's output as text: escaped, and shortened in the middle.
pub(crate) struct Text<'a>(pub(crate) &'a [u8]);

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        if bytes.len() <= 2 * PART {
            return write!(f, "{:?}", String::from_utf8_lossy(bytes));
        }
        let (begin, rest) = bytes.split_at(PART);
        let (left_out, end) = rest.split_at(rest.len() - PART);
        write!(
            f,
            "{:?} ... {} bytes ... {:?}",
            String::from_utf8_lossy(begin),
            left_out.len(),
            String::from_utf8_lossy(end)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::error::Error as Ours;

    #[derive(thiserror::Error)]
    #[error("cannot do it")]
    struct Outer(#[source] Ours);
    readable_debug!(Outer);

    #[test]
    fn sources_follow_unless_the_message_has_them() {
        let source = || io::Error::other("disk on fire");
        let inner = Ours::Io {
            action: "sync",
            source: source(),
        };
        assert_eq!(format!("{inner:?}"), "cannot sync: disk on fire");
        assert_eq!(
            format!("{:?}", Outer(inner)),
            "cannot do it\ncaused by: cannot sync: disk on fire"
        );
    }

    /// What the standard library prints for a test or a `main` that returns an error.
    #[test]
    fn each_public_error_reads_as_its_message() {
        use crate::model::names::Name;
        use crate::process::ProcessError;
        use crate::store::StoreError;

        let invalid = Name::new("My Box").unwrap_err();
        let name: Name = "web".parse().unwrap();
        let store = || StoreError::Running { name: name.clone() };
        let process = || ProcessError::Failed("a\nb".to_owned());
        let budget = "lots".parse::<crate::host::budget::Budget>().unwrap_err();
        let size = "1GB".parse::<crate::model::size::Size>().unwrap_err();
        let mac = "x".parse::<crate::store::MacAddr>().unwrap_err();
        let network = "x".parse::<crate::model::network::Network>().unwrap_err();
        let errors: Vec<Box<dyn Error>> = vec![
            Box::new(Ours::from(invalid.clone())),
            Box::new(Ours::from(store())),
            Box::new(Ours::from(process())),
            Box::new(Ours::NoVm { name: name.clone() }),
            Box::new(crate::util::task::ShuttingDown),
            Box::new(invalid),
            Box::new(store()),
            Box::new(process()),
            Box::new(budget),
            Box::new(size),
            Box::new(mac),
            Box::new(network),
        ];
        for error in errors {
            assert_eq!(format!("{error:?}"), error.to_string());
        }
    }

    /// An error type of this crate that derives `Debug` would print its structure.
    #[test]
    fn no_error_derives_debug() {
        let mut dirs = vec![std::path::PathBuf::from("src")];
        let mut seen = 0;
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let derives = text.lines().filter(|line| line.starts_with("#[derive("));
                    for line in derives.filter(|line| line.contains("thiserror::Error")) {
                        seen += 1;
                        assert!(!line.contains("Debug"), "{}: {line}", path.display());
                    }
                }
            }
        }
        assert!(seen > 15, "{seen} error types");
    }

    #[test]
    fn output_is_text_and_bounded() {
        let text = |bytes: &[u8]| format!("{:?}", Text(bytes));
        assert_eq!(
            text(b"no such \x1b[1mfile\n\xff"),
            "\"no such \\u{1b}[1mfile\\n\u{fffd}\""
        );
        let long = [vec![b'a'; 1 << 20], vec![b'z'; PART]].concat();
        let shown = text(&long);
        assert!(shown.len() < 3 * PART, "{}", shown.len());
        assert!(shown.starts_with("\"aaa") && shown.ends_with("zzz\""));
        assert!(shown.contains("\" ... 1046528 bytes ... \""), "{shown}");
    }
}
