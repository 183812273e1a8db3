//! A sudo command for what this user may not do. It is printed, never run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Once;

use fleetbox::budget::{BUDGET_VARIABLE, QUEUE_VARIABLE};
use fleetbox::guest::quote;
use fleetbox::images::CATALOGUE_VARIABLE;
use fleetbox::{BridgeError, Error};

use crate::output;

/// Variables that change what a command does. sudo does not pass them on by default.
const OURS: [&str; 5] = [
    CATALOGUE_VARIABLE,
    BUDGET_VARIABLE,
    QUEUE_VARIABLE,
    "FLEETBOX_REFUSE",
    "FLEETBOX_LOG",
];

/// Variables that downloads use. Their values may hold passwords, so only their names are shown.
const OF_DOWNLOADS: [&str; 10] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Prints an error to standard error. If the error is that the user is not root, the command with sudo follows, once.
pub(crate) fn complain(home: Option<&Path>, error: &Error) {
    static PRINTED: Once = Once::new();
    output::complain(error);
    if matches!(error, Error::Bridge(BridgeError::NotPermitted)) {
        PRINTED.call_once(|| {
            let variable = |name: &str| std::env::var_os(name);
            output::complain(format_args!(
                "to run it as root:\n  {}",
                command(home, variable, std::env::args_os())
            ));
        });
    }
}

/// This command line with sudo, and with the variables it reads: the state directory, the catalogue and so on.
fn command(
    home: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
    mut args: impl Iterator<Item = OsString>,
) -> String {
    let called = args.next().unwrap_or_else(|| "fleetbox".into());
    // Root's PATH may differ.
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(called));
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let named = args
        .iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg == "--home" || arg.starts_with("--home="));
    let value = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut words = vec!["sudo".to_owned()];
    let passed: Vec<_> = OF_DOWNLOADS
        .into_iter()
        .filter(|name| value(name).is_some())
        .collect();
    if !passed.is_empty() {
        words.push(format!("--preserve-env={}", passed.join(",")));
    }
    let set: Vec<_> = OURS
        .into_iter()
        .filter_map(|name| Some(format!("{name}={}", value(name)?.to_string_lossy())))
        .collect();
    if !set.is_empty() {
        words.push("env".to_owned());
        words.extend(set);
    }
    words.push(program.display().to_string());
    if let Some(home) = home.filter(|_| !named) {
        words.extend(["--home".to_owned(), home.display().to_string()]);
    }
    words.extend(args);
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(home: Option<&str>, args: &[&str]) -> String {
        with(&[], home, args)
    }

    fn with(variables: &[(&str, &str)], home: Option<&str>, args: &[&str]) -> String {
        let args = ["fleetbox"].iter().chain(args).map(OsString::from);
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let command = command(home.map(Path::new), variable, args);
        let program = quote(&std::env::current_exe().unwrap().display().to_string());
        command.replace(&program, "PROGRAM")
    }

    #[test]
    fn the_command_is_repeated_word_by_word() {
        assert_eq!(
            of(None, &["up", "web", "--network", "bridge"]),
            "sudo PROGRAM up web --network bridge"
        );
        assert_eq!(
            of(None, &["run", "--", "echo", "a b;"]),
            "sudo PROGRAM run -- echo 'a b;'"
        );
    }

    #[test]
    fn a_state_directory_of_the_environment_is_named() {
        assert_eq!(
            of(Some("/srv/vms"), &["up", "web"]),
            "sudo PROGRAM --home /srv/vms up web"
        );
        assert_eq!(
            of(Some("/srv/vms"), &["up", "--home=/srv/vms"]),
            "sudo PROGRAM up '--home=/srv/vms'"
        );
    }

    #[test]
    fn what_the_environment_says_is_passed_on_and_no_password_shown() {
        let variables = [
            ("FLEETBOX_CATALOGUE", "my catalogue.json"),
            ("FLEETBOX_MEMORY_BUDGET", "8GiB"),
            ("FLEETBOX_LOG", ""),
            ("https_proxy", "http://me:secret@proxy"),
            ("NO_PROXY", "localhost"),
            ("PATH", "/bin"),
        ];
        assert_eq!(
            with(&variables, Some("/srv/vms"), &["up"]),
            "sudo '--preserve-env=https_proxy,NO_PROXY' env 'FLEETBOX_CATALOGUE=my catalogue.json' \
             'FLEETBOX_MEMORY_BUDGET=8GiB' PROGRAM --home /srv/vms up"
        );
    }
}
