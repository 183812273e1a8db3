//! GRUB's script language: text to commands.
//!
//! Words are kept with their quotes resolved and their variables named, to be expanded when they
//! run. What the grammar of GRUB has no use for (`|`, `&`, `<`, `>`) is an error.

use std::rc::Rc;

/// Nesting of blocks and conditions.
const MAX_DEPTH: usize = 64;
/// Words and commands of one file.
const MAX_TOKENS: usize = 200_000;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Literal text. Quoted text makes a word even if it is empty, and is no keyword.
    Text { text: String, quoted: bool },
    /// A variable's value; unquoted, it is split at white space.
    Variable { name: String, quoted: bool },
}

/// A word, and the line it starts in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    pub(super) line: u32,
}

impl Word {
    /// The text of a word that is one plain piece.
    fn plain(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [
                Piece::Text {
                    text,
                    quoted: false,
                },
            ] => Some(text),
            _ => None,
        }
    }
}

/// Commands between braces, or those of a file.
pub(super) type Block = Rc<[Command]>;

/// One command.
#[derive(Debug)]
pub(super) enum Command {
    Simple {
        words: Vec<Word>,
        block: Option<Block>,
        line: u32,
    },
    If {
        arms: Vec<(Block, Block)>,
        otherwise: Option<Block>,
    },
    While {
        condition: Block,
        until: bool,
        body: Block,
        line: u32,
    },
    For {
        variable: String,
        words: Vec<Word>,
        body: Block,
    },
    Function {
        name: String,
        body: Block,
    },
}

/// Why a text is not a script.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) problem: String,
}

/// Parses `text`.
///
/// # Errors
/// It is not a script, or nests too deeply.
pub(super) fn parse(text: &str) -> Result<Block, SyntaxError> {
    let tokens = Lexer {
        text: text.as_bytes(),
        at: 0,
        line: 1,
    }
    .tokens()?;
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
    };
    let commands = parser.commands(&[])?;
    Ok(commands)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Newline,
    Semicolon,
    Open,
    Close,
    Word(Word),
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
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
            if tokens.len() >= MAX_TOKENS {
                return self.error(line, "too long a script");
            }
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
                    match self.next() {
                        Some(b'\n') => {}
                        Some(byte) => pieces.text(&[byte], true),
                        None => return self.error(line, "a `\\` at the end"),
                    }
                }
                b'\'' => {
                    self.next();
                    let start = self.at;
                    while self.peek().is_some_and(|byte| byte != b'\'') {
                        self.next();
                    }
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

    /// `$name`, `${name}`, `$1`, `$?`, `$#`, `$*`, `$@`; any other `$` is itself.
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
        let name = String::from_utf8_lossy(self.text.get(start..self.at).unwrap_or_default());
        pieces.variable(name.into_owned(), quoted);
        if braced && self.next() != Some(b'}') {
            return self.error(line, "`${` that is never closed");
        }
        Ok(())
    }
}

