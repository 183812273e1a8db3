//! `test` and `[`: GRUB's conditions.

use crate::boot::fs::Kind;

/// Evaluates the arguments of `test`, without a closing `]`. `kind` returns what is at a path.
///
/// GRUB reads from left to right: three words with an operator in the middle, or else a flag and
/// its operand, or else a modifier, or else a word, which is true if not empty. `-a` binds tighter
/// than `-o`.
pub(super) fn evaluate(arguments: &[String], kind: &mut dyn FnMut(&str) -> Option<Kind>) -> bool {
    if arguments.is_empty() {
        return false;
    }
    let mut at = 0;
    parse(arguments, &mut at, kind, 0)
}

fn parse(
    words: &[String],
    at: &mut usize,
    kind: &mut dyn FnMut(&str) -> Option<Kind>,
    depth: u32,
) -> bool {
    let (mut all, mut any, mut invert) = (true, false, false);
    while let Some(word) = words.get(*at) {
        let mut value = None;
        if let (Some(operator), Some(right)) = (words.get(*at + 1), words.get(*at + 2)) {
            value = compare(word, operator, right);
            if value.is_some() {
                *at += 3;
            }
        }
        if value.is_none()
            && let Some(operand) = words.get(*at + 1)
        {
            value = match word.as_str() {
                "-z" => Some(operand.is_empty()),
                "-n" => Some(!operand.is_empty()),
                "-e" => Some(kind(operand).is_some()),
                "-d" => Some(kind(operand) == Some(Kind::Directory)),
                "-f" => Some(kind(operand).is_some_and(|kind| kind != Kind::Directory)),
                "-s" => Some(matches!(kind(operand), Some(Kind::File(size)) if size > 0)),
                _ => None,
            };
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
                    // Deeper than any configuration goes: false.
                    "(" => depth < 32 && parse(words, at, kind, depth + 1),
                    word => !word.is_empty(),
                }
            }
        };
        all &= value != invert;
        invert = false;
    }
    any || all
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "<=" => left <= right,
        ">=" => left >= right,
        "-eq" => number(left) == number(right),
        "-ne" => number(left) != number(right),
        "-lt" => number(left) < number(right),
        "-le" => number(left) <= number(right),
        "-gt" => number(left) > number(right),
        "-ge" => number(left) >= number(right),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(text: &str) -> bool {
        let words: Vec<String> = text.split(' ').map(|word| word.replace('~', "")).collect();
        evaluate(&words, &mut |path| match path {
            "/file" => Some(Kind::File(3)),
            "/empty" => Some(Kind::File(0)),
            "/dir" => Some(Kind::Directory),
            _ => None,
        })
    }

    #[test]
    fn operators() {
        for truth in [
            "x",
            "a = a",
            "a != b",
            "2 -lt 10",
            "10 -ge 10",
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
        ] {
            assert!(!test(falsehood), "{falsehood}");
        }
        assert!(!evaluate(&[], &mut |_| None));
    }
}
