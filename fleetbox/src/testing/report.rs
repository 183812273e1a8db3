//! The report about the VMs of a failed test.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::store::HOME_VARIABLE;
use crate::util::text::{last_lines, printable};
use crate::vm::Vm;

/// Lines of the console that are shown.
const CONSOLE_LINES: usize = 40;

/// How long a guest may take to list its failed units. The guest itself may hang.
const UNITS_LIMIT: Duration = Duration::from_secs(10);

/// Maximum bytes of that list, which comes from the guest.
const UNITS_BYTES: usize = 16 << 10;

/// Maximum bytes to read from the end of a console's log.
const LOG_BYTES: u64 = 32 << 10;

/// Lists the failed units. A special status means that the guest has no systemd.
const UNITS: &str = "[ -d /run/systemd/system ] || exit 99; \
    systemctl --failed --no-legend --plain --no-pager --full";

/// Reports the end of the VM's console, and its failed units.
pub(super) async fn describe(vm: &Vm) -> String {
    let mut text = String::new();
    let name = vm.name();
    let (console, runs) = match vm.console_tail().await {
        Ok(console) => (Ok(console), true),
        // The worker is gone, but its log of the console is still there.
        Err(error) => (end_of_log(&vm.console_log()).ok_or(error), false),
    };
    // Writing to a string cannot fail.
    let _ = match &console {
        Ok(console) if console.trim().is_empty() => {
            writeln!(text, "--- {name}: its console printed nothing")
        }
        Ok(console) => {
            let _ = writeln!(text, "--- {name}: the end of its console");
            indented(&mut text, last_lines(console, CONSOLE_LINES))
        }
        Err(error) => writeln!(text, "--- {name}: {error}"),
    };
    if runs && vm.has_guest() {
        text.push_str(&units_part(name, failed_units(vm).await));
    }
    text
}

fn units_part(name: &str, units: Result<Option<String>, String>) -> String {
    let mut text = String::new();
    let _ = match units {
        Ok(Some(units)) if units.trim().is_empty() => {
            writeln!(text, "--- {name}: no failed units")
        }
        Ok(Some(units)) => {
            let _ = writeln!(text, "--- {name}: failed units");
            indented(&mut text, units.trim_end())
        }
        Ok(None) => Ok(()),
        Err(why) => writeln!(text, "--- {name}: cannot list failed units: {why}"),
    };
    text
}

fn indented(text: &mut String, lines: &str) -> std::fmt::Result {
    lines
        .lines()
        .try_for_each(|line| writeln!(text, "| {}", line.trim_end()))
}

/// The failed units according to the guest's systemd; `None` if the guest does not run systemd.
async fn failed_units(vm: &Vm) -> Result<Option<String>, String> {
    let listing = async {
        let child = vm.ssh_spawn(UNITS).await?;
        Ok::<_, crate::error::Error>(child.output(UNITS_BYTES).await?)
    };
    match tokio::time::timeout(UNITS_LIMIT, listing).await {
        Ok(Ok(output)) if output.success() => Ok(Some(printable(&output.stdout))),
        Ok(Ok(output)) if output.status.code() == Some(99) => Ok(None),
        Ok(Ok(output)) => Err(format!(
            "systemctl ended with {:?}: {}",
            output.status,
            printable(&output.stderr).trim()
        )),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", UNITS_LIMIT.as_secs())),
    }
}

fn end_of_log(path: &Path) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))
        .ok()?;
    let mut end = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut end).ok()?;
    Some(printable(&end))
}

/// Keeps a VM running, and says how to log in.
pub(super) async fn keep(vm: &Vm) -> String {
    match vm.detach().await {
        Ok(()) => kept(vm.home(), &vm.reference()),
        // The test may have removed it, for example.
        Err(error) => format!("--- cannot keep {}: {error}\n", vm.name()),
    }
}

/// Says how to log in to a kept VM, and how to remove it.
fn kept(home: &Path, name: &(impl std::fmt::Display + ?Sized)) -> String {
    // The command needs to know a state directory that is not the default.
    let standard = std::env::home_dir().is_some_and(|dir| dir.join(".fleetbox") == home);
    let fleetbox = if standard {
        "fleetbox".to_owned()
    } else {
        let quoted = home.display().to_string().replace('\'', r"'\''");
        format!("{HOME_VARIABLE}='{quoted}' fleetbox")
    };
    format!(
        "--- {name} is kept: log in with `{fleetbox} ssh {name}`, remove it with `{fleetbox} rm {name}`\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_vms_are_entered_where_they_are() {
        let text = kept(Path::new("/tmp/it's here"), "web-1");
        assert!(
            text.contains(r"`FLEETBOX_HOME='/tmp/it'\''s here' fleetbox ssh web-1`")
                && text.contains("fleetbox rm web-1"),
            "{text}"
        );
        let home = std::env::home_dir().unwrap().join(".fleetbox");
        let text = kept(&home, "web-1");
        assert!(text.contains("`fleetbox ssh web-1`"), "{text}");
    }

    #[test]
    fn failed_units_are_listed_where_there_are_units() {
        let part = |units: Result<Option<&str>, &str>| {
            units_part(
                "web",
                units
                    .map(|units| units.map(str::to_owned))
                    .map_err(str::to_owned),
            )
        };
        assert_eq!(
            part(Ok(Some("a.service loaded failed failed A\nb.mount x\n"))),
            "--- web: failed units\n| a.service loaded failed failed A\n| b.mount x\n"
        );
        assert_eq!(part(Ok(Some("\n"))), "--- web: no failed units\n");
        assert_eq!(part(Ok(None)), "");
        assert!(part(Err("no answer")).contains("no answer"));
    }

    #[test]
    fn only_the_end_of_a_log_is_read_and_it_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = vec![b'a'; 1 << 20];
        log.extend_from_slice(b"\n\x1b[2Jthe end\n");
        std::fs::write(&path, log).unwrap();
        let end = end_of_log(&path).unwrap();
        assert!(end.len() <= LOG_BYTES as usize && end.ends_with("\nthe end\n"));
        assert_eq!(end_of_log(&dir.path().join("none")), None);
    }
}
