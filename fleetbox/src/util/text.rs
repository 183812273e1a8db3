//! Text for users and for shells.

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> &str {
    let trimmed = text.trim_end();
    let start = trimmed
        .rmatch_indices('\n')
        .nth(count.saturating_sub(1))
        .map_or(0, |(at, _)| at + 1);
    trimmed.get(start..).unwrap_or_default()
}

/// Text without escape sequences and control characters, because a guest must not control the
/// terminal on which an error message is shown.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => skip_escape(&mut chars),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.peek() {
        // Control sequence: up to a final byte (ECMA-48, 5.4).
        Some('[') => {
            chars.next();
            while let Some(&c) = chars.peek() {
                if c.is_control() {
                    return;
                }
                chars.next();
                if ('\x40'..='\x7e').contains(&c) {
                    return;
                }
            }
        }
        // Operating system command: up to BEL or the next escape.
        Some(']') => {
            while let Some(&c) = chars.peek() {
                if c == '\x1b' || c == '\n' {
                    return;
                }
                chars.next();
                if c == '\x07' {
                    return;
                }
            }
        }
        Some(c) if !c.is_control() => {
            chars.next();
        }
        _ => {}
    }
}

/// Quotes any `text` so that a POSIX shell reads it as one word (XCU 2.2.2).
///
/// ```
/// use fleetbox::guest::quote;
///
/// assert_eq!(quote("plain-word"), "plain-word");
/// assert_eq!(quote("two words"), "'two words'");
/// assert_eq!(quote("it's"), r"'it'\''s'");
/// ```
pub fn quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,+@%^".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_reach_the_terminal() {
        let hostile = b"\x1b[2J\x1b]0;title\x07\x1b[31mred\x1b[0m\r\n\x07\x9b5n ok \xff\x1b";
        assert_eq!(printable(hostile), "red\n\u{fffd}5n ok \u{fffd}");
        assert_eq!(printable("\u{9b}2J gr\u{fc}n".as_bytes()), "2J gr\u{fc}n");
    }

    #[test]
    fn lines_from_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
        assert_eq!(last_lines("", 5), "");
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in [
            "",
            "a",
            "a b",
            "'",
            "$HOME `x` \"y\" \\",
            "-n",
            "*",
            "~",
            "a\nb",
        ] {
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", quote(text)))
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
