//! Runs a configuration.

mod arguments;
mod commands;
mod conditions;
mod files;
mod load;
mod menu;
mod search;
mod table;

use std::collections::HashMap;
use std::rc::Rc;

use super::account::Account;
use super::environment::{Environment, Full, Undecided, Value};
use super::number::is_space;
use super::syntax::{Block, Command, Piece, Word};
use super::wildcard::{self, Field};
use crate::boot::budget::Limit;
use crate::boot::devices::{Devices, Location};
use crate::boot::error::BootError;
use crate::boot::limits::Limits;

/// Maximum nesting of blocks, calls and files while running.
const MAX_DEPTH: u32 = 100;
/// Maximum bytes of one command's expanded words.
const MAX_WORDS: usize = 256 * 1024;
/// Maximum bytes of all commands together after expansion.
const MAX_EXPANDED: usize = 8 << 20;
/// The cost of a word, in addition to its bytes.
const WORD: usize = size_of::<Field>();
/// Maximum number of entries in all menus.
const MAX_ENTRIES: usize = 4096;
/// Maximum number of problems that are recorded.
const MAX_PROBLEMS: usize = 64;
/// Maximum characters of a command or a reason in an error.
const MAX_TEXT: usize = 300;

/// What GRUB would boot.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::boot) struct Choice {
    /// Titles of the submenus and the entry.
    pub(in crate::boot) titles: Vec<String>,
    /// The configuration file that the entry is in.
    pub(in crate::boot) config: String,
    pub(in crate::boot) kernel: Location,
    pub(in crate::boot) initrds: Vec<Location>,
    pub(in crate::boot) cmdline: String,
    /// Variables that the configuration asked to save, with their values.
    pub(in crate::boot) saved: Vec<(String, Option<String>)>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    /// Leave this many loops, or begin the next round of the outermost of them.
    Break(u32),
    Continue(u32),
    Return,
    /// Start the loaded kernel.
    Boot,
}

/// How the last command ended: what `$?` and conditions ask.
#[derive(Clone)]
enum Status {
    /// 0 is success.
    Known(i32),
    /// This command would have decided it.
    Undecided(Rc<Undecided>),
}

/// The files loaded by `linux` and `initrd`.
#[derive(Clone)]
struct LoadedLinux {
    kernel: Location,
    initrds: Vec<Location>,
    cmdline: String,
    config: Rc<str>,
}

/// A problem that GRUB would print before it continues.
struct Problem {
    file: Rc<str>,
    line: u32,
    construct: String,
    problem: String,
}

/// A menu entry or submenu.
struct Entry {
    title: String,
    id: String,
    /// The title and the arguments after it: `$1` and so on in the body.
    arguments: Vec<String>,
    body: Block,
    submenu: bool,
    file: Rc<str>,
    line: u32,
}

/// A function, and the file it is from.
#[derive(Clone)]
struct Function {
    file: Rc<str>,
    body: Block,
}

pub(super) struct Interpreter<'a> {
    devices: &'a Devices,
    limits: &'a Limits,
    account: Account,
    env: Environment,
    functions: HashMap<String, Function>,
    /// One menu for each open context.
    menus: Vec<Vec<Rc<Entry>>>,
    entries: usize,
    /// Arguments of the running function or entry.
    parameters: Vec<String>,
    /// The file of the running command.
    current: Rc<str>,
    line: u32,
    status: Status,
    /// Bytes of commands after expansion, to limit the size of menus and the work.
    expanded: usize,
    depth: u32,
    /// Running loops of the running function.
    loops: u32,
    /// Running functions and entries.
    scopes: u32,
    loaded: Option<LoadedLinux>,
    titles: Vec<String>,
    problems: Vec<Problem>,
    saved: Vec<(String, Option<String>)>,
}

