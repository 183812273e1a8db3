//! Checks which files test for an operating system or architecture. docs/ARCHITECTURE.md lists the allowed files in a
//! block `cfg-files`, one per line; `*` matches any part of a name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{TokenStream, TokenTree};

use super::rooms::Block;
use crate::error::{Context, Error, Result};

/// The words that test for an operating system or architecture in `cfg`, `cfg!` or `cfg_attr`.
const ASKS: &[&str] = &["target_os", "target_arch", "target_family", "target_env"];

/// Reports files that test and are not listed, and entries of the list that match no such file.
pub(super) fn check(
    workspace: &Path,
    blocks: &[Block<'_>],
    files: &[PathBuf],
) -> Result<Vec<String>> {
    let patterns: Vec<&str> = blocks
        .iter()
        .flat_map(|block| block.lines.iter().copied())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let mut complaints = Vec::new();
    for file in files {
        let text = fs::read_to_string(workspace.join(file))
            .context(|| format!("cannot read {}", file.display()))?;
        let tokens = TokenStream::from_str(&text)
            .map_err(|error| Error::new(format!("{}: {error}", file.display())))?;
        let Some((line, word)) = asks(tokens) else {
            continue;
        };
        let name = file.to_string_lossy();
        let listed = patterns.iter().copied().filter(|p| matches(p, &name));
        let listed: Vec<_> = listed.collect();
        if listed.is_empty() {
            complaints.push(format!(
                "{name}:{line}: uses `{word}`, but is not in the list cfg-files of docs/ARCHITECTURE.md"
            ));
        }
        used.extend(listed);
    }
    let unused = patterns.iter().filter(|pattern| !used.contains(**pattern));
    complaints.extend(unused.map(|pattern| {
        format!("the list cfg-files of docs/ARCHITECTURE.md has `{pattern}`, but no such file uses cfg(target_…)")
    }));
    Ok(complaints)
}

/// The first place where code uses one of the words, with the word.
fn asks(tokens: TokenStream) -> Option<(usize, &'static str)> {
    tokens.into_iter().find_map(|token| match token {
        TokenTree::Ident(ident) => ASKS
            .iter()
            .find(|word| ident == **word)
            .map(|word| (ident.span().start().line, *word)),
        TokenTree::Group(group) => asks(group.stream()),
        _ => None,
    })
}

/// True if a name matches a pattern, in which `*` stands for any text, including `/`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            name.char_indices()
                .map(|(at, _)| at)
                .chain([name.len()])
                .any(|at| name.get(at..).is_some_and(|tail| matches(rest, tail)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(files: &[(&str, &str)], patterns: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let files: Vec<_> = files.iter().map(|(name, _)| PathBuf::from(name)).collect();
        let block = Block {
            argument: "",
            lines: patterns.to_vec(),
        };
        check(dir.path(), &[block], &files).unwrap()
    }

    #[test]
    fn a_file_that_asks_must_be_listed() {
        for text in [
            "#[cfg(target_os = \"linux\")] fn f() {}",
            "#![cfg_attr(not(target_os = \"none\"), no_std)]",
            "fn f() -> bool { cfg!(all(unix, target_arch = \"x86_64\")) }",
        ] {
            let found = complaints(&[("a.rs", text)], &[]);
            assert!(found[0].starts_with("a.rs:1: uses `target_"), "{found:?}");
            assert_eq!(
                complaints(&[("a.rs", text)], &["a.rs"]),
                Vec::<String>::new()
            );
        }
    }

    #[test]
    fn comments_and_text_do_not_ask() {
        let text = "/// cfg(target_os)\nfn f() { g(\"target_arch\"); } // target_os";
        assert_eq!(complaints(&[("a.rs", text)], &[]), Vec::<String>::new());
    }

    #[test]
    fn an_entry_that_matches_no_such_file_is_named() {
        let found = complaints(&[("a.rs", "fn f() {}")], &["a.rs"]);
        assert!(found[0].contains("has `a.rs`"), "{found:?}");
    }

    #[test]
    fn patterns_match_whole_names() {
        assert!(matches("host/*.rs", "host/linux.rs"));
        assert!(matches("*", "a/b"));
        assert!(matches("a*b*c", "a1b2c"));
        assert!(!matches("host/*.rs", "ghost/linux.rs"));
        assert!(!matches("a.rs", "a.rs.rs"));
    }
}
