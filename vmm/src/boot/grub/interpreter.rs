//! Runs a configuration.

mod commands;
mod load;
mod menu;
mod search;

use std::collections::HashMap;
use std::rc::Rc;

use super::environment::Environment;
use super::syntax::{self, Block, Command, Piece, Word};
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
const WORD: usize = size_of::<String>();
/// Maximum number of entries in one menu.
const MAX_ENTRIES: usize = 4096;
/// Maximum number of problems that are recorded.
const MAX_PROBLEMS: usize = 64;

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
#[derive(Clone)]
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
    env: Environment,
    functions: HashMap<String, Function>,
    /// One menu for each open context.
    menus: Vec<Vec<Entry>>,
    /// Arguments of the running function or entry.
    parameters: Vec<String>,
    /// The file of the running command.
    current: Rc<str>,
    line: u32,
    status: i32,
    /// Bytes of commands after expansion, to limit the size of menus and the work.
    expanded: usize,
    depth: u32,
    conditions: u32,
    in_entry: bool,
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
            env: Environment::new(),
            functions: HashMap::new(),
            menus: vec![Vec::new()],
            parameters: Vec::new(),
            current: "".into(),
            line: 0,
            status: 0,
            expanded: 0,
            depth: 0,
            conditions: 0,
            in_entry: false,
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
    fn error(&self, construct: impl Into<String>, problem: impl Into<String>) -> BootError {
        BootError::Config {
            file: self.current.to_string(),
            line: self.line,
            construct: construct.into(),
            problem: problem.into(),
        }
    }

    /// Records an error that GRUB would print.
    fn note(&mut self, construct: &str, problem: &str) {
        tracing::debug!(file = %self.current, line = self.line, construct, problem, "GRUB error");
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                file: self.current.clone(),
                line: self.line,
                construct: construct.into(),
                problem: problem.into(),
            });
        }
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), BootError> {
        if self.env.set(name, value) {
            Ok(())
        } else {
            Err(self.error(
                format!("set {name}"),
                "the configuration sets too many variables",
            ))
        }
    }

    pub(super) fn export(&mut self, name: &str) -> Result<(), BootError> {
        if self.env.export(name) {
            Ok(())
        } else {
            Err(self.error(
                format!("export {name}"),
                "the configuration exports too many variables",
            ))
        }
    }

    fn root(&self) -> String {
        self.env.get("root").unwrap_or_default().to_string()
    }

    fn locate(&self, path: &str) -> Result<Location, String> {
        self.devices.locate(path, &self.root())
    }

    /// Runs the file at `path` in the current context.
    pub(super) fn file(&mut self, path: &str) -> Result<Flow, BootError> {
        let construct = format!("configfile {path}");
        let location = match self.locate(path) {
            Ok(location) => location,
            Err(problem) => {
                self.note(&construct, &problem);
                self.status = 1;
                return Ok(Flow::Next);
            }
        };
        let bytes = match self.devices.read(&location, self.limits.config) {
            Ok(bytes) => bytes,
            Err(problem) => {
                let what = self.devices.display(&location);
                self.note(&construct, &format!("{what}: {problem}"));
                self.status = 1;
                return Ok(Flow::Next);
            }
        };
        self.devices
            .budget()
            .charge(Limit::Parsed, bytes.len() as u64)?;
        let full: Rc<str> = self.devices.display(&location).into();
        let block =
            syntax::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| BootError::Config {
                file: full.to_string(),
                line: error.line,
                construct: "syntax".into(),
                problem: error.problem,
            })?;
        let directory = full
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory)
            .to_string();
        for (name, value) in [("config_file", &*full), ("config_directory", &directory)] {
            self.set(name, value)?;
            self.export(name)?;
        }
        let (caller, line) = (std::mem::replace(&mut self.current, full), self.line);
        let flow = self.block(&block);
        (self.current, self.line) = (caller, line);
        flow
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
                self.status = 0;
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
                loop {
                    self.line = *line;
                    self.step()?;
                    match self.condition(condition)? {
                        Ok(holds) if holds == *until => break,
                        Ok(_) => {}
                        Err(flow) => return Ok(flow),
                    }
                    if let Some(flow) = self.round(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            Command::For {
                variable,
                words,
                body,
            } => {
                for value in self.expand(words)? {
                    self.step()?;
                    self.set(variable, &value)?;
                    if let Some(flow) = self.round(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            Command::Function { name, body } => {
                let function = Function {
                    file: self.current.clone(),
                    body: body.clone(),
                };
                self.functions.insert(name.clone(), function);
                self.status = 0;
                Ok(Flow::Next)
            }
        }
    }

    fn step(&mut self) -> Result<(), BootError> {
        self.devices.budget().charge(Limit::Steps, 1)?;
        Ok(())
    }

    /// Runs one round of a loop. Returns `Some` if it ends the loop.
    fn round(&mut self, body: &Block) -> Result<Option<Flow>, BootError> {
        Ok(match self.block(body)? {
            Flow::Next | Flow::Continue(1) => None,
            Flow::Break(1) => Some(Flow::Next),
            Flow::Break(n) => Some(Flow::Break(n - 1)),
            Flow::Continue(n) => Some(Flow::Continue(n - 1)),
            flow => Some(flow),
        })
    }

    /// Runs `condition` and returns whether it succeeds. The inner error is a flow that ends the
    /// enclosing command.
    fn condition(&mut self, condition: &Block) -> Result<Result<bool, Flow>, BootError> {
        self.conditions += 1;
        let flow = self.block(condition)?;
        self.conditions -= 1;
        Ok(if flow == Flow::Next {
            Ok(self.status == 0)
        } else {
            Err(flow)
        })
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
        if invert {
            self.status = i32::from(self.status == 0);
        }
        Ok(flow)
    }

    /// Runs a function's body with its arguments.
    fn invoke(&mut self, function: &Function, arguments: Vec<String>) -> Result<Flow, BootError> {
        let caller = std::mem::replace(&mut self.parameters, arguments);
        let file = std::mem::replace(&mut self.current, function.file.clone());
        let line = self.line;
        let flow = self.block(&function.body);
        (self.parameters, self.current, self.line) = (caller, file, line);
        match flow? {
            Flow::Boot => Ok(Flow::Boot),
            _ => Ok(Flow::Next),
        }
    }

    /// Expands variables, and splits unquoted ones at white space.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, BootError> {
        let mut done = Vec::new();
        let mut bytes = 0;
        for word in words {
            bytes += WORD;
            // `None` until something, be it empty, makes it a word.
            let mut current: Option<String> = None;
            for piece in &word.pieces {
                match piece {
                    Piece::Text { text, quoted } => {
                        if *quoted || !text.is_empty() {
                            current.get_or_insert_default().push_str(text);
                            bytes += text.len();
                        }
                    }
                    Piece::Variable { name, quoted: true } if name == "@" => {
                        for (i, value) in self.parameters.iter().enumerate() {
                            if i > 0 {
                                done.extend(current.take());
                            }
                            current.get_or_insert_default().push_str(value);
                            bytes += value.len() + WORD;
                        }
                    }
                    Piece::Variable { name, quoted: true } => {
                        let value = self.value(name);
                        current.get_or_insert_default().push_str(&value);
                        bytes += value.len();
                    }
                    Piece::Variable {
                        name,
                        quoted: false,
                    } => {
                        let value = self.value(name);
                        bytes += value.len();
                        let space = |c: char| c.is_ascii_whitespace();
                        if value.starts_with(space) && !value.trim().is_empty() {
                            done.extend(current.take());
                        }
                        for (i, field) in value.split_ascii_whitespace().enumerate() {
                            if i > 0 {
                                done.extend(current.take());
                                bytes += WORD;
                            }
                            current.get_or_insert_default().push_str(field);
                        }
                    }
                }
                let problem = if bytes > MAX_WORDS {
                    "a command expands to too many bytes"
                } else if self.expanded + bytes > MAX_EXPANDED {
                    "its commands expand to too many bytes"
                } else {
                    continue;
                };
                {
                    let mut error = self.error("$", problem);
                    if let BootError::Config { line, .. } = &mut error {
                        *line = word.line;
                    }
                    return Err(error);
                }
            }
            done.extend(current);
        }
        self.expanded += bytes;
        Ok(done)
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => self.status.to_string(),
            "#" => self.parameters.len().to_string(),
            "*" | "@" => self.parameters.join(" "),
            "0" => self.current.to_string(),
            name => match name.parse::<usize>() {
                Ok(n) => self
                    .parameters
                    .get(n.wrapping_sub(1))
                    .cloned()
                    .unwrap_or_default(),
                Err(_) => self.env.get(name).unwrap_or_default().to_string(),
            },
        }
    }
}