impl<'a> Interpreter<'a> {
    pub(super) fn new(devices: &'a Devices, limits: &'a Limits) -> Self {
        Self {
            devices,
            limits,
            account: Account::new(devices.budget().clone()),
            env: Environment::new(),
            functions: HashMap::new(),
            menus: vec![Vec::new()],
            entries: 0,
            parameters: Vec::new(),
            current: "".into(),
            line: 0,
            status: Status::Known(0),
            expanded: 0,
            depth: 0,
            loops: 0,
            scopes: 0,
            loaded: None,
            titles: Vec::new(),
            problems: Vec::new(),
            saved: Vec::new(),
        }
    }

    /// The result, after everything has run.
    pub(super) fn finish(self, booted: bool, config: &str) -> Result<Choice, BootError> {
        if let Some(loaded) = self.loaded.filter(|_| booted) {
            return Ok(Choice {
                titles: self.titles,
                config: loaded.config.to_string(),
                kernel: loaded.kernel,
                initrds: loaded.initrds,
                cmdline: loaded.cmdline,
                saved: self.saved,
            });
        }
        // The first thing that went wrong is most often the cause of what follows.
        match self.problems.into_iter().next() {
            Some(found) => Err(BootError::Config {
                file: found.file.to_string(),
                line: found.line,
                construct: found.construct,
                problem: found.problem + &self.devices.unreadable(),
            }),
            None => Err(BootError::File {
                file: config.into(),
                problem: "it has no menu entry that loads a kernel".into(),
            }),
        }
    }

    /// An error in the running command.
    fn error(&self, construct: impl AsRef<str>, problem: impl AsRef<str>) -> BootError {
        BootError::Config {
            file: self.current.to_string(),
            line: self.line,
            construct: shorten(construct.as_ref()),
            problem: shorten(problem.as_ref()),
        }
    }

    /// The error of something that depends on what `command` would have done.
    fn undecided(&self, command: &Undecided) -> BootError {
        BootError::Config {
            file: command.file.to_string(),
            line: command.line,
            construct: command.construct.clone(),
            problem: format!("what boots depends on it, and {}", command.why),
        }
    }

    /// The running command as one whose effect cannot be told.
    fn not_decided(&self, construct: &str, why: &str) -> Rc<Undecided> {
        tracing::debug!(file = %self.current, line = self.line, construct, why, "undecided");
        Rc::new(Undecided {
            file: self.current.clone(),
            line: self.line,
            construct: shorten(construct),
            why: shorten(why),
        })
    }

