//! Combines words into commands.

use super::lexer::Token;
use super::tree::{Block, Command, SyntaxError, Word};
use crate::boot::grub::account::Account;

/// Maximum nesting of blocks and conditions.
const MAX_DEPTH: usize = 64;

pub(super) struct Parser<'a> {
    tokens: Vec<(Token, u32)>,
    at: usize,
    depth: usize,
    account: &'a Account,
}

impl<'a> Parser<'a> {
    pub(super) fn new(tokens: Vec<(Token, u32)>, account: &'a Account) -> Self {
        Self {
            tokens,
            at: 0,
            depth: 0,
            account,
        }
    }

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

    /// The next token, if it is a keyword or plain word.
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

    /// Reads commands up to one of `ends` (a keyword, or `}`), which is not consumed. Without
    /// `ends`, reads to the end of the text.
    pub(super) fn commands(&mut self, ends: &[&str]) -> Result<Block, SyntaxError> {
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
            // A command is larger than a piece, and stands in two vectors while they are built.
            let charged = self.account.piece(2 * size_of::<Command>());
            charged.or_else(|spent| self.error(spent.to_string()))?;
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
                | "select" | "in"),
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
        while let Some((Token::Word(word), _)) = self.tokens.get_mut(self.at) {
            // It is not looked at again.
            words.push(std::mem::take(word));
            self.at += 1;
        }
        words.shrink_to_fit();
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
