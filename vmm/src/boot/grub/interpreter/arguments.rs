//! Options of commands, parsed as GRUB does it for all of them.
//!
//! - A value is joined to a long option by `=`, or is the next word, unless that begins with `-`.
//! - The value of a short option is the next word, whatever it begins with; if the value is
//!   optional, not one that begins with `-`.
//! - Short options can be joined: `-nls root`. Only the last of them can have a value.
//! - Options can stand after other words. `--` ends them. A single `-` is a word.
//! - Long options cannot be abbreviated. If an option is repeated, the last one counts, unless the
//!   command takes them all.

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Value,
    /// A value that can be left out.
    Optional,
}

/// An option of a command.
#[derive(Debug)]
pub(super) struct Opt {
    /// Without the dashes.
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    pub(super) takes: Takes,
}

impl Opt {
    pub(super) const fn new(long: &'static str, short: Option<char>, takes: Takes) -> Self {
        Self { long, short, takes }
    }
}

/// How a command's words are parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// The command has no options: all words are arguments.
    Plain,
    Options,
    /// As `Options`, but a word that is no option of the command is an argument.
    KeepsUnknown,
}

/// A command's words, told apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments<'a> {
    options: Vec<(&'static str, Option<&'a str>)>,
    /// The words that are not options.
    pub(super) rest: Vec<&'a str>,
}

impl<'a> Arguments<'a> {
    /// Whether the option `long` was given.
    pub(super) fn has(&self, long: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == long)
    }

    /// The value of the last option `long`.
    pub(super) fn value(&self, long: &str) -> Option<&'a str> {
        let mut options = self.options.iter().rev();
        options.find(|(name, _)| *name == long)?.1
    }

    /// The values of all options `long`.
    pub(super) fn values(&self, long: &str) -> impl Iterator<Item = &'a str> {
        self.options
            .iter()
            .filter(move |(name, _)| *name == long)
            .filter_map(|(_, value)| *value)
    }
}

/// Parses the words after a command's name. `None` if only help is asked for.
///
/// # Errors
/// What is wrong, as GRUB would print it.
pub(super) fn parse<'a>(
    style: Style,
    known: &[Opt],
    words: &'a [String],
) -> Result<Option<Arguments<'a>>, String> {
    let mut arguments = Arguments::default();
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        if style == Style::Plain || !word.starts_with('-') || word == "-" {
            arguments.rest.push(word);
            continue;
        }
        if word == "--" {
            arguments.rest.extend(words.by_ref());
            break;
        }
        let done = match word.strip_prefix("--") {
            Some(long) => parse_long(style, known, word, long, &mut words, &mut arguments)?,
            None => parse_short(style, known, word, &mut words, &mut arguments)?,
        };
        if !done {
            return Ok(None);
        }
    }
    Ok(Some(arguments))
}

/// Parses a long option. False if it asks for help.
fn parse_long<'a>(
    style: Style,
    known: &[Opt],
    word: &'a str,
    long: &'a str,
    words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    arguments: &mut Arguments<'a>,
) -> Result<bool, String> {
    let (name, joined) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (long, None),
    };
    let Some(option) = known.iter().find(|option| option.long == name) else {
        if matches!(name, "help" | "usage") {
            return Ok(false);
        }
        if style == Style::KeepsUnknown {
            arguments.rest.push(word);
            return Ok(true);
        }
        return Err(format!("unknown option `{word}`"));
    };
    let value = match (option.takes, joined) {
        (Takes::Nothing, Some(_)) => return Err(format!("`--{name}` takes no value")),
        (Takes::Nothing, None) | (_, Some(_)) => joined,
        (_, None) => words.next_if(|next| !next.starts_with('-')),
    };
    if value.is_none() && option.takes == Takes::Value {
        return Err(format!("the value of `--{name}` is missing"));
    }
    arguments.options.push((option.long, value));
    Ok(true)
}

