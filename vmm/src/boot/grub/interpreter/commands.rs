//! Runs a command by the table, and the commands that change variables or end blocks.

use std::rc::Rc;

use super::arguments::{self, Arguments};
use super::table::{self, Call, Effect, Outcome};
use super::{Flow, Interpreter, Status};
use crate::boot::error::BootError;
use crate::boot::grub::environment::Value;
use crate::boot::grub::number;
use crate::boot::grub::syntax::Block;

const UNKNOWN: &str = "it is not a command that is known here";

impl Interpreter<'_> {
    /// Runs the command, function or assignment `name`.
    pub(super) fn call(
        &mut self,
        name: &str,
        words: Vec<String>,
        block: Option<&Block>,
    ) -> Result<Flow, BootError> {
        let spec = table::find(name);
        let run = match spec.map(|spec| spec.effect) {
            Some(
                Effect::Controls(run)
                | Effect::Decides(run)
                | Effect::Sets(run)
                | Effect::Loads(run),
            ) => run,
            // GRUBs differ in these, so that a configuration may have a function of the name.
            effect => {
                if let Some(function) = self.functions.get(name).cloned() {
                    self.status = Status::Known(0);
                    return self.invoke(&function, words);
                }
                self.without_effect(name, &words, effect)?;
                return Ok(Flow::Next);
            }
        };
        let parsed = spec.map_or(Ok(None), |spec| {
            arguments::parse(spec.style, spec.options, &words)
        });
        let outcome = match parsed {
            Ok(Some(arguments)) => run(
                self,
                &Call {
                    name,
                    arguments,
                    block,
                },
            )?,
            // Only its help is shown.
            Ok(None) => Outcome::Done,
            Err(problem) => Outcome::Failed(problem),
        };
        Ok(self.conclude(name, &words, outcome))
    }

    /// Sets the status from `outcome`.
    fn conclude(&mut self, name: &str, words: &[String], outcome: Outcome) -> Flow {
        self.status = match outcome {
            Outcome::Flow(flow) => return flow,
            Outcome::Done => Status::Known(0),
            Outcome::False => Status::Known(1),
            Outcome::Failed(problem) => {
                self.note(&construct(name, words), &problem);
                Status::Known(1)
            }
            Outcome::Undecided(why) => {
                Status::Undecided(self.not_decided(&construct(name, words), &why))
            }
        };
        Flow::Next
    }

    /// Runs an assignment, or a command that does nothing here.
    fn without_effect(
        &mut self,
        name: &str,
        words: &[String],
        effect: Option<Effect>,
    ) -> Result<(), BootError> {
        let text = || construct(name, words);
        let why = match effect {
            Some(Effect::Refused(why)) => return Err(self.error(text(), why)),
            Some(Effect::Harmless) => {
                tracing::trace!(file = %self.current, line = self.line, command = text(), "ignored");
                self.status = Status::Known(0);
                return Ok(());
            }
            Some(_) => {
                tracing::trace!(file = %self.current, line = self.line, command = text(), "ignored");
                "its result is not known here"
            }
            None => {
                if let Some((name, value)) = name.split_once('=') {
                    self.status = Status::Known(0);
                    return self.set(name, value);
                }
                // GRUB prints it and goes on.
                self.note(&text(), &format!("unknown command `{name}`"));
                UNKNOWN
            }
        };
        let undecided = self.not_decided(&text(), why);
        for variable in named_variables(words) {
            let set = self.env.set_undecided(variable, undecided.clone());
            set.map_err(|full| self.error(text(), full.to_string()))?;
        }
        self.status = Status::Undecided(undecided);
        Ok(())
    }
}

/// The variables that a command sets if it is like others: `--set=NAME`, `--set NAME`, `-s NAME`.
fn named_variables(words: &[String]) -> impl Iterator<Item = &str> {
    let next = words.iter().skip(1).map(String::as_str);
    let next = next.map(Some).chain(std::iter::once(None));
    words.iter().zip(next).filter_map(|(word, next)| {
        let joined = word.strip_prefix("--set=");
        let apart = next.filter(|_| matches!(word.as_str(), "--set" | "-s" | "-v"));
        // As in `regexp --set=1:name`.
        let name = joined.or(apart)?;
        Some(name.rsplit_once(':').map_or(name, |(_, name)| name))
    })
}

