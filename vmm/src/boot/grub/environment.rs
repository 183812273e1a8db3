//! GRUB's variables, and the environment block that stores some of them on disk.

use std::collections::HashMap;

/// Maximum bytes of all variables together.
const MAX_BYTES: usize = 1 << 20;
/// First line of an environment block.
const SIGNATURE: &str = "# GRUB Environment Block\n";

#[derive(Clone)]
struct Variable {
    value: String,
    exported: bool,
}

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

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.contexts
            .last()?
            .get(name)
            .map(|variable| variable.value.as_str())
    }

    /// Sets `name`. Returns false if there is no room. For `root` the parentheses of a device's
    /// name are removed.
    #[must_use]
    pub(super) fn set(&mut self, name: &str, value: &str) -> bool {
        let value = match value
            .strip_prefix('(')
            .and_then(|value| value.strip_suffix(')'))
        {
            Some(device) if name == "root" => device,
            _ => value,
        };
        let added = name.len() + value.len();
        if self.bytes + added > MAX_BYTES {
            return false;
        }
        // Counted as if nothing were ever replaced: a bound on work, too.
        self.bytes += added;
        if let Some(context) = self.contexts.last_mut() {
            let exported = context.get(name).is_some_and(|variable| variable.exported);
            context.insert(
                name.into(),
                Variable {
                    value: value.into(),
                    exported,
                },
            );
        }
        true
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(context) = self.contexts.last_mut() {
            context.remove(name);
        }
    }

    /// Makes `name` visible in contexts opened later. Returns false if there is no room.
    #[must_use]
    pub(super) fn export(&mut self, name: &str) -> bool {
        if self.bytes + name.len() > MAX_BYTES {
            return false;
        }
        self.bytes += name.len();
        if let Some(context) = self.contexts.last_mut() {
            let unset = Variable {
                value: String::new(),
                exported: true,
            };
            context.entry(name.into()).or_insert(unset).exported = true;
        }
        true
    }

    pub(super) fn open(&mut self) {
        let exported = self.contexts.last().map(|context| {
            let pairs = context.iter().filter(|(_, variable)| variable.exported);
            pairs
                .map(|(name, variable)| (name.clone(), variable.clone()))
                .collect()
        });
        self.contexts.push(exported.unwrap_or_default());
    }

    pub(super) fn close(&mut self) {
        if self.contexts.len() > 1 {
            self.contexts.pop();
        }
    }
}

/// The variables of an environment block (`grubenv`), or `None` if it is not one.
pub(super) fn read_block(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.strip_prefix(SIGNATURE)?;
    let mut variables = Vec::new();
    while !rest.is_empty() {
        let mut line = String::new();
        let mut chars = rest.char_indices();
        let mut end = rest.len();
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
        rest = rest.get(end..).unwrap_or_default();
        if line.starts_with('#') {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            variables.push((name.to_string(), value.to_string()));
        }
    }
    Some(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_hand_down_what_is_exported() {
        let mut env = Environment::new();
        assert!(env.set("a", "1") && env.set("b", "2") && env.set("root", "(hd0,gpt1)"));
        assert!(env.export("a"));
        env.open();
        assert_eq!((env.get("a"), env.get("b")), (Some("1"), None));
        assert!(env.set("a", "3"));
        env.open();
        assert_eq!(env.get("a"), Some("3"));
        env.close();
        env.close();
        env.close();
        assert_eq!(
            (env.get("a"), env.get("root")),
            (Some("1"), Some("hd0,gpt1"))
        );
        env.unset("a");
        assert_eq!(env.get("a"), None);
        while env.set("x", &"y".repeat(1000)) {}
    }

    #[test]
    fn blocks() {
        let text = format!(
            "{SIGNATURE}saved_entry=a>b\nx=y\\\\z\\\nw\n{}",
            "#".repeat(900)
        );
        let expected = [("saved_entry", "a>b"), ("x", "y\\z\nw")];
        let read = read_block(text.as_bytes()).unwrap();
        assert_eq!(read, expected.map(|(a, b)| (a.to_string(), b.to_string())));
        assert_eq!(read_block(b"something else"), None);
        assert_eq!(read_block(SIGNATURE.as_bytes()), Some(Vec::new()));
    }
}
