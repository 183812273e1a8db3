//! Which type a plain text has in YAML 1.1, and the values of times.

use std::sync::LazyLock;

use regex_lite::Regex;

use super::node::Tag;

/// The form of a date or a time.
static TIME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = r"(?x)^(?:
        ([0-9]{4})-([0-9]{2})-([0-9]{2})
        | ([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})
          (?:[Tt]|[\ \t]+)([0-9]{1,2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]*))?
          (?:[\ \t]*(?:(Z)|([-+])([0-9]{1,2})(?::([0-9]{2}))?))?
        )$";
    // The pattern is constant, and tests use it.
    Regex::new(pattern).ok()
});

/// A text without the end of its last line, which PyYAML ignores when it looks at types. Only text that has the tag `!`
/// can have one.
pub(super) fn bare(text: &str) -> &str {
    match text.strip_suffix('\n') {
        Some(rest) if !rest.is_empty() => rest,
        _ => text,
    }
}

/// The type of a plain text.
pub(super) fn tag(text: &str) -> Tag {
    let text = bare(text);
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Tag::Null,
        "<<" => Tag::Merge,
        "=" => Tag::Value,
        _ if boolean(text).is_some() && has_usual_case(text) => Tag::Bool,
        _ if !text.starts_with(|c: char| c.is_ascii_digit() || "-+.".contains(c)) => Tag::Str,
        _ if is_int(text) => Tag::Int,
        _ if is_float(text) => Tag::Float,
        _ if TIME.as_ref().is_some_and(|time| time.is_match(text)) => Tag::Timestamp,
        _ => Tag::Str,
    }
}

/// What a word means as a boolean. `y` and `n` mean none to PyYAML.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" => Some(true),
        "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// True for `yes`, `Yes` and `YES`, but not for `yEs`.
fn has_usual_case(word: &str) -> bool {
    let rest = word.get(1..).unwrap_or_default();
    let capital = word.starts_with(|c: char| c.is_ascii_uppercase());
    let lower = |c: char| c.is_ascii_lowercase();
    rest.chars().all(lower) || (capital && rest.chars().all(|c| c.is_ascii_uppercase()))
}

/// True for the forms of integers: `0b11`, `0644`, `0x1f`, `1_000`, `12:30:45`.
pub(super) fn is_int(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let all = |text: &str, more: fn(char) -> bool| text.chars().all(|c| c == '_' || more(c));
    if let Some(digits) = text.strip_prefix("0b") {
        return !digits.is_empty() && all(digits, |c| matches!(c, '0' | '1'));
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return !digits.is_empty() && all(digits, |c| c.is_ascii_hexdigit());
    }
    if let Some(digits) = text.strip_prefix('0') {
        return all(digits, |c| c.is_digit(8));
    }
    let (first, rest) = text
        .split_once(':')
        .map_or((text, None), |(first, rest)| (first, Some(rest)));
    is_decimal(first) && rest.is_none_or(is_sixtieths)
}

/// True for the forms of floats: `1.5`, `.5`, `1.5e+3`, `12:30.5`, `-.inf`.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let Some((whole, fraction)) = unsigned.split_once('.') else {
        return false;
    };
    let (fraction, exponent) = match fraction.find(['e', 'E']) {
        Some(place) => (&fraction[..place], Some(&fraction[place + 1..])),
        None => (fraction, None),
    };
    let digits = fraction.chars().all(|c| c == '_' || c.is_ascii_digit());
    let scaled = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or_default();
        !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
    });
    if whole.is_empty() {
        let signed = unsigned.len() < text.len();
        return matches!(&unsigned[1..], "inf" | "Inf" | "INF")
            || (!signed && matches!(&unsigned[1..], "nan" | "NaN" | "NAN"))
            || (!signed && is_decimal(fraction) && scaled);
    }
    match whole.split_once(':') {
        Some((first, rest)) => {
            is_decimal(first) && is_sixtieths(rest) && digits && exponent.is_none()
        }
        None => is_decimal(whole) && digits && scaled,
    }
}

/// Digits and `_`, of which the first is a digit.
fn is_decimal(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c == '_' || c.is_ascii_digit())
}

/// Numbers below 60 with colons between them.
fn is_sixtieths(text: &str) -> bool {
    text.split(':')
        .all(|part| matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']))
}

/// A date or a time, in a form that means the same.
///
/// # Errors
/// The text is neither, or there is no such day or time.
pub(super) fn time(text: &str) -> Result<String, &'static str> {
    let found = TIME.as_ref().and_then(|time| time.captures(text));
    let found = found.ok_or("this is not a date like 2032-09-01 or a time")?;
    let number = |group: usize| {
        let digits = found.get(group)?.as_str();
        digits.parse::<u32>().ok()
    };
    let dated = |groups: [usize; 3]| Some(groups.map(number)).filter(|all| all[0].is_some());
    let date = dated([1, 2, 3]).or_else(|| dated([4, 5, 6]));
    let Some([Some(year), Some(month), Some(day)]) = date else {
        return Err("this is not a date");
    };
    if year == 0 || !(1..=12).contains(&month) || !(1..=days(year, month)).contains(&day) {
        return Err("there is no such day; if this is not a date, put it in quotes");
    }
    let date = format!("{year:04}-{month:02}-{day:02}");
    let [Some(hour), Some(minute), Some(second)] = [7, 8, 9].map(number) else {
        return Ok(date);
    };
    let fraction: String = found
        .get(10)
        .map_or("", |all| all.as_str())
        .chars()
        .take(6)
        .collect();
    let offset = number(13).map(|hours| hours * 60 + number(14).unwrap_or(0));
    if hour > 23 || minute > 59 || second > 59 || offset.is_some_and(|minutes| minutes >= 24 * 60) {
        return Err("there is no such time; if this is not a time, put it in quotes");
    }
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let zone = match (found.get(11), found.get(12), offset) {
        (Some(_), ..) => "Z".to_owned(),
        (_, Some(sign), Some(minutes)) => {
            format!("{}{:02}:{:02}", sign.as_str(), minutes / 60, minutes % 60)
        }
        _ => String::new(),
    };
    Ok(format!(
        "{date} {hour:02}:{minute:02}:{second:02}{point}{fraction}{zone}"
    ))
}

/// How many days a month has.
fn days(year: u32, month: u32) -> u32 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
