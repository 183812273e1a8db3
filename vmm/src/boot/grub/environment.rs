//! GRUB's variables, and the environment block that stores some of them on disk.

use std::collections::HashMap;
use std::rc::Rc;

/// Maximum bytes of all variables together, in all contexts, with every value that they ever had.
const MAX_BYTES: usize = 1 << 20;
/// The cost of a variable besides its name and value.
const VARIABLE: usize = size_of::<(String, Variable)>() + 16;
/// First line of an environment block.
const SIGNATURE: &str = "# GRUB Environment Block\n";

/// A command whose effect cannot be told, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Undecided {
    pub(super) file: Rc<str>,
    pub(super) line: u32,
    pub(super) construct: String,
    pub(super) why: String,
}

/// What a variable holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(Rc<str>),
    /// What this command would have set.
    Undecided(Rc<Undecided>),
}

#[derive(Clone)]
struct Variable {
    value: Value,
    exported: bool,
}

/// The variables take too much room.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration sets or exports too many variables")]
pub(super) struct Full;

/// Variables, in nested contexts. A submenu or another configuration file starts with the exported
/// variables, and its changes end with it.
pub(super) struct Environment {
    contexts: Vec<HashMap<String, Variable>>,
    bytes: usize,
}

impl Environment {
    pub(super) fn new() -> Self {
        Self {
            contexts: vec![HashMap::new()],
            bytes: 0,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let variable = self.contexts.last()?.get(name)?;
        Some(&variable.value)
    }

    /// Sets `name`. For `root` the parentheses of a device's name are removed.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Full> {
        let value = match value
            .strip_prefix('(')
            .and_then(|value| value.strip_suffix(')'))
        {
            Some(device) if name == "root" => device,
            _ => value,
        };
        self.charge(name.len() + value.len())?;
        self.insert(name, Value::Text(value.into()));
        Ok(())
    }

    /// Records that `command` would have set `name` to something that cannot be told.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn set_undecided(&mut self, name: &str, command: Rc<Undecided>) -> Result<(), Full> {
        self.charge(name.len())?;
        self.insert(name, Value::Undecided(command));
        Ok(())
    }

    fn insert(&mut self, name: &str, value: Value) {
        if let Some(context) = self.contexts.last_mut() {
            let exported = context.get(name).is_some_and(|variable| variable.exported);
            context.insert(name.into(), Variable { value, exported });
        }
    }

    /// Counts as if nothing were ever replaced or removed: a bound on work, too.
    fn charge(&mut self, bytes: usize) -> Result<(), Full> {
        let bytes = self.bytes.saturating_add(bytes).saturating_add(VARIABLE);
        if bytes > MAX_BYTES {
            return Err(Full);
        }
        self.bytes = bytes;
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(context) = self.contexts.last_mut() {
            context.remove(name);
        }
    }

    /// Makes `name` visible in contexts opened later.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn export(&mut self, name: &str) -> Result<(), Full> {
        self.charge(name.len())?;
        if let Some(context) = self.contexts.last_mut() {
            let unset = Variable {
                value: Value::Text("".into()),
                exported: true,
            };
            context.entry(name.into()).or_insert(unset).exported = true;
        }
        Ok(())
    }

    /// Opens a context with the exported variables.
    ///
    /// # Errors
    /// There is no room for their copies.
    pub(super) fn open(&mut self) -> Result<(), Full> {
        let mut exported = HashMap::new();
        let mut bytes = 0;
        for (name, variable) in self.contexts.last().into_iter().flatten() {
            if variable.exported {
                // The value is shared.
                bytes += name.len() + VARIABLE;
                exported.insert(name.clone(), variable.clone());
            }
        }
        self.charge(bytes)?;
        self.contexts.push(exported);
        Ok(())
    }

    pub(super) fn close(&mut self) {
        if self.contexts.len() > 1 {
            self.contexts.pop();
        }
    }
}

/// The variables of an environment block (`grubenv`), or `None` if it is not one.
pub(super) fn read_block(text: &str) -> Option<Lines<'_>> {
    text.strip_prefix(SIGNATURE).map(Lines)
}

/// The rest of an environment block.
#[derive(Debug)]
pub(super) struct Lines<'a>(&'a str);

impl Iterator for Lines<'_> {
    type Item = (String, String);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            let mut line = String::new();
            let mut chars = self.0.char_indices();
            let mut end = self.0.len();
            while let Some((at, char)) = chars.next() {
                match char {
                    '\\' => line.extend(chars.next().map(|(_, char)| char)),
                    '\n' => {
                        end = at + 1;
                        break;
                    }
                    char => line.push(char),
                }
            }
            self.0 = self.0.get(end..).unwrap_or_default();
            if line.starts_with('#') {
                continue;
            }
            if let Some((name, value)) = line.split_once('=') {
                return Some((name.to_string(), value.to_string()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_hand_down_what_is_exported() {
        let mut env = Environment::new();
        env.set("a", "1").unwrap();
        env.set("b", "2").unwrap();
        env.set("root", "(hd0,gpt1)").unwrap();
        env.export("a").unwrap();
        let text = |text: &str| Some(Value::Text(text.into()));
        let get = |env: &Environment, name| env.get(name).cloned();
        env.open().unwrap();
        assert_eq!((get(&env, "a"), get(&env, "b")), (text("1"), None));
        env.set("a", "3").unwrap();
        env.open().unwrap();
        assert_eq!(get(&env, "a"), text("3"));
        env.close();
        env.close();
        env.close();
        assert_eq!(
            (get(&env, "a"), get(&env, "root")),
            (text("1"), text("hd0,gpt1"))
        );
        env.unset("a");
        assert_eq!(env.get("a"), None);
    }

    #[test]
    fn all_of_it_has_a_bound() {
        let mut env = Environment::new();
        let sets = (0..10_000).take_while(|_| env.set("x", &"y".repeat(1000)).is_ok());
        assert!((500..1050).contains(&sets.count()));
        // Contexts hold copies of the names.
        let mut env = Environment::new();
        for i in 0..100 {
            env.export(&format!("{i}{}", "x".repeat(1000))).unwrap();
        }
        let contexts = (0..10_000).take_while(|_| env.open().is_ok()).count();
        assert!((5..10).contains(&contexts), "{contexts}");
    }

    #[test]
    fn blocks() {
        let text = format!(
            "{SIGNATURE}saved_entry=a>b\nx=y\\\\z\\\nw\n{}",
            "#".repeat(900)
        );
        let expected = [("saved_entry", "a>b"), ("x", "y\\z\nw")];
        let read: Vec<_> = read_block(&text).unwrap().collect();
        assert_eq!(read, expected.map(|(a, b)| (a.to_string(), b.to_string())));
        assert!(read_block("something else").is_none());
        assert_eq!(read_block(SIGNATURE).unwrap().count(), 0);
    }
}
