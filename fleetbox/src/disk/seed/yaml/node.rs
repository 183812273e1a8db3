//! The nodes of a document: what is written, with the type of each value but before it is read.

use std::rc::Rc;

use super::Mark;

/// The prefix of the tags that YAML itself has.
const PREFIX: &str = "tag:yaml.org,2002:";

#[derive(Debug)]
pub(super) struct Node {
    pub(super) tag: Tag,
    pub(super) content: Content,
    pub(super) mark: Mark,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar(String),
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<Pair>),
}

/// A key and its value. An alias refers to the anchor's node.
pub(super) type Pair = (Rc<Node>, Rc<Node>);

/// The type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tag {
    Null,
    Bool,
    Int,
    Float,
    Binary,
    Timestamp,
    Omap,
    Pairs,
    Set,
    Str,
    Seq,
    Map,
    /// The key `<<`.
    Merge,
    /// The key `=`.
    Value,
    /// A type that cloud-init cannot read.
    Other(String),
}

impl Tag {
    pub(super) fn new(full: String) -> Self {
        match full.strip_prefix(PREFIX) {
            Some("null") => Self::Null,
            Some("bool") => Self::Bool,
            Some("int") => Self::Int,
            Some("float") => Self::Float,
            Some("binary") => Self::Binary,
            Some("timestamp") => Self::Timestamp,
            Some("omap") => Self::Omap,
            Some("pairs") => Self::Pairs,
            Some("set") => Self::Set,
            // cloud-init adds python/unicode.
            Some("str" | "python/unicode") => Self::Str,
            Some("seq") => Self::Seq,
            Some("map") => Self::Map,
            Some("merge") => Self::Merge,
            Some("value") => Self::Value,
            _ => Self::Other(full),
        }
    }
}

/// The prefix that a handle stands for unless a directive says otherwise.
pub(super) fn default_prefix(handle: &str) -> Option<&'static str> {
    match handle {
        "!" => Some("!"),
        "!!" => Some(PREFIX),
        _ => None,
    }
}
