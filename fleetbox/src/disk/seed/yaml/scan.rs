//! From characters to tokens: indentation, flow brackets, and which text is a key.

use super::token::{Kind, Token};
use super::{DEPTH, Mark, YamlError};

/// Maximum characters from the start of a key to its `:`, unless the key is marked with `?`.
const KEY_LIMIT: usize = 1024;

/// True for what ends a line.
pub(super) fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// True for what ends a line, and at the end of the text.
pub(super) fn is_end(c: char) -> bool {
    c == '\0' || is_break(c)
}

/// True for what may follow an indicator: a space, a tab, an end.
pub(super) fn is_space(c: char) -> bool {
    c == ' ' || c == '\t' || is_end(c)
}

/// Splits a text into tokens. The last one is [`Kind::StreamEnd`] or [`Kind::Failed`].
///
/// # Errors
/// The text has a character that PyYAML does not accept.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, YamlError> {
    let mut scanner = Scanner::new(text);
    scanner.check_characters()?;
    loop {
        match scanner.fetch() {
            Ok(true) => {}
            Ok(false) => return Ok(scanner.tokens),
            Err(error) => {
                scanner.add(Kind::Failed(error), scanner.mark());
                return Ok(scanner.tokens);
            }
        }
    }
}

/// A place where a key may have started. If a `:` follows in time, it was one.
#[derive(Debug, Clone, Copy)]
struct KeyStart {
    /// How many tokens are before it.
    token: usize,
    /// Nothing but a key may be here.
    required: bool,
    at: usize,
    mark: Mark,
}

pub(super) struct Scanner {
    chars: Vec<char>,
    at: usize,
    line: usize,
    column: usize,
    tokens: Vec<Token>,
    /// The column of the block collection, if there is one.
    indent: Option<usize>,
    indents: Vec<Option<usize>>,
    /// True where a key, and in blocks also a collection, may start.
    pub(super) key_allowed: bool,
    /// The possible start of a key, for the block and for each open bracket.
    starts: Vec<Option<KeyStart>>,
}

impl Scanner {
    fn new(text: &str) -> Self {
        Self {
            chars: text.chars().collect(),
            at: 0,
            line: 0,
            column: 0,
            tokens: Vec::new(),
            indent: None,
            indents: Vec::new(),
            key_allowed: true,
            starts: vec![None],
        }
    }

    fn check_characters(&self) -> Result<(), YamlError> {
        let mut mark = Mark { line: 0, column: 0 };
        for c in &self.chars {
            let printable = matches!(*c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}'
                | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
            if !printable {
                let code = u32::from(*c);
                return Err(mark.wrong(format!(
                    "the character U+{code:04X} cannot be in YAML; write it in double quotes as \"\\u{code:04x}\""
                )));
            }
            if *c == '\n' {
                mark.line += 1;
                mark.column = 0;
            } else {
                mark.column += 1;
            }
        }
        Ok(())
    }

    /// The character `ahead` places further on; the end of the text is zero bytes.
    pub(super) fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    pub(super) fn forward(&mut self) {
        let c = self.peek(0);
        self.at += 1;
        if is_break(c) && !(c == '\r' && self.peek(0) == '\n') {
            self.line += 1;
            self.column = 0;
        } else if c != '\u{feff}' {
            self.column += 1;
        }
    }

    /// Takes the next `length` characters, of which none ends a line.
    pub(super) fn take(&mut self, length: usize) -> String {
        let text = (0..length).map(|ahead| self.peek(ahead)).collect();
        for _ in 0..length {
            self.forward();
        }
        text
    }

    /// Takes characters as long as `more` says so.
    pub(super) fn take_while(&mut self, more: impl Fn(char) -> bool) -> String {
        let mut length = 0;
        while more(self.peek(length)) {
            length += 1;
        }
        self.take(length)
    }

    pub(super) fn skip_spaces(&mut self) {
        while self.peek(0) == ' ' {
            self.forward();
        }
    }

    /// Takes the end of a line. CR, LF and NEL are read as LF; LS and PS stay what they are.
    pub(super) fn take_break(&mut self) -> Option<char> {
        let c = self.peek(0);
        if !is_break(c) {
            return None;
        }
        if c == '\r' && self.peek(1) == '\n' {
            self.forward();
        }
        self.forward();
        Some(if matches!(c, '\u{2028}' | '\u{2029}') {
            c
        } else {
            '\n'
        })
    }

    /// Skips spaces and a comment up to the end of a line, at which nothing else may be.
    pub(super) fn finish_line(&mut self) -> Result<(), YamlError> {
        self.skip_spaces();
        self.skip_comment();
        if !is_end(self.peek(0)) {
            return Err(self.unexpected("only a comment may follow here"));
        }
        self.take_break();
        Ok(())
    }

    fn skip_comment(&mut self) {
        if self.peek(0) == '#' {
            while !is_end(self.peek(0)) {
                self.forward();
            }
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            line: self.line,
            column: self.column,
        }
    }

