//! The rooms of a package and their order, from docs/ARCHITECTURE.md: a fenced block whose first line is `rooms DIR`,
//! and whose other lines list rooms from the top down. A room is the path of a module below DIR, without `.rs`. It
//! includes everything below that path, except modules that belong to a longer room name. A room may import rooms on
//! lines below its own.

use crate::bail;
use crate::error::{Error, Result};

/// A fenced block of a document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block<'a> {
    /// The text after the block's kind on its first line.
    pub(super) argument: &'a str,
    pub(super) lines: Vec<&'a str>,
}

/// The fenced blocks of one kind.
pub(super) fn blocks<'a>(text: &'a str, kind: &str) -> Result<Vec<Block<'a>>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let mut inside = Vec::new();
        loop {
            match lines.next() {
                Some("```") => break,
                Some(line) => inside.push(line),
                None => bail!("the block `{line}` is not closed"),
            }
        }
        let (word, argument) = info.split_once(' ').unwrap_or((info, ""));
        if word == kind {
            blocks.push(Block {
                argument: argument.trim(),
                lines: inside,
            });
        }
    }
    Ok(blocks)
}

/// The rooms below one directory.
#[derive(Debug)]
pub(super) struct Rooms {
    /// The directory of the sources, relative to the workspace.
    pub(super) dir: String,
    /// Each room with its line, counted from the top of the block.
    rooms: Vec<Room>,
}

/// A room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Such as `x86_64/kernel`.
    pub(super) name: String,
    /// Its line, counted from the top of the block.
    pub(super) line: usize,
}

impl Rooms {
    pub(super) fn parse(block: &Block<'_>) -> Result<Self> {
        if block.argument.is_empty() {
            bail!("a block of rooms names no directory");
        }
        let mut rooms: Vec<Room> = Vec::new();
        for (line, names) in block.lines.iter().enumerate() {
            for name in names.split_whitespace() {
                if rooms.iter().any(|room| room.name == name) {
                    bail!("the rooms of {} list `{name}` twice", block.argument);
                }
                rooms.push(Room {
                    name: name.to_owned(),
                    line,
                });
            }
        }
        Ok(Self {
            dir: block.argument.to_owned(),
            rooms,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Room> {
        self.rooms.iter()
    }

    /// The room with the longest name that contains the module whose file is at `key`.
    pub(super) fn of(&self, key: &str) -> Result<&Room> {
        self.rooms
            .iter()
            .filter(|room| room.holds(key))
            .max_by_key(|room| room.name.len())
            .ok_or_else(|| {
                Error::new(format!(
                    "{}/{key}.rs belongs to no room of docs/ARCHITECTURE.md",
                    self.dir
                ))
            })
    }
}

impl Room {
    pub(super) fn holds(&self, key: &str) -> bool {
        key.strip_prefix(&self.name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_their_kind() {
        let text = "a\n```rooms a/src\nlib\none two\n```\n```\nrooms\n```\n```rooms b/src\n```\n";
        let blocks = blocks(text, "rooms").unwrap();
        assert_eq!(blocks.len(), 2);
        assert_eq!(blocks[0].argument, "a/src");
        assert_eq!(blocks[0].lines, ["lib", "one two"]);
        assert!(super::blocks("```rooms a\nlib\n", "rooms").is_err());
    }

    #[test]
    fn the_longest_name_claims_a_module() {
        let block = Block {
            argument: "src",
            lines: vec!["lib", "vm ssh", "vm/list"],
        };
        let rooms = Rooms::parse(&block).unwrap();
        assert_eq!(rooms.of("vm/start").unwrap().name, "vm");
        assert_eq!(rooms.of("vm/list").unwrap().name, "vm/list");
        assert_eq!(rooms.of("vm/list/inner").unwrap().name, "vm/list");
        assert_eq!(rooms.of("ssh").unwrap().line, 1);
        let error = rooms.of("vmm").unwrap_err().to_string();
        assert!(error.contains("src/vmm.rs belongs to no room"), "{error}");
    }

    #[test]
    fn a_room_has_one_line() {
        let block = Block {
            argument: "src",
            lines: vec!["lib", "lib"],
        };
        assert!(Rooms::parse(&block).is_err());
    }
}
