//! Finds words that make a text hard to read, which docs/words.txt lists with better ones, and checks the spelling with
//! `typos`.
//!
//! It reads everything that users see: Markdown, documentation comments and strings in code, except tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use regex_lite::{Regex, RegexBuilder};

use crate::cache::{self, Key};
use crate::error::{Context, Error, Result};
use crate::run::Cmd;
use crate::{bail, deps, workspace};

const FILE: &str = "docs/words.txt";

/// The version of `typos`, on PyPI, which has the program, and crates.io, which has the source.
const TYPOS: &str = "1.52.0";

/// The step `words`.
pub(crate) fn run() -> Result<String> {
    let list =
        fs::read_to_string(workspace().join(FILE)).context(|| format!("cannot read {FILE}"))?;
    let rules = parse(&list)?;
    let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for file in super::tracked(&["*.md", "*.rs"])? {
        let text = fs::read_to_string(workspace().join(&file))
            .context(|| format!("cannot read {}", file.display()))?;
        let texts = if file.extension().is_some_and(|e| e == "md") {
            vec![Text::of_lines(1, &text)]
        } else if is_test(&file) {
            continue;
        } else {
            texts(&text).context(|| file.display().to_string())?
        };
        for (at, rule) in rules.iter().enumerate() {
            let places = texts.iter().flat_map(|text| text.places(&rule.pattern));
            let places = places.map(|line| format!("{}:{line}", file.display()));
            found.entry(at).or_default().extend(places);
        }
    }
    let mut complaints = Vec::new();
    let mut sum = 0;
    for (at, rule) in rules.iter().enumerate() {
        let places = found.remove(&at).unwrap_or_default();
        sum += places.len();
        eprintln!("  {:4} of {:4}  {}", places.len(), rule.most, rule.words);
        if places.len() > rule.most {
            complaints.push(format!(
                "`{}` occurs {} times, and at most {} are allowed (better: {}): {}",
                rule.words,
                places.len(),
                rule.most,
                rule.better,
                places.join(" ")
            ));
        }
    }
    let spelling = spelling();
    super::report(&complaints)?;
    Ok(format!(
        "{} words to avoid, found {sum} times; {}",
        rules.len(),
        spelling?
    ))
}

/// A line of the list.
struct Rule {
    /// How often it may occur.
    most: usize,
    words: String,
    pattern: Regex,
    better: String,
}

/// Reads lines such as `3 | x | y`.
fn parse(text: &str) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parts: Vec<_> = line.split('|').map(str::trim).collect();
        let &[most, words, better] = parts.as_slice() else {
            bail!("{FILE}:{}: not of the form `most | words | better`", at + 1)
        };
        let most = most
            .parse()
            .context(|| format!("{FILE}:{}: not a number: {most}", at + 1))?;
        let start = if words.starts_with(char::is_alphanumeric) {
            r"\b"
        } else {
            ""
        };
        let end = if words.ends_with(char::is_alphanumeric) {
            r"\b"
        } else {
            ""
        };
        let pattern = RegexBuilder::new(&format!("{start}{}{end}", regex_lite::escape(words)))
            .case_insensitive(true)
            .build()
            .context(|| format!("{FILE}:{}", at + 1))?;
        rules.push(Rule {
            most,
            words: words.to_owned(),
            pattern,
            better: better.to_owned(),
        });
    }
    Ok(rules)
}

/// A text with its line breaks replaced by spaces, so that words are found across them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Text {
    text: String,
    /// Where each line starts, and its number.
    lines: Vec<(usize, usize)>,
}

impl Text {
    fn of_lines(first: usize, text: &str) -> Self {
        let mut whole = Self::default();
        for (at, line) in text.lines().enumerate() {
            whole.push(first + at, line);
        }
        whole
    }

    fn push(&mut self, number: usize, line: &str) {
        self.lines.push((self.text.len(), number));
        self.text.push_str(line.trim());
        self.text.push(' ');
    }

    fn places(&self, pattern: &Regex) -> Vec<usize> {
        let line = |start| {
            let after = self.lines.partition_point(|(at, _)| *at <= start);
            self.lines
                .get(after.saturating_sub(1))
                .map_or(0, |(_, n)| *n)
        };
        pattern
            .find_iter(&self.text)
            .map(|found| line(found.start()))
            .collect()
    }
}

fn is_test(file: &Path) -> bool {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    name == "tests"
        || name == "proptests"
        || name.ends_with("_test")
        || file.components().any(|part| part.as_os_str() == "tests")
}

/// The documentation comments and string literals of code, except code that is compiled for tests only.
fn texts(code: &str) -> Result<Vec<Text>> {
    let tokens = TokenStream::from_str(code).map_err(|error| Error::new(error.to_string()))?;
    let mut texts = Vec::new();
    collect(tokens, &mut texts);
    Ok(texts)
}