/// Collects the pieces of one word; text of one kind runs together.
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

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn line(&self) -> u32 {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(1, |(_, line)| *line)
    }

    fn error<T>(&self, problem: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError {
            line: self.line(),
            problem: problem.into(),
        })
    }

    /// The keyword or plain word that comes next.
    fn plain(&self) -> Option<&str> {
        match self.peek()? {
            Token::Word(word) => word.plain(),
            _ => None,
        }
    }

    fn skip_separators(&mut self) {
        while matches!(self.peek(), Some(Token::Newline | Token::Semicolon)) {
            self.at += 1;
        }
    }

    fn skip_newlines(&mut self) {
        while matches!(self.peek(), Some(Token::Newline)) {
            self.at += 1;
        }
    }

    /// Commands up to one of `ends` (a keyword, or `}`), which is left; to the end of the text if
    /// there are none.
    fn commands(&mut self, ends: &[&str]) -> Result<Block, SyntaxError> {
        let opened = self.line();
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error("blocks nested too deeply");
        }
        let mut commands = Vec::new();
        loop {
            self.skip_separators();
            let ended = match self.peek() {
                None if ends.is_empty() => true,
                None => {
                    let expected = ends.join("` or `");
                    return Err(SyntaxError {
                        line: opened,
                        problem: format!("`{expected}` is missing before the end of the file"),
                    });
                }
                Some(Token::Close) => {
                    if ends.contains(&"}") {
                        true
                    } else {
                        return self.error("an unexpected `}`");
                    }
                }
                _ => self.plain().is_some_and(|word| ends.contains(&word)),
            };
            if ended {
                self.depth -= 1;
                return Ok(commands.into());
            }
            commands.push(self.command()?);
        }
    }

    fn command(&mut self) -> Result<Command, SyntaxError> {
        match self.plain() {
            Some("if") => self.condition(),
            Some("while") => self.repeat(false),
            Some("until") => self.repeat(true),
            Some("for") => self.for_each(),
            Some("function") => self.function(),
            Some(
                word @ ("then" | "elif" | "else" | "fi" | "do" | "done" | "case" | "esac"
                | "select" | "time" | "in"),
            ) => {
                let problem = format!("an unexpected `{word}`");
                self.error(problem)
            }
            _ => self.simple(),
        }
    }

    fn simple(&mut self) -> Result<Command, SyntaxError> {
        let line = self.line();
        let words = self.words();
        if words.is_empty() {
            return self.error("a block without a command");
        }
        let mut block = None;
        if self.peek() == Some(&Token::Open) {
            self.at += 1;
            block = Some(self.commands(&["}"])?);
            self.at += 1;
        }
        match self.peek() {
            None | Some(Token::Newline | Token::Semicolon | Token::Close) => {}
            _ => return self.error("a word right after a `}`"),
        }
        Ok(Command::Simple { words, block, line })
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn condition(&mut self) -> Result<Command, SyntaxError> {
        let mut arms = Vec::new();
        loop {
            // At `if` or `elif`.
            self.at += 1;
            let condition = self.commands(&["then"])?;
            self.at += 1;
            let body = self.commands(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            match self.plain() {
                Some("elif") => {}
                Some("else") => {
                    self.at += 1;
                    let otherwise = self.commands(&["fi"])?;
                    self.at += 1;
                    return Ok(Command::If {
                        arms,
                        otherwise: Some(otherwise),
                    });
                }
                _ => {
                    self.at += 1;
                    return Ok(Command::If {
                        arms,
                        otherwise: None,
                    });
                }
            }
        }
    }

    fn body(&mut self) -> Result<Block, SyntaxError> {
        self.at += 1;
        let body = self.commands(&["done"])?;
        self.at += 1;
        Ok(body)
    }

    fn repeat(&mut self, until: bool) -> Result<Command, SyntaxError> {
        let line = self.line();
        self.at += 1;
        let condition = self.commands(&["do"])?;
        Ok(Command::While {
            condition,
            until,
            body: self.body()?,
            line,
        })
    }

    fn name(&mut self) -> Result<String, SyntaxError> {
        match self.plain() {
            Some(name) => {
                let name = name.to_string();
                self.at += 1;
                Ok(name)
            }
            None => self.error("a name is missing"),
        }
    }

    fn for_each(&mut self) -> Result<Command, SyntaxError> {
        self.at += 1;
        let variable = self.name()?;
        if self.plain() != Some("in") {
            return self.error("`in` is missing");
        }
        self.at += 1;
        let words = self.words();
        self.skip_separators();
        if self.plain() != Some("do") {
            return self.error("`do` is missing");
        }
        Ok(Command::For {
            variable,
            words,
            body: self.body()?,
        })
    }

    fn function(&mut self) -> Result<Command, SyntaxError> {
        self.at += 1;
        let name = self.name()?;
        self.skip_newlines();
        if self.peek() != Some(&Token::Open) {
            return self.error("`{` is missing after a function's name");
        }
        self.at += 1;
        let body = self.commands(&["}"])?;
        self.at += 1;
        Ok(Command::Function { name, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let block = parse(text).unwrap();
        let [Command::Simple { words, .. }] = &*block else {
            panic!("{block:?}")
        };
        let show = |piece: &Piece| match piece {
            Piece::Text { text, .. } => text.clone(),
            Piece::Variable { name, quoted: true } => format!("<\"{name}\">"),
            Piece::Variable {
                name,
                quoted: false,
            } => format!("<{name}>"),
        };
        words
            .iter()
            .map(|word| word.pieces.iter().map(show).collect())
            .collect()
    }

    fn problem(text: &str) -> (u32, String) {
        let error = parse(text).unwrap_err();
        (error.line, error.problem)
    }

    #[test]
    fn quoting() {
        assert_eq!(
            words(r#"a 'b c' "d \"$e\" \n" f\ g"#),
            ["a", "b c", "d \"<\"e\">\" \\n", "f g"]
        );
        assert_eq!(
            words("set prefix=($root)'/boot/grub'"),
            ["set", "prefix=(<root>)/boot/grub"]
        );
        assert_eq!(
            words(r"echo 'it'\''s' $1 ${a}b $? $"),
            ["echo", "it's", "<1>", "<a>b", "<?>", "$"]
        );
        assert_eq!(words("a \\\n  b # comment"), ["a", "b"]);
        assert_eq!(words("a#b \"\""), ["a#b", ""]);
    }

    #[test]
    fn structure() {
        let block = parse(
            "if [ a ]; then b; elif c\nthen\n d\nelse e; fi\n\
             function f { g; }\nfunction h\n{\n}\n\
             for x in 1 2; do y; done\nwhile a; do b; done; until a; do b; done\n\
             menuentry 'x' --id y {\n  linux z; if a; then b; fi\n}\n",
        )
        .unwrap();
        assert_eq!(block.len(), 7);
        let Some(Command::Simple {
            block: Some(body),
            line: 11,
            words,
        }) = block.last()
        else {
            panic!("{block:?}")
        };
        assert_eq!((body.len(), words.len()), (2, 4));
        let Some(Command::If {
            arms,
            otherwise: Some(_),
        }) = block.first()
        else {
            panic!()
        };
        assert_eq!(arms.len(), 2);
    }

    #[test]
    fn problems_have_their_line() {
        assert_eq!(problem("a\nb 'c\nd").0, 2);
        assert_eq!(problem("a\nif b; then c\n").0, 2);
        assert_eq!(problem("a | b"), (1, "`|` outside quotes".into()));
        assert_eq!(problem("a\n}\n"), (2, "an unexpected `}`".into()));
        assert_eq!(problem("\n\nfi"), (3, "an unexpected `fi`".into()));
        assert_eq!(problem("echo ${").0, 1);
        let deep = "if a; then\n".repeat(1000);
        assert!(problem(&deep).1.contains("deeply"));
    }
}
