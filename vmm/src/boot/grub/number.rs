//! Numbers and white space as GRUB reads them.

/// What GRUB takes for white space.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// The number that `text` begins with, after white space, and the rest of the text. `0x` begins a
/// hexadecimal number, and a zero before a digit up to 7 an octal one. A number that is too large
/// is the largest there is.
pub(super) fn leading(text: &str) -> Option<(u64, &str)> {
    let text = text.trim_start_matches(is_space);
    let octal = text
        .strip_prefix('0')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_digit(8)));
    let (base, digits) = match text.strip_prefix("0x") {
        Some(digits) => (16, digits),
        None if octal => (8, text),
        None => (10, text),
    };
    let end = digits
        .find(|c: char| !c.is_digit(base))
        .unwrap_or(digits.len());
    let (digits, rest) = digits.split_at_checked(end)?;
    if digits.is_empty() {
        return None;
    }
    let number = u64::from_str_radix(digits, base).unwrap_or(u64::MAX);
    Some((number, rest))
}

/// The number that `text` begins with, as the operators of `test` see it: 0 if it begins with no number, and
/// only the low 32 bits of it.
pub(super) fn signed(text: &str) -> i32 {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let number = leading(digits).map_or(0, |(number, _)| number);
    let number = if negative {
        number.wrapping_neg()
    } else {
        number
    };
    number as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_grub_does() {
        for (text, expected) in [
            ("12", Some((12, ""))),
            (" \t4", Some((4, ""))),
            ("1> 4", Some((1, "> 4"))),
            ("0x1f,", Some((31, ","))),
            ("010", Some((8, ""))),
            ("09", Some((9, ""))),
            ("0", Some((0, ""))),
            ("99999999999999999999 x", Some((u64::MAX, " x"))),
            ("", None),
            ("x1", None),
            ("-1", None),
            ("0x", None),
        ] {
            assert_eq!(leading(text), expected, "{text}");
        }
        assert_eq!(
            ["-5", "7x", "x", "4294967296", "-0x10"].map(signed),
            [-5, 7, 0, 0, -16]
        );
    }
}
