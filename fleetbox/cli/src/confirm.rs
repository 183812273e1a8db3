//! Questions before something is deleted.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

/// True if `what` may be done: if it was forced, if there is no terminal to ask on, or if the
/// answer is yes. Without a terminal the caller is a script, and is not asked.
pub(crate) fn confirm(what: &str, force: bool) -> bool {
    if force || !std::io::stdin().is_terminal() {
        return true;
    }
    let mut out = std::io::stderr();
    let _ = write!(out, "{what} [y/N] ");
    let _ = out.flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).is_ok() && is_yes(&answer)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        for yes in ["y\n", "Y", " yes \n", "YES"] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n", "no", "yep", "ye s"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
