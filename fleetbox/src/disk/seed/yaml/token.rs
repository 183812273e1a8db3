//! The tokens between scanner and composer.

use super::{Mark, YamlError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) mark: Mark,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// `%YAML 1.1`, with the number before the point.
    VersionDirective(String),
    /// `%TAG ! prefix`.
    TagDirective(String, String),
    OtherDirective,
    DocumentStart,
    DocumentEnd,
    StreamEnd,
    BlockSequenceStart,
    BlockMappingStart,
    BlockEnd,
    FlowSequenceStart,
    FlowSequenceEnd,
    FlowMappingStart,
    FlowMappingEnd,
    FlowEntry,
    BlockEntry,
    Key,
    Value,
    Alias(String),
    Anchor(String),
    /// Handle and suffix. A tag like `!<…>` has no handle.
    Tag(Option<String>, String),
    Scalar {
        text: String,
        plain: bool,
    },
    /// The scanner gave up here. What was read before it may be wrong as well, and is reported first.
    Failed(YamlError),
}

impl Kind {
    /// What a reader of the document sees at this place.
    pub(super) fn seen(&self) -> &'static str {
        match self {
            Self::VersionDirective(_) | Self::TagDirective(..) | Self::OtherDirective => {
                "a directive"
            }
            Self::DocumentStart => "'---'",
            Self::DocumentEnd => "'...'",
            Self::StreamEnd | Self::Failed(_) => "the end of the text",
            Self::BlockSequenceStart | Self::BlockEntry => "a list entry ('-')",
            Self::BlockMappingStart | Self::Key => "a key",
            Self::BlockEnd => "a line with less indentation",
            Self::FlowSequenceStart => "'['",
            Self::FlowSequenceEnd => "']'",
            Self::FlowMappingStart => "'{'",
            Self::FlowMappingEnd => "'}'",
            Self::FlowEntry => "','",
            Self::Value => "':'",
            Self::Alias(_) => "an alias ('*')",
            Self::Anchor(_) => "an anchor ('&')",
            Self::Tag(..) => "a tag ('!')",
            Self::Scalar { .. } => "text",
        }
    }
}
