//! The syntax tree of a script.

use std::rc::Rc;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::boot::grub) enum Piece {
    /// Literal text. Quoted text makes a word even if it is empty, and is never a keyword.
    Text { text: String, quoted: bool },
    /// A variable's value. If it is not quoted, it is split at white space.
    Variable { name: String, quoted: bool },
}

/// A word, and its first line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::boot::grub) struct Word {
    pub(in crate::boot::grub) pieces: Vec<Piece>,
    pub(in crate::boot::grub) line: u32,
}

impl Word {
    /// The text of a word, if it is one plain piece.
    pub(super) fn plain(&self) -> Option<&str> {
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
pub(in crate::boot::grub) type Block = Rc<[Command]>;

/// One command.
#[derive(Debug)]
pub(in crate::boot::grub) enum Command {
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

/// Why a text is not a valid script.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::boot::grub) struct SyntaxError {
    pub(in crate::boot::grub) line: u32,
    pub(in crate::boot::grub) problem: String,
}
