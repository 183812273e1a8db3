//! Records the last complete full run in docs/testing.md.

use std::fs;

use super::full::Done;
use crate::error::{Context, Error, Result};
use crate::workspace;

const FILE: &str = "docs/testing.md";
const BEGIN: &str = "<!-- full run: begin (written by `cargo xtask test --full --record`) -->";
const END: &str = "<!-- full run: end -->";

/// Writes a run into the documentation.
pub(super) fn write(commit: &str, date: &str, host: &str, done: &[Done]) -> Result<()> {
    let path = workspace().join(FILE);
    let text = fs::read_to_string(&path).context(|| format!("cannot read {FILE}"))?;
    let text = replace(&text, &section(commit, date, host, done))?;
    fs::write(&path, text).context(|| format!("cannot write {FILE}"))
}

fn replace(text: &str, section: &str) -> Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts
        .ok_or_else(|| Error::new(format!("{FILE}: the markers of the full run are missing")))?;
    Ok(format!("{before}{BEGIN}\n{section}{END}{after}"))
}

fn section(commit: &str, date: &str, host: &str, done: &[Done]) -> String {
    let all: f64 = done.iter().map(|case| case.seconds).sum();
    let mut text = format!(
        "Commit `{commit}`, {date}, {host}: {} cases passed in {}.\n\n| case | time | |\n|---|---|---|\n",
        done.len(),
        span(all)
    );
    for case in done {
        let note = case.note.as_deref().unwrap_or_default().replace('|', "\\|");
        text.push_str(&format!(
            "| `{}` | {} | {note} |\n",
            case.name,
            span(case.seconds)
        ));
    }
    text
}

fn span(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.1} min", seconds / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let done = [Done {
            name: "fmt".into(),
            seconds: 1.0,
            note: Some("a|b".into()),
        }];
        let section = section("abc", "2026-01-01", "2 cores", &done);
        let text = format!("one\n{BEGIN}\nold\n{END}\ntwo\n");
        let text = replace(&text, &section).unwrap();
        assert!(text.starts_with("one\n") && text.ends_with("\ntwo\n"));
        assert!(text.contains("| `fmt` | 1.0 s | a\\|b |\n") && !text.contains("old"));
        assert_eq!(replace(&text, &section).unwrap(), text);
        assert!(replace("no marks", &section).is_err());
    }

    #[test]
    fn the_documentation_has_the_marks() {
        let text = fs::read_to_string(workspace().join(FILE)).unwrap();
        replace(&text, "").unwrap();
    }
}
