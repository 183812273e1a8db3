//! Splits text into words.

use super::tree::{Piece, SyntaxError, Word};
use crate::boot::grub::account::Account;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Newline,
    Semicolon,
    Open,
    Close,
    Word(Word),
}

/// The tokens of `text`, each with its first line.
pub(super) fn tokens(text: &str, account: &Account) -> Result<Vec<(Token, u32)>, SyntaxError> {
    let lexer = Lexer {
        text: text.as_bytes(),
        at: 0,
        line: 1,
        account,
    };
    lexer.tokens()
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
    account: &'a Account,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        if byte == b'\n' {
            self.line += 1;
        }
        Some(byte)
    }

    fn error<T>(&self, line: u32, problem: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError {
            line,
            problem: problem.into(),
        })
    }

    /// Charges tokens or pieces of words. Their text is charged with the file.
    fn charge(&self, line: u32, count: u32) -> Result<(), SyntaxError> {
        let charged = (0..count).try_for_each(|_| self.account.piece(0));
        charged.map_err(|spent| SyntaxError {
            line,
            problem: spent.to_string(),
        })
    }

    fn tokens(mut self) -> Result<Vec<(Token, u32)>, SyntaxError> {
        let mut tokens = Vec::new();
        while let Some(byte) = self.peek() {
            let line = self.line;
            let simple = match byte {
                b' ' | b'\t' | b'\r' => {
                    self.next();
                    continue;
                }
                b'\\' if self.text.get(self.at + 1) == Some(&b'\n') => {
                    self.next();
                    self.next();
                    continue;
                }
                b'#' => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.next();
                    }
                    continue;
                }
                b'\n' => Some(Token::Newline),
                b';' => Some(Token::Semicolon),
                b'{' => Some(Token::Open),
                b'}' => Some(Token::Close),
                b'|' | b'&' | b'<' | b'>' => {
                    let what = char::from(byte);
                    return self.error(line, format!("`{what}` outside quotes"));
                }
                _ => None,
            };
            let token = match simple {
                Some(token) => {
                    self.next();
                    token
                }
                None => Token::Word(self.word()?),
            };
            self.charge(line, 1)?;
            tokens.push((token, line));
        }
        Ok(tokens)
    }

    fn word(&mut self) -> Result<Word, SyntaxError> {
        let line = self.line;
        let mut pieces = Pieces::default();
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b'}' | b'|' | b'&' | b'<' | b'>' => {
                    break;
                }
                b'\\' => {
                    self.next();
                    self.charge(line, 2)?;
                    match self.next() {
                        Some(b'\n') => {}
                        Some(byte) => pieces.text(&[byte], true),
                        None => return self.error(line, "a `\\` at the end of the file"),
                    }
                }
                b'\'' => {
                    self.next();
                    let start = self.at;
                    while self.peek().is_some_and(|byte| byte != b'\'') {
                        self.next();
                    }
                    // It, and a text that it ends.
                    self.charge(line, 2)?;
                    pieces.text(self.text.get(start..self.at).unwrap_or_default(), true);
                    if self.next().is_none() {
                        return self.error(line, "a `'` that is never closed");
                    }
                }
                b'"' => {
                    self.next();
                    self.double_quoted(&mut pieces, line)?;
                }
                b'$' if self.text.get(self.at + 1) == Some(&b'"') => {
                    // A string to be translated: the same without a translation.
                    self.next();
                }
                b'$' => self.variable(&mut pieces, false)?,
                byte => {
                    self.next();
                    pieces.text(&[byte], false);
                }
            }
        }
        Ok(Word {
            pieces: pieces.finish(),
            line,
        })
    }

    fn double_quoted(&mut self, pieces: &mut Pieces, line: u32) -> Result<(), SyntaxError> {
        self.charge(line, 2)?;
        pieces.text(b"", true);
        loop {
            match self.peek() {
                None => return self.error(line, "a `\"` that is never closed"),
                Some(b'"') => {
                    self.next();
                    return Ok(());
                }
                Some(b'$') => self.variable(pieces, true)?,
                Some(b'\\') => {
                    self.next();
                    match self.next() {
                        Some(b'\n') => {}
                        Some(byte @ (b'$' | b'"' | b'\\')) => pieces.text(&[byte], true),
                        Some(byte) => pieces.text(&[b'\\', byte], true),
                        None => return self.error(line, "a `\"` that is never closed"),
                    }
                }
                Some(byte) => {
                    self.next();
                    pieces.text(&[byte], true);
                }
            }
        }
    }

    /// Reads `$name`, `${name}`, `$1`, `$?`, `$#`, `$*` or `$@`. Any other `$` stands for itself.
    fn variable(&mut self, pieces: &mut Pieces, quoted: bool) -> Result<(), SyntaxError> {
        let line = self.line;
        self.next();
        let braced = self.peek() == Some(b'{');
        if braced {
            self.next();
        }
        let start = self.at;
        match self.peek() {
            Some(b'?' | b'#' | b'*' | b'@') => {
                self.next();
            }
            Some(first) if first.is_ascii_digit() => {
                while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                    self.next();
                }
            }
            Some(first) if first.is_ascii_alphabetic() || first == b'_' => {
                while self
                    .peek()
                    .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                {
                    self.next();
                }
            }
            _ if braced => return self.error(line, "`${` without a variable's name"),
            _ => {
                pieces.text(b"$", quoted);
                return Ok(());
            }
        }
        // It, and a text that it ends.
        self.charge(line, 2)?;
        let name = String::from_utf8_lossy(self.text.get(start..self.at).unwrap_or_default());
        pieces.variable(name.into_owned(), quoted);
        if braced && self.next() != Some(b'}') {
            return self.error(line, "`${` that is never closed");
        }
        Ok(())
    }
}

/// Collects the pieces of one word. Adjacent text of the same kind is merged.
#[derive(Default)]
struct Pieces {
    done: Vec<Piece>,
    text: Option<(Vec<u8>, bool)>,
}

impl Pieces {
    fn text(&mut self, bytes: &[u8], quoted: bool) {
        match &mut self.text {
            Some((text, as_quoted)) if *as_quoted == quoted => text.extend_from_slice(bytes),
            _ => {
                self.flush();
                self.text = Some((bytes.to_vec(), quoted));
            }
        }
    }

    fn variable(&mut self, name: String, quoted: bool) {
        self.flush();
        self.done.push(Piece::Variable { name, quoted });
    }

    fn flush(&mut self) {
        if let Some((text, quoted)) = self.text.take() {
            let text = String::from_utf8_lossy(&text).into_owned();
            self.done.push(Piece::Text { text, quoted });
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        self.flush();
        self.done
    }
}
