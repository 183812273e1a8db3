//! POSIX extended regular expressions, for `regexp`.
//!
//! They are translated to the syntax of `regex-lite`. The difference that remains is which of
//! several alternatives is taken: the crate takes the first that matches, and so does GRUB, but only
//! of those that make the whole match the longest. So an expression with alternatives is tried with
//! their order reversed, too.

use regex_lite::{Captures, Regex, RegexBuilder};

/// Maximum bytes of an expression.
const MAX_PATTERN: usize = 1024;
/// Maximum bytes of a text.
const MAX_TEXT: usize = 1024;
/// Maximum bytes of a compiled expression.
const MAX_COMPILED: usize = 64 << 10;
/// Maximum nesting of groups.
const MAX_DEPTH: u32 = 32;
/// Maximum of a repetition (`a{255}`), as in POSIX.
const MAX_REPEAT: u32 = 255;
/// What one expression costs, in commands run: some milliseconds at worst.
pub(super) const STEPS: u64 = 100;

/// The groups of the match of `pattern` in `text`, the whole match first; `None` if it does not
/// match.
///
/// # Errors
/// The expression cannot be evaluated, with the reason.
pub(super) fn find(pattern: &str, text: &str) -> Result<Option<Vec<Option<String>>>, String> {
    if pattern.len() > MAX_PATTERN || text.len() > MAX_TEXT {
        return Err("the expression or the text is too long".into());
    }
    let forward = Translator::translate(pattern, false)?;
    let mut best = compile(&forward)?.captures(text);
    if pattern.contains('|')
        && let Some(first) = &best
    {
        let backward = compile(&Translator::translate(pattern, true)?)?;
        if let Some(other) = backward.captures(text)
            && whole(&other) > whole(first)
        {
            best = Some(other);
        }
    }
    let group = |captures: &Captures<'_>, n: usize| {
        let found = captures.name(&name(n));
        found.map(|found| found.as_str().to_string())
    };
    Ok(best.map(|captures| (0..=forward.groups).map(|n| group(&captures, n)).collect()))
}

/// The length of a match. Both orders find the same place.
fn whole(captures: &Captures<'_>) -> usize {
    captures.get(0).map_or(0, |found| found.len())
}

/// Groups have names, because their numbers change with the order of alternatives.
fn name(group: usize) -> String {
    format!("g{group}")
}

fn compile(translated: &Translated) -> Result<Regex, String> {
    RegexBuilder::new(&translated.text)
        .dot_matches_new_line(true)
        .size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| format!("it is not a regular expression that can be evaluated ({error})"))
}

struct Translated {
    text: String,
    groups: usize,
}

struct Translator<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    reversed: bool,
    groups: usize,
    depth: u32,
}

impl<'a> Translator<'a> {
    fn translate(pattern: &'a str, reversed: bool) -> Result<Translated, String> {
        let mut translator = Self {
            rest: pattern.chars().peekable(),
            reversed,
            groups: 0,
            depth: 0,
        };
        let text = translator.alternatives()?;
        if translator.rest.peek().is_some() {
            return Err("a `)` without its `(`".into());
        }
        Ok(Translated {
            text: format!("(?P<{}>{text})", name(0)),
            groups: translator.groups,
        })
    }

