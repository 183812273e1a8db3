//! Looking into a running guest, by SSH and without anything of ours in it.
//!
//! Only what every Linux has is used: a POSIX shell and `/proc`.

mod ports;
mod stats;

pub use self::ports::{Listener, Protocol, ports};
pub use self::stats::{Stats, stats};

use crate::{Error, ExitStatus, Output, Result, Vm};

/// Most bytes of an answer that are looked at.
const ANSWER_LIMIT: usize = 16 << 20;

/// A word that a POSIX shell reads as `text`, whatever is in it (XCU 2.2.2).
///
/// ```
/// use fleetbox::guest::quote;
/// assert_eq!(quote("plain-word"), "plain-word");
/// assert_eq!(quote("two words"), "'two words'");
/// assert_eq!(quote("it's"), r"'it'\''s'");
/// ```
pub fn quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,+@%^".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Runs a script in the guest, as root where sudo allows it, and returns what it wrote.
async fn ask(vm: &Vm, what: &'static str, script: &str) -> Result<String> {
    let script = quote(script);
    let command = format!(
        "if [ \"$(id -u)\" != 0 ] && sudo -n true 2>/dev/null; then exec sudo -n sh -c {script}; \
         else exec sh -c {script}; fi"
    );
    let child = vm.ssh_spawn(&command).await?;
    let output: Output = child.output(ANSWER_LIMIT).await?;
    if output.status != ExitStatus::Code(0) {
        return Err(Error::Guest {
            name: vm.reference().to_string(),
            what,
            why: crate::process::printable(&output.stderr),
        });
    }
    Ok(output.stdout_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in [
            "",
            "a",
            "a b",
            "'",
            "$HOME `x` \"y\" \\",
            "-n",
            "*",
            "~",
            "a\nb",
        ] {
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", quote(text)))
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