/// The command as text, for errors.
fn construct(name: &str, words: &[String]) -> String {
    let mut text = name.to_string();
    for word in words {
        if text.len() > super::MAX_TEXT {
            break;
        }
        text.push(' ');
        text.push_str(word);
    }
    text
}

/// `break` and `continue`. More loops than there are, are all of them; outside a loop nothing
/// happens.
pub(super) fn break_loops(
    grub: &mut Interpreter<'_>,
    call: &Call<'_>,
) -> Result<Outcome, BootError> {
    let count = match call.arguments.rest.as_slice() {
        [] => 1,
        [count] => match count.parse::<u32>() {
            Ok(count) if count > 0 => count,
            _ => return Ok(Outcome::Failed("it is not a number of loops".into())),
        },
        _ => return Ok(Outcome::Failed("one argument is expected".into())),
    };
    grub.status = Status::Known(0);
    let count = count.min(grub.loops);
    Ok(Outcome::Flow(match (count, call.name) {
        (0, _) => Flow::Next,
        (count, "break") => Flow::Break(count),
        (count, _) => Flow::Continue(count),
    }))
}

/// `return`, which only a function or an entry can.
pub(super) fn return_from(
    grub: &mut Interpreter<'_>,
    call: &Call<'_>,
) -> Result<Outcome, BootError> {
    if grub.scopes == 0 {
        return Ok(Outcome::Failed("it is not in a function".into()));
    }
    match call.arguments.rest.as_slice() {
        [] => {}
        [status] => match status.parse() {
            Ok(status) => grub.status = Status::Known(status),
            Err(_) => return Ok(Outcome::Failed("it is not a number".into())),
        },
        _ => return Ok(Outcome::Failed("one argument is expected".into())),
    }
    Ok(Outcome::Flow(Flow::Return))
}

/// `time COMMAND`, which runs it.
pub(super) fn time(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let Some((name, words)) = call.arguments.rest.split_first() else {
        return Ok(Outcome::Failed("a command is missing".into()));
    };
    let words = words.iter().map(|word| word.to_string()).collect();
    grub.nest("time", |grub| grub.call(name, words, None))
        .map(Outcome::Flow)
}

/// `fwsetup`: asked whether there are settings to enter, the firmware that is not there says no.
pub(super) fn fwsetup(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    if call.arguments.has("is-supported") {
        return Ok(Outcome::False);
    }
    Err(grub.error(
        call.name,
        "it enters the firmware's settings, but there is no firmware",
    ))
}

pub(super) fn set(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    match call.arguments.rest.first().map(|word| word.split_once('=')) {
        Some(Some((name, value))) => grub.set(name, value).map(|()| Outcome::Done),
        Some(None) => Ok(Outcome::Failed("a `=` is missing".into())),
        None => Ok(Outcome::Done),
    }
}

pub(super) fn unset(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    call.arguments
        .rest
        .iter()
        .for_each(|name| grub.env.unset(name));
    Ok(Outcome::Done)
}

pub(super) fn export(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let mut names = call.arguments.rest.iter();
    names.try_for_each(|name| grub.export(name))?;
    Ok(Outcome::Done)
}

/// `increment` and `decrement`.
pub(super) fn count(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let [name] = call.arguments.rest.as_slice() else {
        return Ok(Outcome::Failed("one variable is expected".into()));
    };
    if grub.env.get(name).is_none() {
        return Ok(Outcome::Failed(format!("there is no variable `{name}`")));
    }
    let value = grub.variable(name)?;
    let (negative, digits) = match value.trim_start_matches(number::is_space).strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, &*value),
    };
    let Some((size, _)) = number::leading(digits) else {
        return Ok(Outcome::Failed(format!("`{value}` is not a number")));
    };
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let number = if negative { -size } else { size };
    let by = if call.name == "increment" { 1 } else { -1 };
    grub.set(name, &number.saturating_add(by).to_string())?;
    Ok(Outcome::Done)
}

