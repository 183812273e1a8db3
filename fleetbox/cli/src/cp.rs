//! `cp`: files between this host and a VM.

use std::path::PathBuf;

use fleetbox::files::{Copied, FileOptions};
use fleetbox::guest::quote;
use fleetbox::names::Reference;
use fleetbox::{Result, Size, Vm};

use crate::REFUSED;
use crate::args::Cp;
use crate::output::{Context, complain};
use crate::progress::Display;

/// Where something is copied from or to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// This host.
    Host(PathBuf),
    /// A path in a VM.
    Guest(Reference, String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(path) => path.display().fmt(f),
            Self::Guest(vm, path) => write!(f, "{vm}:{path}"),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = fleetbox::names::InvalidValue;

    /// `NAME:PATH` and `CLUSTER/NAME:PATH` are in a VM. What else has a slash before the first colon is
    /// a path of this host.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let Some((name, path)) = text.split_once(':') else {
            return Ok(Self::Host(PathBuf::from(text)));
        };
        match name.parse() {
            Ok(vm) => {
                // An empty path is the home directory, as scp has it.
                let path = if path.is_empty() { "./" } else { path };
                Ok(Self::Guest(vm, path.to_owned()))
            }
            Err(_) if name.contains('/') => Ok(Self::Host(PathBuf::from(text))),
            Err(error) => Err(error),
        }
    }
}

pub(crate) async fn run(context: &Context, cp: Cp) -> Result<u8> {
    let several = cp.sources.len() > 1;
    let mut total = Copied::default();
    for source in &cp.sources {
        let display = Display::begin(context, &format!("copying {source} to {}", cp.destination));
        let tell = display.teller();
        let mut options = FileOptions::new().progress(move |progress| {
            tell(format!("{} ({})", progress.path, size(progress.bytes)));
        });
        if cp.root {
            options = options.as_root();
        }
        let copied = match (source, &cp.destination) {
            (Place::Host(host), Place::Guest(name, path)) => {
                let vm = Vm::open_in(context.home(), name.as_str()).await?;
                let path = guest_directory(&vm, path, several).await?;
                vm.copy_to_with(host, &path, &options).await?
            }
            (Place::Guest(name, path), Place::Host(host)) => {
                let vm = Vm::open_in(context.home(), name.as_str()).await?;
                // A directory that is there is what it goes into.
                let into = if several || host.is_dir() {
                    host.join("")
                } else {
                    host.clone()
                };
                vm.copy_from_with(path, into, &options).await?
            }
            _ => {
                drop(display);
                complain(
                    "one side of a copy is in a VM and written as NAME:PATH, the other is on this host; \
                     a host's path with a colon is written as ./PATH",
                );
                return Ok(REFUSED);
            }
        };
        drop(display);
        total.files += copied.files;
        total.directories += copied.directories;
        total.links += copied.links;
        total.bytes += copied.bytes;
    }
    if context.json {
        context.say_json(&serde_json::json!({
            "files": total.files,
            "directories": total.directories,
            "links": total.links,
            "bytes": total.bytes,
        }))?;
    }
    context.tell(format_args!(
        "{} files, {}",
        total.files + total.links,
        size(total.bytes)
    ));
    Ok(0)
}

fn size(bytes: u64) -> String {
    if bytes < 1 << 20 {
        return format!("{} KiB", bytes.div_ceil(1 << 10));
    }
    Size::mib(bytes.div_ceil(1 << 20)).to_string()
}

/// A path that ends in a slash if it is a directory in the guest, or has to be one.
async fn guest_directory(vm: &Vm, path: &str, several: bool) -> Result<String> {
    if path.ends_with('/') {
        return Ok(path.to_owned());
    }
    // A log-in begins in the home directory.
    let tested = path.strip_prefix("~/").unwrap_or(path);
    let tested = if tested == "~" { "." } else { tested };
    let test = format!("test -d {}", quote(&format!("./{tested}")));
    let test = if tested.starts_with('/') {
        format!("test -d {}", quote(tested))
    } else {
        test
    };
    Ok(if several || vm.ssh(&test).await?.success() {
        format!("{path}/")
    } else {
        path.to_owned()
    })
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