fn collect(tokens: TokenStream, texts: &mut Vec<Text>) {
    let mut doc = Text::default();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(hash) if hash.as_char() == '#' => {
                // `#![...]` is an attribute too.
                let inner = |t: &TokenTree| matches!(t, TokenTree::Punct(p) if p.as_char() == '!');
                tokens.next_if(inner);
                let Some(TokenTree::Group(attribute)) = tokens.peek() else {
                    continue;
                };
                let stream = attribute.stream();
                if let Some((line, text)) = doc_line(&stream) {
                    doc.push(line, &text);
                    tokens.next();
                } else if stream.to_string().replace(' ', "") == "cfg(test)" {
                    skip_item(&mut tokens);
                }
                continue;
            }
            TokenTree::Literal(literal) => {
                let line = literal.span().start().line;
                if let Some(text) = string(&literal) {
                    texts.push(Text::of_lines(line, &text));
                }
            }
            TokenTree::Group(group) => collect(group.stream(), texts),
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
        if !doc.lines.is_empty() {
            texts.push(std::mem::take(&mut doc));
        }
    }
    if !doc.lines.is_empty() {
        texts.push(doc);
    }
}

/// Skips an item, up to its block or semicolon.
fn skip_item(tokens: &mut impl Iterator<Item = TokenTree>) {
    for token in tokens {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ';' => return,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return,
            _ => {}
        }
    }
}

/// The line and text of `doc = "..."`.
fn doc_line(attribute: &TokenStream) -> Option<(usize, String)> {
    let mut tokens = attribute.clone().into_iter();
    match (tokens.next()?, tokens.next()?, tokens.next()?) {
        (TokenTree::Ident(doc), TokenTree::Punct(_), TokenTree::Literal(text)) if doc == "doc" => {
            Some((text.span().start().line, string(&text)?))
        }
        _ => None,
    }
}

fn string(literal: &proc_macro2::Literal) -> Option<String> {
    match syn::Lit::new(literal.clone()) {
        syn::Lit::Str(text) => Some(text.value()),
        _ => None,
    }
}

/// Runs `typos`, which `typos.toml` configures.
fn spelling() -> Result<String> {
    let typos = match deps::find("typos") {
        Some(program) => program,
        None => install_typos()?,
    };
    Cmd::new(typos)
        .args(["--format", "brief", "--color", "never"])
        .dir(workspace())
        .limit(120)
        .run()
        .context(|| "spelling (add correct words to typos.toml)")?;
    Ok("spelling is right".to_owned())
}

/// Installs it from PyPI within seconds if there is pip, or else builds it with cargo within minutes.
fn install_typos() -> Result<std::path::PathBuf> {
    let key = Key::new("typos").with(TYPOS).finish();
    let dir = cache::artefact("typos", &key, |dir| {
        crate::run::step(&format!("installing typos {TYPOS}"), || {
            let package = format!("typos=={TYPOS}");
            let by_pip = Cmd::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-deps"])
                .args(["--only-binary", ":all:", "--target"])
                .arg(dir)
                .arg(&package)
                .limit(120);
            if by_pip.succeeds() && dir.join("bin/typos").is_file() {
                return Ok(());
            }
            crate::cargo::cargo(&["install", "--locked", "--version", TYPOS, "typos-cli"])
                .arg("--root")
                .arg(dir)
                .env_remove("CARGO_TARGET_DIR")
                .limit(1200)
                .run()
        })
    })?;
    Ok(dir.join("bin/typos"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(words: &str, code: &str) -> Vec<usize> {
        let rules = parse(&format!("0 | {words} | x")).unwrap();
        let texts = texts(code).unwrap();
        texts
            .iter()
            .flat_map(|text| text.places(&rules[0].pattern))
            .collect()
    }

    #[test]
    fn words_are_found_in_documentation_and_texts_across_lines() {
        assert_eq!(count("in vain", "//! All in\n//! Vain.\n"), [1]);
        assert_eq!(count("in vain", "fn f() {\n g(\"in vain\");\n}"), [2]);
        assert_eq!(
            count("in vain", "fn f() {\n g!(\"a\\n in \\\n vain\");\n}"),
            [3]
        );
        assert_eq!(
            count(
                "in vain",
                "/// One.\nfn f() {}\n/// in\nfn g() {}\n/// vain\nfn h() {}"
            ),
            [0; 0]
        );
    }

    #[test]
    fn names_comments_and_tests_are_left_out() {
        assert_eq!(count("mend", "fn mend() {} // mend\n"), [0; 0]);
        assert_eq!(count("mend", "/// amended, recommend\nfn f() {}"), [0; 0]);
        assert_eq!(
            count(
                "mend",
                "#[cfg(test)]\nmod tests { /// mend\nfn f() {} }\n/// mend\nfn g() {}"
            ),
            [4]
        );
        assert!(is_test(Path::new("a/tests/b.rs")) && is_test(Path::new("a_test.rs")));
        assert!(!is_test(Path::new("fleetbox/src/testing/mod.rs")));
    }

    #[test]
    fn a_broken_list_is_an_error() {
        assert!(parse("1 | two").is_err());
        assert!(parse("many | a | b").is_err());
    }
}
