//! What to type in order to have root do what this user may not. It is said, never done.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use fleetbox::guest::quote;

/// This very command line by sudo, with the state directory that the environment named, which sudo
/// does not pass on.
pub(super) fn command(home: Option<&Path>, args: impl Iterator<Item = OsString>) -> String {
    let mut args = args;
    let called = args.next().unwrap_or_else(|| "fleetbox".into());
    // Where root looks for programs is not where this user does.
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(called));
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let named = args
        .iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg == "--home" || arg.starts_with("--home="));
    let mut words = vec!["sudo".to_owned(), program.display().to_string()];
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
        let args = ["fleetbox"].iter().chain(args).map(OsString::from);
        let command = command(home.map(Path::new), args);
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
}
