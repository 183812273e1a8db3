//! From characters to tokens: directives, anchors, aliases and tags.

use super::YamlError;
use super::scan::{Scanner, is_end, is_space};
use super::token::Kind;

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// True at a space or an end. A tab is neither here.
fn is_gap(c: char) -> bool {
    c == ' ' || is_end(c)
}

impl Scanner {
    /// A line that begins with `%`.
    pub(super) fn scan_directive(&mut self) -> Result<(), YamlError> {
        let mark = self.mark();
        self.forward();
        let name = self.take_while(is_word);
        if name.is_empty() || !is_gap(self.peek(0)) {
            return Err(self.unexpected(
                "a line that begins with '%' is a directive, but there is no such directive; \
                 put the text in quotes",
            ));
        }
        let kind = match name.as_str() {
            "YAML" => {
                self.skip_spaces();
                let major = self.scan_number()?;
                if self.peek(0) != '.' {
                    return Err(self.unexpected("a version such as 1.1 is needed"));
                }
                self.forward();
                self.scan_number()?;
                Kind::VersionDirective(major)
            }
            "TAG" => {
                self.skip_spaces();
                let handle = self.scan_tag_handle()?;
                if self.peek(0) != ' ' {
                    return Err(self.unexpected("a space and the tag's prefix must follow"));
                }
                self.skip_spaces();
                Kind::TagDirective(handle, self.scan_tag_uri()?)
            }
            _ => {
                self.take_while(|c| !is_end(c));
                Kind::OtherDirective
            }
        };
        if !is_gap(self.peek(0)) {
            return Err(self.unexpected("the directive should end here"));
        }
        self.finish_line()?;
        self.add(kind, mark);
        Ok(())
    }

    fn scan_number(&mut self) -> Result<String, YamlError> {
        let digits = self.take_while(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return Err(self.unexpected("a version such as 1.1 is needed"));
        }
        Ok(digits)
    }

    /// `&name` or `*name`.
    pub(super) fn scan_anchor(&mut self) -> Result<(), YamlError> {
        let mark = self.mark();
        let alias = self.peek(0) == '*';
        self.forward();
        let name = self.take_while(is_word);
        let next = self.peek(0);
        if name.is_empty() || !(is_space(next) || "?:,]}%@`".contains(next)) {
            return Err(self.unexpected(if alias {
                "'*' refers to an anchor by its name; if this is text, put it in quotes"
            } else {
                "'&' names an anchor, with letters, digits, '-' and '_'; if this is text, put it in quotes"
            }));
        }
        let kind = if alias {
            Kind::Alias(name)
        } else {
            Kind::Anchor(name)
        };
        self.add(kind, mark);
        Ok(())
    }

    /// `!tag`, `!!tag`, `!handle!tag`, `!<tag>` or a lone `!`.
    pub(super) fn scan_tag(&mut self) -> Result<(), YamlError> {
        let mark = self.mark();
        let next = self.peek(1);
        let kind = if next == '<' {
            self.take(2);
            let tag = self.scan_tag_uri()?;
            if self.peek(0) != '>' {
                return Err(self.unexpected("a tag that begins with '!<' ends with '>'"));
            }
            self.forward();
            Kind::Tag(None, tag)
        } else if is_space(next) {
            self.forward();
            Kind::Tag(None, "!".to_owned())
        } else {
            let mut ahead = 1;
            while !is_gap(self.peek(ahead)) && self.peek(ahead) != '!' {
                ahead += 1;
            }
            let handle = if self.peek(ahead) == '!' {
                self.scan_tag_handle()?
            } else {
                self.take(1)
            };
            Kind::Tag(Some(handle), self.scan_tag_uri()?)
        };
        if !is_gap(self.peek(0)) {
            return Err(self.unexpected("a space must follow a tag ('!')"));
        }
        self.add(kind, mark);
        Ok(())
    }

    fn scan_tag_handle(&mut self) -> Result<String, YamlError> {
        let why = "a tag's handle is '!', '!!' or '!name!'";
        if self.peek(0) != '!' {
            return Err(self.unexpected(why));
        }
        let mut handle = self.take(1);
        if self.peek(0) != ' ' {
            handle += &self.take_while(is_word);
            if self.peek(0) != '!' {
                return Err(self.unexpected(why));
            }
            handle += &self.take(1);
        }
        Ok(handle)
    }

    fn scan_tag_uri(&mut self) -> Result<String, YamlError> {
        let mut bytes = Vec::new();
        let mark = self.mark();
        loop {
            let part = self
                .take_while(|c| c.is_ascii_alphanumeric() || "-;/?:@&=+$,_.!~*'()[]".contains(c));
            bytes.extend_from_slice(part.as_bytes());
            if self.peek(0) != '%' {
                break;
            }
            self.forward();
            let code = [self.peek(0), self.peek(1)].map(|c| c.to_digit(16));
            let [Some(high), Some(low)] = code else {
                return Err(self.unexpected("'%' and two hexadecimal digits are a byte of a tag"));
            };
            self.take(2);
            // Two hexadecimal digits are one byte.
            bytes.push((high * 16 + low) as u8);
        }
        let text = String::from_utf8(bytes).map_err(|_| mark.wrong("the tag is not UTF-8"))?;
        if text.is_empty() {
            return Err(
                self.unexpected("a tag's name must follow '!'; if this is text, put it in quotes")
            );
        }
        Ok(text)
    }
}
