//! Parsing the values on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use fleetbox::images::ImageRef;
use fleetbox::names::{InvalidValue, Reference, check_count, check_cpus};
use fleetbox::{ExtraDisk, Ready, Size};

/// Why a value is refused.
type Refusal = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn image(text: &str) -> Result<String, Refusal> {
    ImageRef::from_str(text)?;
    Ok(text.to_owned())
}

pub(crate) fn cpus(text: &str) -> Result<u32, Refusal> {
    Ok(check_cpus(text.parse()?)?.into())
}

/// `HOST:GUEST`, two ports.
pub(crate) fn publish(text: &str) -> Result<(u16, u16), Refusal> {
    let ports = text.split_once(':').and_then(|(host, guest)| {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        Some((port(host)?, port(guest)?))
    });
    ports.ok_or_else(|| "expected two ports, such as 8080:80".into())
}

pub(crate) fn ready(text: &str) -> Result<Ready, Refusal> {
    const EXPECTED: &str =
        "expected ssh, cloud-init, port:NUMBER, console:REGEX or command:COMMAND";
    Ok(match text.split_once(':') {
        None if text == "ssh" => Ready::Ssh,
        None if text == "cloud-init" => Ready::CloudInit,
        Some(("port", port)) => match port.parse() {
            Ok(port @ 1..) => Ready::Port(port),
            _ => return Err(EXPECTED.into()),
        },
        Some(("console", pattern)) if !pattern.is_empty() => Ready::Console(pattern.to_owned()),
        Some(("command", command)) if !command.trim().is_empty() => {
            Ready::Command(command.to_owned())
        }
        _ => return Err(EXPECTED.into()),
    })
}

pub(crate) fn count(text: &str) -> Result<u32, Refusal> {
    Ok(check_count(text.parse()?)?)
}

pub(crate) fn memory(text: &str) -> Result<Size, Refusal> {
    Ok(text.parse::<Size>()?.check_memory()?)
}

pub(crate) fn disk(text: &str) -> Result<Size, Refusal> {
    Ok(text.parse::<Size>()?.check_disk()?)
}

/// `NAME=VALUE`, or `NAME` for a variable of this process.
pub(crate) fn variable(text: &str) -> Result<(String, String), Refusal> {
    match text.split_once('=') {
        Some(("", _)) => Err("expected NAME=VALUE".into()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(error) => Err(format!("{error}; expected NAME=VALUE").into()),
        },
    }
}

/// A size or the path of a file, with `:ro` for a disk that is only read.
pub(crate) fn extra_disk(text: &str) -> Result<ExtraDisk, Refusal> {
    let (what, read_only) = match text.strip_suffix(":ro") {
        Some(what) => (what, true),
        None => (text, false),
    };
    let disk = match what.parse::<Size>() {
        Ok(size) => ExtraDisk::empty(size.check_disk()?),
        Err(_) if what.is_empty() => return Err("expected a size or the path of a file".into()),
        Err(_) => ExtraDisk::file(what),
    };
    Ok(if read_only { disk.read_only() } else { disk })
}

/// What a signal does to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ends it at once, as pulling the plug does.
    Kill,
    /// Presses its power button and does not wait.
    PowerButton,
}

/// A signal by its name, with or without `SIG`, or by its number. Those that ask a process to end press the power
/// button; the others mean nothing to a machine.
pub(crate) fn signal(text: &str) -> Result<Signal, Refusal> {
    let name = text.to_ascii_uppercase();
    match name.strip_prefix("SIG").unwrap_or(&name) {
        "KILL" | "9" => Ok(Signal::Kill),
        "TERM" | "15" | "INT" | "2" | "PWR" | "30" => Ok(Signal::PowerButton),
        _ => Err("not a signal for a VM: KILL (9) stops it at once; TERM (15), INT (2) and PWR (30) \
                  press the power button. To signal a process in the guest use `fleetbox exec NAME -- kill`"
            .into()),
    }
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path on this host.
    Host(PathBuf),
    /// A path in a VM.
    Guest(Reference, String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(path) => path.display().fmt(f),
            Self::Guest(vm, path) => write!(f, "{vm}:{path}"),
        }
    }
}

impl FromStr for Place {
    type Err = InvalidValue;

    /// `NAME:PATH` and `CLUSTER/NAME:PATH` are in a VM. Anything else with a slash before the first colon is
    /// a path on this host.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, path)) = text.split_once(':') else {
            return Ok(Self::Host(PathBuf::from(text)));
        };
        match name.parse() {
            Ok(vm) => {
                // An empty path is the home directory, as with scp.
                let path = if path.is_empty() { "./" } else { path };
                Ok(Self::Guest(vm, path.to_owned()))
            }
            Err(_) if name.contains('/') => Ok(Self::Host(PathBuf::from(text))),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_colon_are_a_guests() {
        let place = |text: &str| text.parse::<Place>();
        for (text, vm, path) in [
            ("web:/a:b", "web", "/a:b"),
            ("web:x", "web", "x"),
            ("web:", "web", "./"),
            ("a/b:c", "a/b", "c"),
        ] {
            let vm = vm.parse().unwrap();
            assert_eq!(place(text), Ok(Place::Guest(vm, path.to_owned())), "{text}");
        }
        for text in ["/a:b", "./a:b", "x", "./a/b:c", "a/b/c:d", "A/b:c"] {
            assert_eq!(place(text), Ok(Place::Host(text.into())), "{text}");
        }
        assert!(place("Web:/x").is_err());
        assert!(place(":x").is_err());
    }
}
