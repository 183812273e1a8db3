//! From characters to tokens: plain, quoted and block text.

use super::YamlError;
use super::scan::{Scanner, is_break, is_end, is_space};
use super::token::Kind;

impl Scanner {
    /// Text without quotes.
    pub(super) fn scan_plain(&mut self) -> Result<(), YamlError> {
        let mark = self.mark();
        let least = self.inner_column();
        let mut text = String::new();
        let mut gap = String::new();
        while self.peek(0) != '#' {
            let mut length = 0;
            while !self.ends_plain(length) {
                length += 1;
            }
            if length == 0 {
                break;
            }
            self.key_allowed = false;
            text += &gap;
            text += &self.take(length);
            match self.scan_plain_gap() {
                Some(found) if !found.is_empty() => gap = found,
                _ => break,
            }
            if !self.in_flow() && self.column() < least {
                break;
            }
        }
        self.add(Kind::Scalar { text, plain: true }, mark);
        Ok(())
    }

    fn ends_plain(&self, ahead: usize) -> bool {
        let (c, next) = (self.peek(ahead), self.peek(ahead + 1));
        if is_space(c) {
            return true;
        }
        if self.in_flow() {
            ",?[]{}".contains(c) || (c == ':' && (is_space(next) || ",[]{}".contains(next)))
        } else {
            c == ':' && is_space(next)
        }
    }

    /// Spaces and ends of lines inside of plain text. None if a document ends here.
    fn scan_plain_gap(&mut self) -> Option<String> {
        let spaces = self.take_while(|c| c == ' ');
        let Some(first) = self.take_break() else {
            return Some(spaces);
        };
        self.key_allowed = true;
        if self.at_separator() {
            return None;
        }
        let mut more = String::new();
        loop {
            self.skip_spaces();
            match self.take_break() {
                Some(end) => more.push(end),
                None => break,
            }
            if self.at_separator() {
                return None;
            }
        }
        Some(folded(first, more))
    }

    /// Text in `quote`, which is `'` or `"`.
    pub(super) fn scan_quoted(&mut self, quote: char) -> Result<(), YamlError> {
        let mark = self.mark();
        self.forward();
        let mut text = String::new();
        loop {
            text += &self.take_while(|c| !is_space(c) && !"'\"\\".contains(c));
            let c = self.peek(0);
            if c == quote && quote == '\'' && self.peek(1) == '\'' {
                self.take(2);
                text.push('\'');
            } else if c == quote {
                break;
            } else if c == '\\' && quote == '"' {
                self.scan_escape(&mut text)?;
            } else if c == '\0' {
                return Err(mark.wrong("the text in quotes has no end"));
            } else if is_space(c) {
                let spaces = self.take_while(|c| c == ' ' || c == '\t');
                match self.take_break() {
                    Some(first) => text += &folded(first, self.scan_quoted_breaks()?),
                    None => text += &spaces,
                }
            } else {
                // The other quotation mark, or a backslash between single ones.
                self.forward();
                text.push(c);
            }
        }
        self.forward();
        self.add(Kind::Scalar { text, plain: false }, mark);
        Ok(())
    }

    /// Empty lines inside of quotes, and the spaces before the next text.
    fn scan_quoted_breaks(&mut self) -> Result<String, YamlError> {
        let mut breaks = String::new();
        loop {
            if self.at_separator() {
                return Err(self.unexpected("the document ends inside of quotes"));
            }
            while matches!(self.peek(0), ' ' | '\t') {
                self.forward();
            }
            match self.take_break() {
                Some(end) => breaks.push(end),
                None => return Ok(breaks),
            }
        }
    }