    pub(super) fn column(&self) -> usize {
        self.column
    }

    /// The least column of what belongs to the current block.
    pub(super) fn inner_column(&self) -> usize {
        self.indent.map_or(0, |indent| indent + 1)
    }

    pub(super) fn in_flow(&self) -> bool {
        self.starts.len() > 1
    }

    /// True at `---` or `...`, if nothing is joined to it. The caller knows that a line starts here.
    pub(super) fn at_separator(&self) -> bool {
        let first = self.peek(0);
        (first == '-' || first == '.')
            && self.peek(1) == first
            && self.peek(2) == first
            && is_space(self.peek(3))
    }

    /// What is wrong with the next character.
    pub(super) fn unexpected(&self, why: &str) -> YamlError {
        let seen = match self.peek(0) {
            '\0' => "the end of the text".to_owned(),
            c if is_break(c) => "the end of the line".to_owned(),
            c => format!("{c:?}"),
        };
        self.mark().wrong(format!("found {seen}: {why}"))
    }

    pub(super) fn add(&mut self, kind: Kind, mark: Mark) {
        self.tokens.push(Token { kind, mark });
    }

    /// Adds the next token. False at the end of the text.
    fn fetch(&mut self) -> Result<bool, YamlError> {
        self.skip_to_token();
        self.forget_late_starts()?;
        self.unindent(Some(self.column));
        let c = self.peek(0);
        if c == '\0' {
            self.unindent(None);
            self.forget_start()?;
            self.add(Kind::StreamEnd, self.mark());
            return Ok(false);
        }
        if self.column == 0 && (c == '%' || self.at_separator()) {
            self.fetch_document_mark(c)?;
            return Ok(true);
        }
        let next = self.peek(1);
        match c {
            '[' => self.open(Kind::FlowSequenceStart)?,
            '{' => self.open(Kind::FlowMappingStart)?,
            ']' => self.close(Kind::FlowSequenceEnd)?,
            '}' => self.close(Kind::FlowMappingEnd)?,
            ',' => {
                self.key_allowed = true;
                self.forget_start()?;
                self.add_indicator(Kind::FlowEntry);
            }
            '-' if is_space(next) => self.fetch_entry()?,
            '?' if self.in_flow() || is_space(next) => self.fetch_key()?,
            ':' if self.in_flow() || is_space(next) => self.fetch_value()?,
            '*' | '&' | '!' | '\'' | '"' => self.fetch_node(c)?,
            '|' | '>' if !self.in_flow() => {
                self.key_allowed = true;
                self.forget_start()?;
                self.scan_block_scalar(c == '>')?;
            }
            _ if self.starts_plain(c) => self.fetch_node(c)?,
            '\t' => {
                return Err(self.unexpected("a tab cannot be here; indent with spaces"));
            }
            _ => {
                return Err(self.unexpected("no value can start with it; put the text in quotes"));
            }
        }
        Ok(true)
    }

    fn skip_to_token(&mut self) {
        if self.at == 0 && self.peek(0) == '\u{feff}' {
            self.forward();
        }
        loop {
            self.skip_spaces();
            self.skip_comment();
            if self.take_break().is_none() {
                return;
            }
            if !self.in_flow() {
                self.key_allowed = true;
            }
        }
    }

    fn starts_plain(&self, c: char) -> bool {
        let indicator = is_space(c) || "-?:,[]{}#&*!|>'\"%@`".contains(c);
        !indicator
            || (!is_space(self.peek(1))
                && (c == '-' || (!self.in_flow() && (c == '?' || c == ':'))))
    }

    /// A directive, `---` or `...`.
    fn fetch_document_mark(&mut self, c: char) -> Result<(), YamlError> {
        self.unindent(None);
        self.forget_start()?;
        self.key_allowed = false;
        if c == '%' {
            return self.scan_directive();
        }
        let kind = if c == '-' {
            Kind::DocumentStart
        } else {
            Kind::DocumentEnd
        };
        self.add(kind, self.mark());
        self.take(3);
        Ok(())
    }

    /// Something that may be a key.
    fn fetch_node(&mut self, c: char) -> Result<(), YamlError> {
        self.save_start()?;
        self.key_allowed = false;
        match c {
            '*' | '&' => self.scan_anchor(),
            '!' => self.scan_tag(),
            '\'' | '"' => self.scan_quoted(c),
            _ => self.scan_plain(),
        }
    }

    fn add_indicator(&mut self, kind: Kind) {
        self.add(kind, self.mark());
        self.forward();
    }

    fn open(&mut self, kind: Kind) -> Result<(), YamlError> {
        self.save_start()?;
        if self.starts.len() > DEPTH {
            return Err(too_deep(self.mark()));
        }
        self.starts.push(None);
        self.key_allowed = true;
        self.add_indicator(kind);
        Ok(())
    }