    /// Records an error that GRUB would print.
    fn note(&mut self, construct: &str, problem: &str) {
        tracing::debug!(file = %self.current, line = self.line, construct, problem, "GRUB error");
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                file: self.current.clone(),
                line: self.line,
                construct: shorten(construct),
                problem: shorten(problem),
            });
        }
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), BootError> {
        self.account.keep(name.len() + value.len())?;
        let set = self.env.set(name, value);
        set.map_err(|full| self.full("set", name, &full))
    }

    pub(super) fn export(&mut self, name: &str) -> Result<(), BootError> {
        let exported = self.env.export(name);
        exported.map_err(|full| self.full("export", name, &full))
    }

    fn full(&self, command: &str, name: &str, full: &Full) -> BootError {
        self.error(format!("{command} {name}"), full.to_string())
    }

    /// The value of the variable `name`, empty if it is not set.
    fn variable(&self, name: &str) -> Result<Rc<str>, BootError> {
        match self.env.get(name) {
            None => Ok("".into()),
            Some(Value::Text(text)) => Ok(text.clone()),
            Some(Value::Undecided(command)) => Err(self.undecided(command)),
        }
    }

    fn locate(&self, path: &str) -> Result<Result<Location, String>, BootError> {
        Ok(self.devices.locate(path, &self.variable("root")?))
    }

    fn block(&mut self, block: &Block) -> Result<Flow, BootError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("{", "commands are nested too deeply"));
        }
        let mut flow = Flow::Next;
        for command in block.iter() {
            flow = self.command(command)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.depth -= 1;
        Ok(flow)
    }

    fn command(&mut self, command: &Command) -> Result<Flow, BootError> {
        self.step()?;
        match command {
            Command::Simple { words, block, line } => {
                self.line = *line;
                self.simple(words, block.as_ref())
            }
            Command::If { arms, otherwise } => {
                for (condition, body) in arms {
                    match self.condition(condition)? {
                        Ok(true) => return self.block(body),
                        Ok(false) => {}
                        Err(flow) => return Ok(flow),
                    }
                }
                self.status = Status::Known(0);
                otherwise
                    .as_ref()
                    .map_or(Ok(Flow::Next), |body| self.block(body))
            }
            Command::While {
                condition,
                until,
                body,
                line,
            } => {
                self.loops += 1;
                let flow = self.repeat(condition, *until, body, *line);
                self.loops -= 1;
                flow
            }
            Command::For {
                variable,
                words,
                body,
            } => {
                let values = self.expand(words)?;
                self.loops += 1;
                let flow = self.for_each(variable, &values, body);
                self.loops -= 1;
                flow
            }
            Command::Function { name, body } => {
                let function = Function {
                    file: self.current.clone(),
                    body: body.clone(),
                };
                self.account.keep(name.len() + size_of::<Function>())?;
                self.functions.insert(name.clone(), function);
                self.status = Status::Known(0);
                Ok(Flow::Next)
            }
        }
    }

    fn repeat(
        &mut self,
        condition: &Block,
        until: bool,
        body: &Block,
        line: u32,
    ) -> Result<Flow, BootError> {
        loop {
            self.line = line;
            self.step()?;
            match self.condition(condition)? {
                Ok(holds) if holds == until => return Ok(Flow::Next),
                Ok(_) => {}
                Err(flow) => {
                    if let Some(flow) = after_round(flow) {
                        return Ok(flow);
                    }
                }
            }
            let flow = self.block(body)?;
            if let Some(flow) = after_round(flow) {
                return Ok(flow);
            }
        }
    }

    fn for_each(
        &mut self,
        variable: &str,
        values: &[String],
        body: &Block,
    ) -> Result<Flow, BootError> {
        for value in values {
            self.step()?;
            self.set(variable, value)?;
            let flow = self.block(body)?;
            if let Some(flow) = after_round(flow) {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn step(&self) -> Result<(), BootError> {
        Ok(self.account.budget().charge(Limit::Steps, 1)?)
    }

    /// Runs `condition` and returns whether it succeeds. The inner error is a flow that ends the
    /// enclosing command.
    fn condition(&mut self, condition: &Block) -> Result<Result<bool, Flow>, BootError> {
        let flow = self.block(condition)?;
        if flow != Flow::Next {
            return Ok(Err(flow));
        }
        match &self.status {
            Status::Known(status) => Ok(Ok(*status == 0)),
            Status::Undecided(command) => Err(self.undecided(command)),
        }
    }

    fn simple(&mut self, words: &[Word], block: Option<&Block>) -> Result<Flow, BootError> {
        let mut words = self.expand(words)?;
        let invert = words.first().is_some_and(|word| word == "!");
        if invert {
            words.remove(0);
        }
        if words.is_empty() {
            return Ok(Flow::Next);
        }
        let name = words.remove(0);
        let flow = self.call(&name, words, block)?;
        if invert && let Status::Known(status) = &mut self.status {
            *status = i32::from(*status == 0);
        }
        Ok(flow)
    }

    /// Runs a function's body with its arguments.
    fn invoke(&mut self, function: &Function, arguments: Vec<String>) -> Result<Flow, BootError> {
        let caller = std::mem::replace(&mut self.parameters, arguments);
        let file = std::mem::replace(&mut self.current, function.file.clone());
        let (line, loops) = (self.line, std::mem::take(&mut self.loops));
        self.scopes += 1;
        let flow = self.block(&function.body);
        self.scopes -= 1;
        (self.parameters, self.current) = (caller, file);
        (self.line, self.loops) = (line, loops);
        match flow? {
            Flow::Boot => Ok(Flow::Boot),
            _ => Ok(Flow::Next),
        }
    }

    /// Expands variables and wildcards, and splits unquoted variables at white space.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, BootError> {
        let mut done = Vec::new();
        let mut bytes = 0;
        for word in words {
            bytes += WORD;
            // `None` until something, be it empty, makes it a word.
            let mut current: Option<Field> = None;
            let mut fields = Vec::new();
            for piece in &word.pieces {
                match piece {
                    Piece::Text { text, quoted: true } => {
                        current.get_or_insert_default().push_quoted(text);
                        bytes += text.len();
                    }
                    Piece::Text {
                        text,
                        quoted: false,
                    } => {
                        if !text.is_empty() {
                            current.get_or_insert_default().push_plain(text);
                        }
                        bytes += text.len();
                    }
                    Piece::Variable { name, quoted: true } if name == "@" => {
                        for (i, value) in self.parameters.iter().enumerate() {
                            if i > 0 {
                                fields.extend(current.take());
                            }
                            current.get_or_insert_default().push_quoted(value);
                            bytes += value.len() + WORD;
                        }
                    }
                    Piece::Variable { name, quoted: true } => {
                        let value = self.value(name)?;
                        current.get_or_insert_default().push_quoted(&value);
                        bytes += value.len();
                    }
                    Piece::Variable {
                        name,
                        quoted: false,
                    } => {
                        let value = self.value(name)?;
                        bytes += value.len();
                        // White space at the ends does not separate, as in GRUB.
                        let words = value.split(is_space).filter(|word| !word.is_empty());
                        for (i, field) in words.enumerate() {
                            if i > 0 {
                                fields.extend(current.take());
                                bytes += WORD;
                            }
                            current.get_or_insert_default().push_plain(field);
                        }
                    }
                }
                self.check_size(bytes, word.line)?;
            }
            fields.extend(current);
            for field in fields {
                let root = self.variable("root")?;
                let paths = wildcard::expand(&field, self.devices, &root, &self.account)?;
                match paths {
                    None => done.push(field.text),
                    Some(paths) => {
                        bytes += paths.iter().map(|path| path.len() + WORD).sum::<usize>();
                        self.check_size(bytes, word.line)?;
                        done.extend(paths);
                    }
                }
            }
        }
        self.expanded += bytes;
        Ok(done)
    }

    /// Checks that a command may have `bytes` after its expansion.
    fn check_size(&self, bytes: usize, line: u32) -> Result<(), BootError> {
        let problem = if bytes > MAX_WORDS {
            "a command expands to too many bytes"
        } else if self.expanded + bytes > MAX_EXPANDED {
            "its commands expand to too many bytes"
        } else {
            return Ok(());
        };
        Err(BootError::Config {
            file: self.current.to_string(),
            line,
            construct: "$".into(),
            problem: problem.into(),
        })
    }

    fn value(&self, name: &str) -> Result<Rc<str>, BootError> {
        Ok(match name {
            "?" => match &self.status {
                Status::Known(status) => status.to_string().into(),
                Status::Undecided(command) => return Err(self.undecided(command)),
            },
            "#" => self.parameters.len().to_string().into(),
            "*" | "@" => self.parameters.join(" ").into(),
            name => match name.parse::<usize>() {
                // `$0` is empty in GRUB.
                Ok(n) => {
                    let parameter = self.parameters.get(n.wrapping_sub(1));
                    parameter.map_or("", String::as_str).into()
                }
                Err(_) => self.variable(name)?,
            },
        })
    }
}

/// What a loop does after a round that ended with `flow`: `None` to go on.
fn after_round(flow: Flow) -> Option<Flow> {
    match flow {
        Flow::Next | Flow::Continue(1) => None,
        Flow::Break(1) => Some(Flow::Next),
        Flow::Break(n) => Some(Flow::Break(n - 1)),
        Flow::Continue(n) => Some(Flow::Continue(n - 1)),
        flow => Some(flow),
    }
}

/// The beginning of a text, for errors.
fn shorten(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