    fn alternatives(&mut self) -> Result<String, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("its groups are nested too deeply".into());
        }
        let mut all = vec![self.sequence()?];
        while self.rest.next_if_eq(&'|').is_some() {
            all.push(self.sequence()?);
        }
        if self.reversed {
            all.reverse();
        }
        self.depth -= 1;
        Ok(all.join("|"))
    }

    fn sequence(&mut self) -> Result<String, String> {
        let mut text = String::new();
        while let Some(next) = self.rest.next_if(|c| !matches!(c, '|' | ')')) {
            let mut atom = match next {
                '(' => {
                    self.groups += 1;
                    let name = name(self.groups);
                    let inner = self.alternatives()?;
                    if self.rest.next() != Some(')') {
                        return Err("a `(` without its `)`".into());
                    }
                    format!("(?P<{name}>{inner})")
                }
                '[' => self.bracket()?,
                '\\' => self.escape()?,
                '.' | '^' | '$' => next.to_string(),
                '*' | '+' | '?' => return Err(format!("a `{next}` with nothing before it")),
                next => literal(next),
            };
            while let Some(times) = self.repetition()? {
                atom = format!("(?:{atom}){times}");
                if atom.len() > 16 * MAX_PATTERN {
                    return Err("it has too many repetitions".into());
                }
            }
            text.push_str(&atom);
        }
        Ok(text)
    }

    /// Reads `*`, `+`, `?` or `{N,M}`.
    fn repetition(&mut self) -> Result<Option<String>, String> {
        if let Some(times) = self.rest.next_if(|c| matches!(c, '*' | '+' | '?')) {
            return Ok(Some(times.to_string()));
        }
        let mut ahead = self.rest.clone();
        if ahead.next() != Some('{') {
            return Ok(None);
        }
        let inner: String = ahead.by_ref().take_while(|c| *c != '}').collect();
        let (least, most) = inner.split_once(',').unwrap_or((&inner, &inner));
        let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n <= MAX_REPEAT);
        let times = match (number(least), number(most)) {
            (Some(least), Some(most)) => format!("{{{least},{most}}}"),
            (Some(least), None) if most.is_empty() => format!("{{{least},}}"),
            (None, Some(most)) if least.is_empty() => format!("{{0,{most}}}"),
            _ => return Err(format!("`{{{inner}}}` is not a repetition")),
        };
        self.rest = ahead;
        Ok(Some(times))
    }

    fn escape(&mut self) -> Result<String, String> {
        Ok(match self.rest.next() {
            None => return Err("a `\\` at its end".into()),
            Some(c @ '1'..='9') => {
                return Err(format!("back-references (`\\{c}`) are not supported"));
            }
            // Extensions of GNU's library.
            Some(c @ ('w' | 'W' | 's' | 'S' | 'b' | 'B')) => format!("\\{c}"),
            Some('<') => "\\b{start}".into(),
            Some('>') => "\\b{end}".into(),
            Some('`') => "\\A".into(),
            Some('\'') => "\\z".into(),
            Some(c) => literal(c),
        })
    }

    /// Reads a bracket expression after its `[`. A backslash has no meaning in it.
    fn bracket(&mut self) -> Result<String, String> {
        let unclosed = || String::from("a `[` without its `]`");
        let mut text = String::from("[");
        if self.rest.next_if_eq(&'^').is_some() {
            text.push('^');
        }
        let mut first = true;
        loop {
            let item = match self.rest.next().ok_or_else(unclosed)? {
                ']' if !first => break,
                '[' if self.rest.next_if_eq(&':').is_some() => {
                    let name = self.until(':').ok_or_else(unclosed)?;
                    text.push_str(&format!("[:{name}:]"));
                    first = false;
                    continue;
                }
                '[' => match self.rest.next_if(|c| matches!(c, '.' | '=')) {
                    Some(kind) => self
                        .single(kind)
                        .ok_or("an unknown character in brackets")?,
                    None => '[',
                },
                c => c,
            };
            first = false;
            let mut ahead = self.rest.clone();
            let end = match (ahead.next(), ahead.next()) {
                (Some('-'), Some(end)) if end != ']' => Some(end),
                _ => None,
            };
            match end {
                Some('[') => return Err("a range up to `[`".into()),
                Some(end) => {
                    self.rest = ahead;
                    text.push_str(&format!("{}-{}", literal(item), literal(end)));
                }
                None => text.push_str(&literal(item)),
            }
        }
        text.push(']');
        Ok(text)
    }

    /// The text up to `kind` and `]`.
    fn until(&mut self, kind: char) -> Option<String> {
        let mut text = String::new();
        loop {
            match self.rest.next()? {
                c if c == kind && self.rest.next_if_eq(&']').is_some() => return Some(text),
                c => text.push(c),
            }
        }
    }

    /// The one character of `[.x.]` or `[=x=]`.
    fn single(&mut self, kind: char) -> Option<char> {
        let text = self.until(kind)?;
        let mut chars = text.chars();
        let only = chars.next()?;
        chars.next().is_none().then_some(only)
    }
}