    fn close(&mut self, kind: Kind) -> Result<(), YamlError> {
        self.forget_start()?;
        // A bracket that was not opened is reported by the composer.
        if self.in_flow() {
            self.starts.pop();
        }
        self.key_allowed = false;
        self.add_indicator(kind);
        Ok(())
    }

    fn fetch_entry(&mut self) -> Result<(), YamlError> {
        if !self.in_flow() {
            if !self.key_allowed {
                return Err(self.unexpected("a list entry cannot start here"));
            }
            self.indent_to(self.column, Kind::BlockSequenceStart, None);
        }
        self.key_allowed = true;
        self.forget_start()?;
        self.add_indicator(Kind::BlockEntry);
        Ok(())
    }

    fn fetch_key(&mut self) -> Result<(), YamlError> {
        if !self.in_flow() {
            if !self.key_allowed {
                return Err(self.unexpected("a key cannot start here"));
            }
            self.indent_to(self.column, Kind::BlockMappingStart, None);
        }
        self.key_allowed = !self.in_flow();
        self.forget_start()?;
        self.add_indicator(Kind::Key);
        Ok(())
    }

    fn fetch_value(&mut self) -> Result<(), YamlError> {
        if let Some(start) = self.starts.last_mut().and_then(Option::take) {
            let key = Token {
                kind: Kind::Key,
                mark: start.mark,
            };
            self.tokens.insert(start.token, key);
            if !self.in_flow() {
                self.indent_to(
                    start.mark.column,
                    Kind::BlockMappingStart,
                    Some(start.token),
                );
            }
            self.key_allowed = false;
        } else {
            if !self.in_flow() {
                if !self.key_allowed {
                    return Err(self.no_key());
                }
                self.indent_to(self.column, Kind::BlockMappingStart, None);
            }
            self.key_allowed = !self.in_flow();
            self.forget_start()?;
        }
        self.add_indicator(Kind::Value);
        Ok(())
    }

    /// Starts a block collection if `column` is further in than the current one.
    fn indent_to(&mut self, column: usize, kind: Kind, place: Option<usize>) {
        if self.indent.is_some_and(|indent| indent >= column) {
            return;
        }
        self.indents.push(self.indent.replace(column));
        let mark = Mark {
            column,
            ..self.mark()
        };
        let place = place.unwrap_or(self.tokens.len());
        self.tokens.insert(place, Token { kind, mark });
    }

    /// Ends the block collections that are further in than `column`. Brackets are not indented.
    fn unindent(&mut self, column: Option<usize>) {
        if self.in_flow() {
            return;
        }
        while self.indent > column {
            self.indent = self.indents.pop().flatten();
            self.add(Kind::BlockEnd, self.mark());
        }
    }

    fn save_start(&mut self) -> Result<(), YamlError> {
        if !self.key_allowed {
            return Ok(());
        }
        self.forget_start()?;
        let start = KeyStart {
            token: self.tokens.len(),
            required: !self.in_flow() && self.indent == Some(self.column),
            at: self.at,
            mark: self.mark(),
        };
        if let Some(last) = self.starts.last_mut() {
            *last = Some(start);
        }
        Ok(())
    }

    fn forget_start(&mut self) -> Result<(), YamlError> {
        match self.starts.last_mut().and_then(Option::take) {
            Some(start) if start.required => Err(self.no_value(start)),
            _ => Ok(()),
        }
    }

    /// The error of a place where a key had to be. It comes before what was read there.
    fn no_value(&mut self, start: KeyStart) -> YamlError {
        self.tokens.truncate(start.token);
        if start.mark.line == self.line && self.at - start.at > KEY_LIMIT {
            return long_key(start.mark);
        }
        let why = "this line is not `key: value`; check its ':' and the indentation";
        start.mark.wrong(why)
    }

    /// The error of a `:` after something that is no key.
    fn no_key(&self) -> YamlError {
        match self.tokens.last() {
            Some(last)
                if last.mark.line == self.line && last.mark.column + KEY_LIMIT < self.column =>
            {
                long_key(last.mark)
            }
            _ => self.unexpected(
                "a key and its value cannot be here; if this is text, put it in quotes",
            ),
        }
    }

    /// A key ends in its line, and is not too long.
    fn forget_late_starts(&mut self) -> Result<(), YamlError> {
        for level in 0..self.starts.len() {
            let late = |start: &mut KeyStart| {
                start.mark.line != self.line || self.at - start.at > KEY_LIMIT
            };
            if let Some(start) = self.starts[level].take_if(late)
                && start.required
            {
                return Err(self.no_value(start));
            }
        }
        Ok(())
    }
}

fn long_key(mark: Mark) -> YamlError {
    mark.wrong(format!(
        "a key has more than {KEY_LIMIT} characters; write '? ' before it, and its value in a line that begins with ': '"
    ))
}

pub(super) fn too_deep(mark: Mark) -> YamlError {
    mark.wrong(format!(
        "lists and mappings are nested more than {DEPTH} deep"
    ))
}
