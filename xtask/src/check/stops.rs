//! The ways through the code that the documentation lists: each stop names a file and functions of it.

use std::path::Path;

use regex_lite::Regex;

use crate::error::{Context, Result};

/// Stops whose file or function does not exist, and the number of functions that were found.
pub(super) fn check(root: &Path, text: &str) -> Result<(Vec<String>, usize)> {
    let stop = Regex::new(r"`([\w/-]+\.rs)`:\s+((?:`[\w:]+`,?\s*(?:later\s+)?)+)")
        .context(|| "cannot compile the pattern of a stop")?;
    let name = Regex::new(r"`(?:\w+::)*(\w+)`").context(|| "cannot compile a name's pattern")?;
    let mut complaints = Vec::new();
    let mut found = 0;
    for stop in stop.captures_iter(text) {
        let file = &stop[1];
        let Ok(code) = std::fs::read_to_string(root.join(file)) else {
            complaints.push(format!("a stop is in {file}, which does not exist"));
            continue;
        };
        for name in name.captures_iter(&stop[2]) {
            let name = &name[1];
            if code.contains(&format!("fn {name}(")) || code.contains(&format!("fn {name}<")) {
                found += 1;
            } else {
                complaints.push(format!(
                    "{file} has no function `{name}`, which a stop names"
                ));
            }
        }
    }
    Ok((complaints, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.rs"), "fn one() {}\nfn two<T>() {}\n").unwrap();
        let check = |text: &str| check(dir.path(), text).unwrap();
        assert_eq!(
            check("1. `a.rs`: `A::one`, later `two`: does it"),
            (vec![], 2)
        );
        let (complaints, found) = check("1. `a.rs`:\n   `one`, `three`: x\n2. `b.rs`: `one`: y");
        assert_eq!((complaints.len(), found), (2, 1), "{complaints:?}");
        assert!(complaints[0].contains("`three`"), "{complaints:?}");
    }
}
