//! `test` and `[`: GRUB's conditions.

use std::cmp::Ordering;

use super::number::{leading, signed};
use crate::boot::fs::Kind;

/// Maximum nesting of parentheses, as in GRUB.
const MAX_DEPTH: u32 = 100;

/// What a condition asks of the disk.
pub(super) trait Files {
    /// What is at `path`.
    fn kind(&mut self, path: &str) -> Option<Kind>;
    /// When `path` was changed last, in seconds; `None` if the file system does not say.
    fn modified(&mut self, path: &str) -> Option<i64>;
}

/// Evaluates the arguments of `test`, without a closing `]`.
///
/// GRUB reads from left to right: three words with an operator in the middle, or else a flag and
/// its operand, or else a modifier, or else a word, which is true if not empty. `-a` binds tighter
/// than `-o`. So words that other programs take for operators (`-r`, `=~`) are plain words here, and
/// no words at all (`[ $unset ]`) are true.
///
/// # Errors
/// Why the value cannot be told.
pub(super) fn evaluate(arguments: &[String], files: &mut dyn Files) -> Result<bool, String> {
    let mut at = 0;
    parse(arguments, &mut at, files, 0)
}

fn parse(
    words: &[String],
    at: &mut usize,
    files: &mut dyn Files,
    depth: u32,
) -> Result<bool, String> {
    if depth > MAX_DEPTH {
        return Err("its parentheses are nested too deeply".into());
    }
    let (mut all, mut any, mut invert) = (true, false, false);
    while let Some(word) = words.get(*at) {
        let mut value = None;
        if let (Some(operator), Some(right)) = (words.get(*at + 1), words.get(*at + 2)) {
            value = match compare(word, operator, right) {
                None => age(word, operator, right, files)?,
                value => value,
            };
            if value.is_some() {
                *at += 3;
            }
        }
        if value.is_none()
            && let Some(operand) = words.get(*at + 1)
        {
            value = flag(word, operand, files);
            if value.is_some() {
                *at += 2;
            }
        }
        let value = match value {
            Some(value) => value,
            None => {
                *at += 1;
                match word.as_str() {
                    ")" => break,
                    "!" => {
                        invert = !invert;
                        continue;
                    }
                    "-a" => continue,
                    "-o" => {
                        any |= all;
                        all = true;
                        continue;
                    }
                    "(" => parse(words, at, files, depth + 1)?,
                    word => !word.is_empty(),
                }
            }
        };
        all &= value != invert;
        invert = false;
    }
    Ok(any || all)
}

/// The value of a flag with its operand; `None` if `word` is not a flag.
fn flag(word: &str, operand: &str, files: &mut dyn Files) -> Option<bool> {
    Some(match word {
        "-z" => operand.is_empty(),
        "-n" => !operand.is_empty(),
        "-e" => files.kind(operand).is_some(),
        "-d" => files.kind(operand) == Some(Kind::Directory),
        "-f" => files
            .kind(operand)
            .is_some_and(|kind| kind != Kind::Directory),
        "-s" => matches!(files.kind(operand), Some(Kind::File(size)) if size > 0),
        _ => return None,
    })
}

/// The value of an operator between two words; `None` if it is not one of these.
fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = || signed(left).cmp(&signed(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "<=" => left <= right,
        ">=" => left >= right,
        "-eq" => numbers().is_eq(),
        "-ne" => numbers().is_ne(),
        "-lt" => numbers().is_lt(),
        "-le" => numbers().is_le(),
        "-gt" => numbers().is_gt(),
        "-ge" => numbers().is_ge(),
        "-pgt" => after_prefix(left, right).is_gt(),
        "-plt" => after_prefix(left, right).is_lt(),
        _ => return None,
    })
}

/// Compares the numbers that follow the common beginning: `vmlinuz-2` is before `vmlinuz-11`.
fn after_prefix(left: &str, right: &str) -> Ordering {
    let common = left
        .bytes()
        .zip(right.bytes())
        .take_while(|(left, right)| left == right)
        .count();
    // Digits that both have belong to the numbers, except the very first character, as in GRUB.
    let digits = left
        .bytes()
        .take(common)
        .skip(1)
        .rev()
        .take_while(u8::is_ascii_digit);
    let start = common - digits.count();
    let number = |text: &str| {
        let tail = text.get(start..).and_then(leading);
        tail.map_or(0, |(number, _)| number)
    };
    number(left).cmp(&number(right))
}