/// `tr [--set=VARIABLE] [--upcase|--downcase] [FROM TO] [TEXT]`.
pub(super) fn tr(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
    const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let arguments: &Arguments<'_> = &call.arguments;
    let variable = arguments.value("set");
    let mut sets = None;
    if arguments.has("upcase") {
        sets = Some((LOWER, UPPER));
    }
    if arguments.has("downcase") {
        sets = Some((UPPER, LOWER));
    }
    let mut text = None;
    match *arguments.rest.as_slice() {
        [] => {}
        [only] => text = Some(only),
        [from, to] => sets = Some((from, to)),
        [from, to, last] => (sets, text) = (Some((from, to)), Some(last)),
        _ => return Ok(Outcome::Failed("too many arguments".into())),
    }
    let text: Option<Rc<str>> = match (text, variable) {
        (Some(text), _) => Some(text.into()),
        (None, Some(name)) if grub.env.get(name).is_some() => Some(grub.variable(name)?),
        _ => None,
    };
    let (Some((from, to)), Some(text)) = (sets, text) else {
        return Ok(Outcome::Failed("arguments are missing".into()));
    };
    let to: Vec<char> = to.chars().collect();
    if from.chars().count() != to.len() {
        return Ok(Outcome::Failed("the two sets have different sizes".into()));
    }
    let work = (text.len() as u64).saturating_mul(to.len() as u64);
    grub.account.budget().work(work)?;
    let translate = |c: char| {
        let at = from.chars().position(|have| have == c);
        at.and_then(|at| to.get(at)).copied().unwrap_or(c)
    };
    if let Some(name) = variable {
        grub.set(name, &text.chars().map(translate).collect::<String>())?;
    }
    Ok(Outcome::Done)
}

pub(super) fn shift(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    let by = match call.arguments.rest.as_slice() {
        [] => Some(1),
        [by] => by.parse::<usize>().ok(),
        _ => None,
    };
    Ok(match by.filter(|by| *by <= grub.parameters.len()) {
        Some(by) => {
            grub.parameters.drain(..by);
            Outcome::Done
        }
        None => Outcome::False,
    })
}

pub(super) fn setparams(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    if grub.scopes == 0 {
        return Ok(Outcome::False);
    }
    let words = call.arguments.rest.iter();
    grub.parameters = words.map(|word| word.to_string()).collect();
    Ok(Outcome::Done)
}

/// `hwmatch`: no graphics card is on any list.
pub(super) fn hwmatch(grub: &mut Interpreter<'_>, _: &Call<'_>) -> Result<Outcome, BootError> {
    grub.set("match", "0")?;
    Ok(Outcome::Done)
}

/// `read`: nothing is typed.
pub(super) fn read(grub: &mut Interpreter<'_>, call: &Call<'_>) -> Result<Outcome, BootError> {
    if let Some(name) = call.arguments.rest.first() {
        grub.set(name, "")?;
    }
    Ok(Outcome::Done)
}

impl Interpreter<'_> {
    /// Runs `run` one level deeper.
    pub(super) fn nest<T>(
        &mut self,
        construct: &str,
        run: impl FnOnce(&mut Self) -> Result<T, BootError>,
    ) -> Result<T, BootError> {
        self.depth += 1;
        if self.depth > super::MAX_DEPTH {
            return Err(self.error(construct, "commands are nested too deeply"));
        }
        let result = run(self);
        self.depth -= 1;
        result
    }

    /// The text of a variable that is set and known.
    pub(super) fn text(&self, name: &str) -> Option<Rc<str>> {
        match self.env.get(name)? {
            Value::Text(text) => Some(text.clone()),
            Value::Undecided(_) => None,
        }
    }
}