/// A character that means itself.
fn literal(c: char) -> String {
    if c.is_ascii_alphanumeric() {
        c.to_string()
    } else {
        format!("\\x{{{:X}}}", u32::from(c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(pattern: &str, text: &str) -> Option<Vec<String>> {
        let found = find(pattern, text).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        found.map(|groups| groups.into_iter().map(Option::unwrap_or_default).collect())
    }

    #[test]
    fn expressions_match_as_posix_says() {
        for (pattern, text) in [
            (r"^6\.(1[0-9]|[2-9])", "6.12.3-cloud-amd64"),
            ("a{2,3}$", "baaa"),
            ("^a{,2}$", "aa"),
            ("[]x]", "]"),
            ("[^]x]", "y"),
            (r"[\d]", r"\"),
            ("[[:digit:]]+-[[:alpha:]_]", "12-_"),
            ("[a-c-]", "-"),
            ("[[.-.]]", "-"),
            (r"\.efi$", "x.efi"),
            ("", "anything"),
            ("x*", ""),
            ("(ab|a)(c|bcd)(d*)", "abcd"),
            (".", "\n"),
            (r"\<linux\>", "a linux b"),
            ("é+", "éé"),
            ("a**", "b"),
            // Not lazy, and no flags.
            ("^a+?$", "aa"),
        ] {
            assert!(groups(pattern, text).is_some(), "{pattern} in {text:?}");
        }
        for (pattern, text) in [
            (r"^6\.(1[0-9]|[2-9])", "6.1.0"),
            (r"\d", "5"),
            ("^a{2}$", "aaa"),
            ("[^]x]", "]"),
            ("A", "a"),
            ("^b$", "a\nb\nc"),
        ] {
            assert!(groups(pattern, text).is_none(), "{pattern} in {text:?}");
        }
    }

    #[test]
    fn groups_are_those_of_the_longest_match() {
        let of = |pattern, text| groups(pattern, text).unwrap();
        assert_eq!(
            of("(.*)-([0-9.]+)(-.*)?", "vmlinuz-6.1.0-cloud"),
            ["vmlinuz-6.1.0-cloud", "vmlinuz", "6.1.0", "-cloud"]
        );
        assert_eq!(of("(a|ab)(.*)", "abc"), ["abc", "a", "bc"]);
        assert_eq!(of("(ab|a)(.*)", "abc"), ["abc", "ab", "c"]);
        assert_eq!(of("(a|ab)(c|bcd)(d*)", "abcd"), ["abcd", "a", "bcd", ""]);
        assert_eq!(
            of("(vmlinuz|vmlinuz-lts)-([0-9]+)", "vmlinuz-lts-6")[1],
            "vmlinuz-lts"
        );
        assert_eq!(of("lts|linux|linux-lts", "linux-lts"), ["linux-lts"]);
        assert_eq!(of("(a|b)*", "abab"), ["abab", "b"]);
        assert_eq!(of("x(y)?|(z)", "z"), ["z", "", "z"]);
    }

    #[test]
    fn others_are_errors() {
        let large = format!("{}{}", "(".repeat(10), "a{255}){255}".repeat(10));
        for pattern in [
            "*a",
            "(",
            ")",
            "a)",
            "[a",
            "(?i)x",
            r"(a)\1",
            "a{300}",
            "a{x}",
            "[[:none:]]",
            "[b-a]",
            "\\",
            &large,
            &"(".repeat(500),
            &"x".repeat(5000),
            "[a-[.z.]]",
        ] {
            assert!(find(pattern, "a").is_err(), "{pattern}");
        }
        assert!(find("a", &"a".repeat(5000)).is_err());
    }

    mod properties {
        use proptest::prelude::*;

        proptest! {
            #[test]
            fn any_expression_has_an_answer(
                pattern in r"[a-c0-9(){}\[\]|*+?.^$\\:,=-]{0,40}", text in "[a-c0-9(]{0,40}"
            ) {
                let _ = super::find(&pattern, &text);
            }
        }
    }
}
