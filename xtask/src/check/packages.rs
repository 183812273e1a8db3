//! Compares the number of packages that a user of the library compiles, for each choice of features, with the limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::cargo::{cargo, packages};
use crate::error::{Context, Error, Result};
use crate::workspace;

/// The file of the limits. They are in a separate file, so that a review shows each change as a line.
const FILE: &str = "docs/packages.txt";

const LIBRARY: &str = "fleetbox";

/// The step `packages`.
pub(crate) fn run() -> Result<String> {
    let text =
        fs::read_to_string(workspace().join(FILE)).context(|| format!("cannot read {FILE}"))?;
    let held = parse(&text)?;
    let mut counted = BTreeMap::new();
    let all = packages()?;
    let library = all.iter().find(|package| package.name == LIBRARY);
    let features: Vec<_> = library
        .into_iter()
        .flat_map(|l| l.feature_names())
        .collect();
    counted.insert("default".to_owned(), count(&[])?);
    counted.insert("none".to_owned(), count(&["--no-default-features"])?);
    for feature in features {
        let args = ["--no-default-features", "--features", feature];
        counted.insert(format!("only {feature}"), count(&args)?);
    }
    for (name, count) in &counted {
        eprintln!("  {count:4}  {name}");
    }
    super::report(&compare(&held, &counted))?;
    let shown = counted
        .iter()
        .map(|(name, count)| format!("{name} {count}"));
    Ok(shown.collect::<Vec<_>>().join(", "))
}

/// The number of unique packages in a normal build on Linux, including the library.
fn count(features: &[&str]) -> Result<usize> {
    let tree = cargo(&["tree", "-p", LIBRARY, "-e", "normal", "--locked"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(["--prefix", "none", "--no-dedupe"])
        .args(features)
        // It may be the first command that downloads the packages.
        .limit(900)
        .text()?;
    Ok(unique(&tree))
}

fn unique(tree: &str) -> usize {
    let lines: BTreeSet<_> = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .filter(|line| !line.is_empty())
        .collect();
    lines.len()
}

/// Reads lines such as `200 none`.
fn parse(text: &str) -> Result<BTreeMap<String, usize>> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(at, line)| {
            let (count, name) = line.split_once(' ').unwrap_or((line, ""));
            let count = count
                .parse()
                .context(|| format!("{FILE}:{}: not a number: {count}", at + 1))?;
            Ok((name.trim().to_owned(), count))
        })
        .collect::<Result<_, Error>>()
}

fn compare(held: &BTreeMap<String, usize>, counted: &BTreeMap<String, usize>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, count) in counted {
        match held.get(name) {
            None => complaints.push(format!("{FILE} has no limit for `{name}`; add `{count} {name}`")),
            Some(held) if held < count => complaints.push(format!(
                "`{name}` has {count} packages, but the limit in {FILE} is {held}; use fewer, put them behind a feature, or raise the limit with an ADR that says why"
            )),
            Some(held) if held > count => complaints.push(format!(
                "`{name}` has only {count} packages, and the limit in {FILE} is {held}; lower the limit"
            )),
            Some(_) => {}
        }
    }
    let gone = held.keys().filter(|name| !counted.contains_key(*name));
    complaints.extend(
        gone.map(|name| {
            format!("{FILE} has a limit for `{name}`, which is not a choice of features")
        }),
    );
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_do_not_make_a_package_another() {
        assert_eq!(unique("a v1\nb v1\na v1 (*)\n\nb v2\n"), 3);
    }

    #[test]
    fn a_number_that_is_not_held_exactly_is_complained_about() {
        let held = parse("# held\n10 default\n5 none\n3 only x\n").unwrap();
        let counted = |default: usize, none: usize| {
            BTreeMap::from([
                ("default".to_owned(), default),
                ("none".to_owned(), none),
                ("only x".to_owned(), 3),
            ])
        };
        assert_eq!(compare(&held, &counted(10, 5)), Vec::<String>::new());
        let found = compare(&held, &counted(11, 4));
        assert!(found[0].contains("with an ADR"), "{found:?}");
        assert!(found[1].contains("lower the limit"), "{found:?}");
        let found = compare(&held, &BTreeMap::from([("new".to_owned(), 1)]));
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(parse("many default").is_err());
    }
}
