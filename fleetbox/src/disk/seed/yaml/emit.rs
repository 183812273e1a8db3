//! Values as text that every PyYAML reads as the same values.
//!
//! The text is ASCII, because which characters PyYAML accepts depends on its version: before 5.1 it refuses emoji. Lists
//! and mappings are in brackets. What JSON can say is JSON.

use std::fmt::{self, Display, Formatter, Write as _};

use super::base64;
use super::value::{Mapping, Yaml};

/// A longer key is written with `?`, because PyYAML looks for its `:` in 1024 characters only.
const KEY_LIMIT: usize = 1000;

/// YAML in brackets, over several lines.
impl Display for Yaml {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_value(f, self, 0)
    }
}

impl Display for Mapping {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_pairs(f, &self.0, 0)
    }
}

fn write_value(f: &mut Formatter<'_>, value: &Yaml, depth: usize) -> fmt::Result {
    match value {
        Yaml::Null => f.write_str("null"),
        Yaml::Bool(value) => write!(f, "{value}"),
        Yaml::Int(text) | Yaml::Float(text) | Yaml::Time(text) => f.write_str(text),
        Yaml::Str(text) => write_text(f, text),
        Yaml::Bytes(bytes) => write!(f, "!!binary \"{}\"", base64::encode(bytes)),
        Yaml::List(values) => write_items(f, ['[', ']'], values, depth, |f, value| {
            write_value(f, value, depth + 1)
        }),
        Yaml::Map(mapping) => write_pairs(f, &mapping.0, depth),
        Yaml::Set(values) => {
            f.write_str("!!set ")?;
            write_items(f, ['{', '}'], values, depth, |f, value| {
                write_pair(f, value, &Yaml::Null, depth + 1)
            })
        }
        Yaml::Pairs(pairs) => {
            f.write_str("!!pairs ")?;
            write_items(f, ['[', ']'], pairs, depth, |f, (key, value)| {
                f.write_char('{')?;
                write_pair(f, key, value, depth + 1)?;
                f.write_char('}')
            })
        }
    }
}

fn write_pairs(f: &mut Formatter<'_>, pairs: &[(Yaml, Yaml)], depth: usize) -> fmt::Result {
    write_items(f, ['{', '}'], pairs, depth, |f, (key, value)| {
        write_pair(f, key, value, depth + 1)
    })
}

fn write_pair(f: &mut Formatter<'_>, key: &Yaml, value: &Yaml, depth: usize) -> fmt::Result {
    let mut text = String::new();
    write!(text, "{key}")?;
    if text.len() > KEY_LIMIT || text.contains('\n') {
        write!(f, "? {text}\n{:1$}: ", "", 2 * depth)?;
    } else {
        write!(f, "{text}: ")?;
    }
    write_value(f, value, depth)
}

fn write_items<T>(
    f: &mut Formatter<'_>,
    brackets: [char; 2],
    items: &[T],
    depth: usize,
    mut write_item: impl FnMut(&mut Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    f.write_char(brackets[0])?;
    for (index, item) in items.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(f, "{comma}\n{:1$}", "", 2 * (depth + 1))?;
        write_item(f, item)?;
    }
    if !items.is_empty() {
        write!(f, "\n{:1$}", "", 2 * depth)?;
    }
    f.write_char(brackets[1])
}

/// Text in double quotes.
fn write_text(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            ' '..='~' => f.write_char(c)?,
            '\u{10000}'.. => write!(f, "\\U{:08X}", u32::from(c))?,
            _ => write!(f, "\\u{:04x}", u32::from(c))?,
        }
    }
    f.write_char('"')
}