/// Parses a word of short options. False if it asks for help.
fn parse_short<'a>(
    style: Style,
    known: &[Opt],
    word: &'a str,
    words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    arguments: &mut Arguments<'a>,
) -> Result<bool, String> {
    let find = |short: char| known.iter().find(|option| option.short == Some(short));
    let help = |short: char| matches!(short, 'h' | 'u');
    let letters = || word.chars().skip(1);
    if style == Style::KeepsUnknown && letters().any(|c| find(c).is_none() && !help(c)) {
        arguments.rest.push(word);
        return Ok(true);
    }
    let mut letters = letters().peekable();
    while let Some(letter) = letters.next() {
        let Some(option) = find(letter) else {
            if help(letter) {
                return Ok(false);
            }
            return Err(format!("unknown option `-{letter}`"));
        };
        let last = letters.peek().is_none();
        let value = match option.takes {
            Takes::Nothing => None,
            Takes::Value if last => words.next(),
            Takes::Optional if last => {
                words.next_if(|next| next.len() < 2 || !next.starts_with('-'))
            }
            Takes::Value | Takes::Optional => None,
        };
        if value.is_none() && option.takes == Takes::Value {
            return Err(format!("the value of `-{letter}` is missing"));
        }
        arguments.options.push((option.long, value));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Opt] = &[
        Opt::new("label", Some('l'), Takes::Nothing),
        Opt::new("no-floppy", Some('n'), Takes::Nothing),
        Opt::new("set", Some('s'), Takes::Optional),
        Opt::new("hint", Some('h'), Takes::Value),
        Opt::new("hint-efi", None, Takes::Value),
    ];

    /// The options and the rest of `text`, as text.
    fn parsed(style: Style, text: &str) -> Result<String, String> {
        let words: Vec<String> = text.split_whitespace().map(String::from).collect();
        let Some(arguments) = parse(style, KNOWN, &words)? else {
            return Ok("help".into());
        };
        let options = arguments.options.iter().map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.to_string(),
        });
        let all: Vec<String> = options.collect();
        Ok(format!("{} | {}", all.join(" "), arguments.rest.join(" ")))
    }

    #[test]
    fn options_are_found_as_grub_finds_them() {
        for (text, expected) in [
            ("--set=root --label X", "set=root label | X"),
            ("--set root --label X", "set=root label | X"),
            ("--set --label X", "set label | X"),
            ("--label X --set", "label set | X"),
            ("-n -l -s dev X", "no-floppy label set=dev | X"),
            ("-nls dev X", "no-floppy label set=dev | X"),
            ("-s -l X", "set label | X"),
            ("-sl X", "set label | X"),
            ("-s - X", "set=- | X"),
            ("--hint a --hint=b -h c X", "hint=a hint=b hint=c | X"),
            ("-h -l X", "hint=-l | X"),
            ("--hint-efi hd0,gpt1 X", "hint-efi=hd0,gpt1 | X"),
            ("--label -- --set -x -", "label | --set -x -"),
            ("--label - X", "label | - X"),
            ("--set= X", "set= | X"),
            ("--usage X", "help"),
            ("-lu X", "help"),
        ] {
            assert_eq!(
                parsed(Style::Options, text).as_deref(),
                Ok(expected),
                "{text}"
            );
        }
        for (text, part) in [
            ("--fs X", "unknown option `--fs`"),
            ("--lab X", "unknown option `--lab`"),
            ("--label=X", "takes no value"),
            ("-lx X", "unknown option `-x`"),
            ("--hint", "missing"),
            ("--hint --label X", "missing"),
            ("-hl X", "missing"),
            ("-lh", "missing"),
        ] {
            let error = parsed(Style::Options, text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn unknown_options_can_be_arguments() {
        for (style, text, expected) in [
            (
                Style::KeepsUnknown,
                "--hint-arm=a -x -lx --label X",
                "label | --hint-arm=a -x -lx X",
            ),
            (Style::KeepsUnknown, "-l X", "label | X"),
            (Style::Plain, "-l --set X", " | -l --set X"),
        ] {
            assert_eq!(parsed(style, text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn the_last_value_counts() {
        let words = ["--set=a", "--set", "b", "--hint=x", "--hint=y"].map(String::from);
        let arguments = parse(Style::Options, KNOWN, &words).unwrap().unwrap();
        assert_eq!(arguments.value("set"), Some("b"));
        assert!(arguments.has("set") && !arguments.has("label"));
        assert!(arguments.values("hint").eq(["x", "y"]));
    }
}