/// The value of `-nt` or `-ot`, which may be followed by seconds that are added to the first file's
/// time; `None` if `operator` is neither.
fn age(
    left: &str,
    operator: &str,
    right: &str,
    files: &mut dyn Files,
) -> Result<Option<bool>, String> {
    let (newer, bias) = match (operator.strip_prefix("-nt"), operator.strip_prefix("-ot")) {
        (Some(bias), _) => (true, bias),
        (_, Some(bias)) => (false, bias),
        _ => return Ok(None),
    };
    let there = (files.kind(left).is_some(), files.kind(right).is_some());
    Ok(Some(match there {
        (true, true) => {
            let time = |files: &mut dyn Files, path: &str| {
                files
                    .modified(path)
                    .ok_or_else(|| format!("the time of `{path}` cannot be read"))
            };
            let (left, right) = (time(files, left)?, time(files, right)?);
            let left = left.saturating_add(i64::from(signed(bias)));
            if newer { left > right } else { left < right }
        }
        (true, false) => newer,
        (false, true) => !newer,
        (false, false) => false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Files for Fixed {
        fn kind(&mut self, path: &str) -> Option<Kind> {
            match path {
                "/file" | "/old" | "/timeless" => Some(Kind::File(3)),
                "/empty" => Some(Kind::File(0)),
                "/dir" => Some(Kind::Directory),
                _ => None,
            }
        }

        fn modified(&mut self, path: &str) -> Option<i64> {
            match path {
                "/file" => Some(100),
                "/old" => Some(90),
                _ => None,
            }
        }
    }

    fn test(text: &str) -> bool {
        let words: Vec<String> = text.split(' ').map(|word| word.replace('~', "")).collect();
        evaluate(&words, &mut Fixed).unwrap()
    }

    #[test]
    fn operators() {
        for truth in [
            "x",
            "a = a",
            "a != b",
            "2 -lt 10",
            "10 -ge 10",
            "010 -eq 8",
            "0x10 -eq 16",
            "-3 -lt 2",
            "5x -eq 5",
            "-z ~",
            "-n x",
            "-e /dir",
            "-d /dir",
            "-f /file",
            "-s /file",
            "! -s /empty",
            "-f /empty",
            "! -e /none",
            "a = b -o c = c",
            "-z ~ -a -f /file",
            "a = a -a ! b = c",
            "( a = b -o a = a ) -a x",
            "xy = xy",
            "a = b -a a = a -o x",
            "/file -nt /old",
            "/old -ot /file",
            "/file -nt /none",
            "/none -ot /file",
            "/old -nt20 /file",
            "! /old -nt /file",
            "vmlinuz-6.11 -pgt vmlinuz-6.2",
            "vmlinuz-2 -plt vmlinuz-11",
            "6.1.0-18 -pgt 6.1.0-9",
            // No operators of GRUB's.
            "-r /none",
            "a -ef b",
        ] {
            assert!(test(truth), "{truth}");
        }
        for falsehood in [
            "~",
            "a = b",
            "a = a -a b = c",
            "-f /dir",
            "-s /empty",
            "! x",
            "-n ~",
            "a < a",
            "/old -nt /file",
            "/none -nt /file",
            "/file -ot /none",
            "/none -nt /nothing",
            "/file -nt-20 /old",
            "vmlinuz-6.11 -plt vmlinuz-6.2",
            "a -pgt a",
        ] {
            assert!(!test(falsehood), "{falsehood}");
        }
        // As in `[ $unset ]`, `[ ! $unset ]`, `[ -d $unset ]` and `[ $unset = x ]`.
        for truth in ["", "!", "-d", "= x", "a = b -o", "( )"] {
            let words: Vec<String> = truth.split_whitespace().map(String::from).collect();
            assert_eq!(evaluate(&words, &mut Fixed), Ok(true), "{truth}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_an_error() {
        let words = ["/timeless", "-nt", "/file"].map(String::from);
        let error = evaluate(&words, &mut Fixed).unwrap_err();
        assert!(error.contains("/timeless"), "{error}");
        let deep = vec!["(".to_string(); 1000];
        assert!(evaluate(&deep, &mut Fixed).is_err());
    }
}
