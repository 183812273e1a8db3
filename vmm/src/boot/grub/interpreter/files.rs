//! Commands that read other files: configurations, and the environment block.

use std::rc::Rc;

use super::table::{Call, Outcome};
use super::{Flow, Interpreter, MAX_PROBLEMS, Status};
use crate::boot::error::BootError;
use crate::boot::grub::environment;
use crate::boot::grub::syntax::{self, Block};

impl Interpreter<'_> {
    /// Runs the file at `path` in the current context.
    pub(in crate::boot::grub) fn file(&mut self, path: &str) -> Result<Flow, BootError> {
        let construct = format!("configfile {path}");
        let location = match self.locate(path)? {
            Ok(location) => location,
            Err(problem) => {
                self.note(&construct, &problem);
                return Ok(Flow::Next);
            }
        };
        let bytes = match self.devices.read(&location, self.limits.config) {
            Ok(bytes) => bytes,
            Err(problem) => {
                let what = self.devices.display(&location);
                self.note(&construct, &format!("{what}: {problem}"));
                return Ok(Flow::Next);
            }
        };
        let full: Rc<str> = self.devices.display(&location).into();
        let block = self.parse(&bytes, &full, 1)?;
        drop(bytes);
        let directory = full.rsplit_once('/').map_or("", |(directory, _)| directory);
        let names = ["config_file", "config_directory"];
        let outer = names.map(|name| self.text(name));
        for (name, value) in names.into_iter().zip([&*full, directory]) {
            self.set(name, value)?;
            self.export(name)?;
        }
        let (caller, line) = (std::mem::replace(&mut self.current, full), self.line);
        let flow = self.block(&block);
        (self.current, self.line) = (caller, line);
        for (name, value) in names.into_iter().zip(outer) {
            match value {
                Some(value) => self.set(name, &value)?,
                None => self.env.unset(name),
            }
        }
        flow
    }

    /// Parses a script whose first line is `line` of `file`.
    pub(super) fn parse(&self, bytes: &[u8], file: &str, line: u32) -> Result<Block, BootError> {
        self.account.parse(bytes.len())?;
        // The text, and its copy in the pieces.
        let _held = self.account.budget().hold(bytes.len())?;
        self.account.keep(bytes.len())?;
        let text = String::from_utf8_lossy(bytes);
        syntax::parse(&text, &self.account).map_err(|error| BootError::Config {
            file: file.into(),
            line: error.line.saturating_add(line).saturating_sub(1),
            construct: "syntax".into(),
            problem: error.problem,
        })
    }

    /// The path that `-f` names, or the usual one.
    fn environment_block(&self, call: &Call<'_>) -> Result<String, BootError> {
        Ok(match call.arguments.value("file") {
            Some(path) => path.to_string(),
            None => format!("{}/grubenv", self.variable("prefix")?),
        })
    }
}

/// `source` and `.`. GRUB's succeed even if there is no such file.
pub(super) fn source(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let [path] = call.arguments.rest.as_slice() else {
        return Ok(Outcome::Failed("one file is expected".into()));
    };
    let flow = grub.file(path)?;
    if flow != Flow::Return {
        grub.status = Status::Known(0);
    }
    Ok(Outcome::Flow(flow))
}

/// Runs another file in a separate context, and then its menu.
pub(super) fn configfile(
    grub: &mut Interpreter<'_>,
    call: &Call<'_>,
) -> Result<Outcome, BootError> {
    let [path] = call.arguments.rest.as_slice() else {
        return Ok(Outcome::Failed("one file is expected".into()));
    };
    grub.open_context(call.name)?;
    let booted = grub.file(path)? == Flow::Boot || grub.menu()?;
    grub.close_context();
    grub.status = Status::Known(0);
    Ok(Outcome::Flow(if booted { Flow::Boot } else { Flow::Next }))
}

/// `normal [FILE]`: runs a file, by default the one beside GRUB, and then the menu.
pub(super) fn normal(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let path = match call.arguments.rest.first() {
        Some(path) => path.to_string(),
        None => format!("{}/grub.cfg", grub.variable("prefix")?),
    };
    let booted = grub.file(&path)? == Flow::Boot || grub.menu()?;
    grub.status = Status::Known(0);
    Ok(Outcome::Flow(if booted { Flow::Boot } else { Flow::Next }))
}

/// `eval WORD...`: runs the words as a script.
pub(super) fn eval(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let text = call.arguments.rest.join(" ");
    let (file, line) = (grub.current.clone(), grub.line);
    let block = grub.parse(text.as_bytes(), &file, line)?;
    let flow = grub.block(&block);
    grub.line = line;
    flow.map(Outcome::Flow)
}

/// `load_env [--file FILE] [NAME...]`.
pub(super) fn load_env(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let path = grub.environment_block(call)?;
    let location = match grub.locate(&path)? {
        Ok(location) => location,
        Err(problem) => return Ok(Outcome::Failed(problem)),
    };
    let bytes = match grub.devices.read(&location, grub.limits.config) {
        Ok(bytes) => bytes,
        Err(error) => {
            let what = grub.devices.display(&location);
            return Ok(Outcome::Failed(format!("{what}: {error}")));
        }
    };
    grub.account.parse(bytes.len())?;
    let text = String::from_utf8_lossy(&bytes);
    let Some(variables) = environment::read_block(&text) else {
        return Ok(Outcome::Failed(format!(
            "{path} is not an environment block"
        )));
    };
    let only = &call.arguments.rest;
    for (name, value) in variables {
        if only.is_empty() || only.contains(&name.as_str()) {
            grub.set(&name, &value)?;
        }
    }
    Ok(Outcome::Done)
}

/// `save_env [--file FILE] NAME...`: what would be saved is recorded, because nothing is written.
pub(super) fn save_env(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    for name in &call.arguments.rest {
        let value = grub.text(name).map(|text| text.to_string());
        grub.saved.retain(|(have, _)| have != name);
        if grub.saved.len() < MAX_PROBLEMS {
            grub.saved.push((name.to_string(), value));
        }
    }
    Ok(Outcome::Done)
}
