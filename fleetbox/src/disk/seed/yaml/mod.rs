//! YAML as cloud-init reads it: version 1.1, by the rules of PyYAML's `SafeLoader`.
//!
//! Libraries read YAML 1.2, or 1.1 with other limits, and in most documents the difference does not show. In the others a
//! value would mean one thing on the host and another in the guest, or a guest could not read its seed at all and would
//! have no user. So this module follows PyYAML's rules, with its limits, from the characters to the types. A test
//! compares the two on many documents.
//!
//! [`load`] refuses what PyYAML refuses, and also what no guest could use: keys that occur twice, anchors that contain
//! themselves, characters that are no Unicode text, and documents that grow too large.

mod base64;
mod compose;
mod construct;
#[cfg(test)]
mod corpus_test;
mod emit;
mod node;
mod number;
mod resolve;
mod scalars;
mod scan;
mod tags;
mod token;
mod value;

#[cfg(test)]
mod oracle_test;
#[cfg(test)]
mod yaml_test;

pub use self::value::{Mapping, Yaml};
use crate::util::readable::readable_debug;

/// How deep lists and mappings may be nested. PyYAML itself gives up at a few hundred.
const DEPTH: usize = 100;

/// Why a text is not a document that cloud-init can read.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {why}")]
pub(super) struct YamlError {
    /// Line, from 1.
    line: usize,
    /// Column in characters, from 1.
    column: usize,
    why: String,
}

readable_debug!(YamlError);

/// A place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// Lines before it.
    line: usize,
    /// Characters before it in its line.
    column: usize,
}

impl Mark {
    fn wrong(self, why: impl Into<String>) -> YamlError {
        YamlError {
            line: self.line + 1,
            column: self.column + 1,
            why: why.into(),
        }
    }
}

/// Reads a text that has one document. A text without one is [`Yaml::Null`].
///
/// # Errors
/// The text is not YAML 1.1 as PyYAML reads it, or a guest could not use what it says.
pub(super) fn load(text: &str) -> Result<Yaml, YamlError> {
    let tokens = scan::tokens(text)?;
    match compose::document(tokens)? {
        Some(root) => construct::value(&root),
        None => Ok(Yaml::Null),
    }
}