    /// What begins with a backslash in double quotes.
    fn scan_escape(&mut self, text: &mut String) -> Result<(), YamlError> {
        let mark = self.mark();
        self.forward();
        let c = self.peek(0);
        if self.take_break().is_some() {
            *text += &self.scan_quoted_breaks()?;
            return Ok(());
        }
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => {
                let plain = match c {
                    '0' => '\0',
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    't' | '\t' => '\t',
                    'n' => '\n',
                    'v' => '\u{b}',
                    'f' => '\u{c}',
                    'r' => '\r',
                    'e' => '\u{1b}',
                    ' ' | '"' | '\\' | '/' => c,
                    'N' => '\u{85}',
                    '_' => '\u{a0}',
                    'L' => '\u{2028}',
                    'P' => '\u{2029}',
                    _ => {
                        return Err(self.unexpected(
                            "no escape begins like this; write '\\\\' for a backslash, or use single quotes",
                        ));
                    }
                };
                self.forward();
                text.push(plain);
                return Ok(());
            }
        };
        self.forward();
        let mut code: u32 = 0;
        for _ in 0..digits {
            let Some(digit) = self.peek(0).to_digit(16) else {
                return Err(self.unexpected(&format!("\\{c} needs {digits} hexadecimal digits")));
            };
            code = (code << 4) | digit;
            self.forward();
        }
        let Some(found) = char::from_u32(code) else {
            return Err(mark.wrong(if (0xd800..0xe000).contains(&code) {
                "half of a surrogate pair is no character to cloud-init; write the character itself, or \\U with \
                 eight digits"
            } else {
                "there is no such character"
            }));
        };
        text.push(found);
        Ok(())
    }

    /// Text after `|` or `>`.
    pub(super) fn scan_block_scalar(&mut self, folds: bool) -> Result<(), YamlError> {
        let mark = self.mark();
        self.forward();
        let (keep, extra) = self.scan_block_header()?;
        self.finish_line()?;
        let least = self.inner_column().max(1);
        let mut breaks = String::new();
        let indent = match extra {
            Some(extra) => least + extra - 1,
            None => least.max(self.scan_first_lines(&mut breaks)),
        };
        self.scan_empty_lines(indent, &mut breaks);
        let mut text = String::new();
        let mut end = None;
        while self.column() == indent && self.peek(0) != '\0' {
            text += &breaks;
            breaks.clear();
            let flush = !matches!(self.peek(0), ' ' | '\t');
            text += &self.take_while(|c| !is_end(c));
            end = self.take_break();
            self.scan_empty_lines(indent, &mut breaks);
            if self.column() != indent || self.peek(0) == '\0' {
                break;
            }
            let joins = folds && end == Some('\n') && flush && !matches!(self.peek(0), ' ' | '\t');
            if !joins {
                text.extend(end);
            } else if breaks.is_empty() {
                text.push(' ');
            }
        }
        if keep != Some(false) {
            text.extend(end);
        }
        if keep == Some(true) {
            text += &breaks;
        }
        self.add(Kind::Scalar { text, plain: false }, mark);
        Ok(())
    }

    /// What stands between `|` and the end of its line: whether the last line ends are kept, and how far the text is
    /// indented.
    fn scan_block_header(&mut self) -> Result<(Option<bool>, Option<usize>), YamlError> {
        let (mut keep, mut extra) = (None, None);
        for _ in 0..2 {
            match self.peek(0) {
                c @ ('+' | '-') if keep.is_none() => keep = Some(c == '+'),
                '0' if extra.is_none() => {
                    return Err(self.unexpected("the indentation is 1 to 9"));
                }
                c if extra.is_none() && c.is_ascii_digit() => {
                    extra = c.to_digit(10).map(|digit| digit as usize);
                }
                _ => break,
            }
            self.forward();
        }
        let next = self.peek(0);
        if next != ' ' && !is_end(next) {
            return Err(self.unexpected("the text of '|' and '>' begins in the next line"));
        }
        Ok((keep, extra))
    }

    /// Skips the lines before the first one with text. Returns the largest column in them.
    fn scan_first_lines(&mut self, breaks: &mut String) -> usize {
        let mut furthest = 0;
        loop {
            let c = self.peek(0);
            if c == ' ' {
                self.forward();
                furthest = furthest.max(self.column());
            } else if is_break(c) {
                breaks.extend(self.take_break());
            } else {
                return furthest;
            }
        }
    }

    /// Skips empty lines and the indentation of the next one.
    fn scan_empty_lines(&mut self, indent: usize, breaks: &mut String) {
        loop {
            while self.column() < indent && self.peek(0) == ' ' {
                self.forward();
            }
            match self.take_break() {
                Some(end) => breaks.push(end),
                None => return,
            }
        }
    }
}

/// What an end of line and further ones stand for in text that goes on: a space, or the further ones.
fn folded(first: char, more: String) -> String {
    if first != '\n' {
        format!("{first}{more}")
    } else if more.is_empty() {
        " ".to_owned()
    } else {
        more
    }
}
