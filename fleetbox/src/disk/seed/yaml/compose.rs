//! From tokens to nodes.

use std::collections::HashMap;
use std::iter::Peekable;
use std::rc::Rc;
use std::vec::IntoIter;

use super::node::{Content, Node, Pair, Tag, default_prefix};
use super::scan::too_deep;
use super::token::{Kind, Token};
use super::{DEPTH, Mark, YamlError, resolve};

/// Composes the only document. None if the text has no document.
///
/// # Errors
/// The tokens are no document, or several.
pub(super) fn document(tokens: Vec<Token>) -> Result<Option<Rc<Node>>, YamlError> {
    let mut composer = Composer {
        tokens: tokens.into_iter().peekable(),
        handles: HashMap::new(),
        anchors: HashMap::new(),
        depth: 0,
        end: Mark { line: 0, column: 0 },
    };
    let marked = matches!(
        composer.kind(),
        Kind::VersionDirective(_)
            | Kind::TagDirective(..)
            | Kind::OtherDirective
            | Kind::DocumentStart
    );
    let root = if *composer.kind() == Kind::StreamEnd {
        return Ok(None);
    } else if marked {
        composer.directives()?;
        if *composer.kind() != Kind::DocumentStart {
            return Err(composer.unexpected("'---' must follow the directives"));
        }
        let start = composer.next();
        match composer.kind() {
            Kind::VersionDirective(_)
            | Kind::TagDirective(..)
            | Kind::OtherDirective
            | Kind::DocumentStart
            | Kind::DocumentEnd
            | Kind::StreamEnd => empty(start.mark),
            _ => composer.node(true, false)?,
        }
    } else {
        composer.node(true, false)?
    };
    while *composer.kind() == Kind::DocumentEnd {
        composer.next();
    }
    match composer.kind() {
        Kind::StreamEnd => Ok(Some(root)),
        Kind::DocumentStart
        | Kind::VersionDirective(_)
        | Kind::TagDirective(..)
        | Kind::OtherDirective => Err(composer
            .mark()
            .wrong("a second document begins here; pass each as user data of its own")),
        _ => Err(composer.unexpected("the document ended before it; check the indentation")),
    }
}

struct Composer {
    tokens: Peekable<IntoIter<Token>>,
    /// Prefixes of tags, by their handles.
    handles: HashMap<String, String>,
    /// The anchors so far. One without a node is being composed.
    anchors: HashMap<String, Option<Rc<Node>>>,
    depth: usize,
    end: Mark,
}

/// What belongs to a node and is written before it.
struct Properties {
    anchor: Option<String>,
    /// None also for the tag `!`, which `resolved` tells from no tag.
    tag: Option<Tag>,
    /// The tag is `!`: text has the type that it looks like, even in quotes.
    resolved: bool,
    mark: Mark,
}

impl Composer {
    fn kind(&mut self) -> &Kind {
        self.tokens
            .peek()
            .map_or(&Kind::StreamEnd, |token| &token.kind)
    }

    fn mark(&mut self) -> Mark {
        self.tokens.peek().map_or(self.end, |token| token.mark)
    }

    fn next(&mut self) -> Token {
        let token = self.tokens.next().unwrap_or(Token {
            kind: Kind::StreamEnd,
            mark: self.end,
        });
        self.end = token.mark;
        token
    }

    fn at(&mut self, kinds: &[Kind]) -> bool {
        kinds.contains(self.kind())
    }

    /// What is wrong with the next token. What the scanner gave up on is wrong by itself.
    fn unexpected(&mut self, why: &str) -> YamlError {
        let mark = self.mark();
        match self.kind() {
            Kind::Failed(error) => error.clone(),
            kind => mark.wrong(format!("found {}: {why}", kind.seen())),
        }
    }

    fn directives(&mut self) -> Result<(), YamlError> {
        let mut version = false;
        loop {
            let mark = self.mark();
            match self.kind().clone() {
                Kind::VersionDirective(major) => {
                    if version {
                        return Err(mark.wrong("the version of YAML is given twice"));
                    }
                    if major.trim_start_matches('0') != "1" {
                        return Err(mark.wrong("cloud-init reads YAML of version 1 only"));
                    }
                    version = true;
                }
                Kind::TagDirective(handle, prefix) => {
                    if self.handles.insert(handle, prefix).is_some() {
                        return Err(mark.wrong("this tag's handle is declared twice"));
                    }
                }
                Kind::OtherDirective => {}
                _ => return Ok(()),
            }
            self.next();
        }
    }

    /// A node. `block` allows block collections, `flat` also lists that are indented like the key before them.
    fn node(&mut self, block: bool, flat: bool) -> Result<Rc<Node>, YamlError> {
        let mark = self.mark();
        if let Kind::Alias(name) = self.kind() {
            let name = name.clone();
            self.next();
            return self.alias(&name, mark);
        }
        let properties = self.properties()?;
        if let Some(name) = &properties.anchor
            && self.anchors.insert(name.clone(), None).is_some()
        {
            return Err(mark.wrong(format!("the anchor &{name} is defined twice")));
        }
        let anchor = properties.anchor.clone();
        let node = Rc::new(self.content(properties, block, flat)?);
        if let Some(name) = anchor {
            self.anchors.insert(name, Some(Rc::clone(&node)));
        }
        Ok(node)
    }

    fn alias(&self, name: &str, mark: Mark) -> Result<Rc<Node>, YamlError> {
        match self.anchors.get(name) {
            Some(Some(node)) => Ok(Rc::clone(node)),
            Some(None) => Err(mark.wrong(format!("*{name} refers to what it is a part of"))),
            None => Err(mark.wrong(format!(
                "there is no anchor &{name} before this alias; if it is text, put it in quotes"
            ))),
        }
    }

    /// An anchor and a tag, in either order.
    fn properties(&mut self) -> Result<Properties, YamlError> {
        let mut found = Properties {
            anchor: None,
            tag: None,
            resolved: false,
            mark: self.mark(),
        };
        let mut tagged = false;
        loop {
            let mark = self.mark();
            match self.kind().clone() {
                Kind::Anchor(name) if found.anchor.is_none() => found.anchor = Some(name),
                Kind::Tag(handle, suffix) if !tagged => {
                    tagged = true;
                    let full = self.full_tag(handle, suffix, mark)?;
                    found.resolved = full == "!";
                    found.tag = Some(Tag::new(full)).filter(|_| !found.resolved);
                }
                _ => return Ok(found),
            }
            self.next();
        }
    }

    fn full_tag(
        &self,
        handle: Option<String>,
        suffix: String,
        mark: Mark,
    ) -> Result<String, YamlError> {
        let Some(handle) = handle else {
            return Ok(suffix);
        };
        let declared = self.handles.get(&handle).map(String::as_str);
        match declared.or_else(|| default_prefix(&handle)) {
            Some(prefix) => Ok(format!("{prefix}{suffix}")),
            None => Err(mark.wrong(format!("the tag's handle {handle} is not declared"))),
        }
    }

    fn content(
        &mut self,
        properties: Properties,
        block: bool,
        flat: bool,
    ) -> Result<Node, YamlError> {
        let Properties {
            anchor,
            tag,
            resolved,
            mark,
        } = properties;
        if let Kind::Scalar { .. } = self.kind() {
            let Kind::Scalar { text, plain } = self.next().kind else {
                return Err(self.unexpected("text was expected"));
            };
            let tag = match tag {
                Some(tag) => tag,
                None if plain || resolved => resolve::tag(&text),
                None => Tag::Str,
            };
            return Ok(Node {
                tag,
                content: Content::Scalar(text),
                mark,
            });
        }
        let compose = match self.kind() {
            Kind::BlockEntry if flat => Self::flat_sequence,
            Kind::FlowSequenceStart => Self::flow_sequence,
            Kind::FlowMappingStart => Self::flow_mapping,
            Kind::BlockSequenceStart if block => Self::block_sequence,
            Kind::BlockMappingStart if block => Self::block_mapping,
            Kind::Failed(error) => return Err(error.clone()),
            _ if anchor.is_some() || tag.is_some() || resolved => {
                return Ok(Node {
                    tag: tag.unwrap_or(Tag::Null),
                    content: Content::Scalar(String::new()),
                    mark,
                });
            }
            _ => return Err(self.unexpected("a value was expected")),
        };
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(too_deep(mark));
        }
        let content = compose(self)?;
        self.depth -= 1;
        let usual = if matches!(content, Content::Mapping(_)) {
            Tag::Map
        } else {
            Tag::Seq
        };
        Ok(Node {
            tag: tag.unwrap_or(usual),
            content,
            mark,
        })
    }

    /// A node, or nothing before one of `ends`.
    fn node_or_empty(
        &mut self,
        ends: &[Kind],
        block: bool,
        flat: bool,
    ) -> Result<Rc<Node>, YamlError> {
        if self.at(ends) {
            return Ok(empty(self.end));
        }
        self.node(block, flat)
    }

    fn block_sequence(&mut self) -> Result<Content, YamlError> {
        self.next();
        let mut nodes = Vec::new();
        while self.at(&[Kind::BlockEntry]) {
            self.next();
            nodes.push(self.node_or_empty(&[Kind::BlockEntry, Kind::BlockEnd], true, false)?);
        }
        if !self.at(&[Kind::BlockEnd]) {
            return Err(self.unexpected(
                "the list's next entry ('-') was expected; check the indentation and the quotes",
            ));
        }
        self.next();
        Ok(Content::Sequence(nodes))
    }

    fn flat_sequence(&mut self) -> Result<Content, YamlError> {
        let mut nodes = Vec::new();
        while self.at(&[Kind::BlockEntry]) {
            self.next();
            let ends = [Kind::BlockEntry, Kind::Key, Kind::Value, Kind::BlockEnd];
            nodes.push(self.node_or_empty(&ends, true, false)?);
        }
        Ok(Content::Sequence(nodes))
    }

    fn block_mapping(&mut self) -> Result<Content, YamlError> {
        self.next();
        let ends = [Kind::Key, Kind::Value, Kind::BlockEnd];
        let mut pairs = Vec::new();
        while self.at(&[Kind::Key]) {
            self.next();
            let key = self.node_or_empty(&ends, true, true)?;
            let value = if self.at(&[Kind::Value]) {
                self.next();
                self.node_or_empty(&ends, true, true)?
            } else {
                empty(self.end)
            };
            pairs.push((key, value));
        }
        if !self.at(&[Kind::BlockEnd]) {
            return Err(self.unexpected(
                "the mapping's next key was expected; check the indentation and the quotes",
            ));
        }
        self.next();
        Ok(Content::Mapping(pairs))
    }

    /// Takes the comma between two entries.
    fn comma(&mut self, first: bool, end: &str) -> Result<(), YamlError> {
        if first {
            return Ok(());
        }
        if !self.at(&[Kind::FlowEntry]) {
            return Err(self.unexpected(&format!("',' or '{end}' was expected")));
        }
        self.next();
        Ok(())
    }

    fn flow_sequence(&mut self) -> Result<Content, YamlError> {
        self.next();
        let end = Kind::FlowSequenceEnd;
        let mut nodes = Vec::new();
        while *self.kind() != end {
            self.comma(nodes.is_empty(), "]")?;
            if self.at(&[Kind::Key]) {
                let mark = self.mark();
                let pair = self.flow_pair(&end)?;
                nodes.push(Rc::new(Node {
                    tag: Tag::Map,
                    content: Content::Mapping(vec![pair]),
                    mark,
                }));
            } else if *self.kind() != end {
                nodes.push(self.node(false, false)?);
            }
        }
        self.next();
        Ok(Content::Sequence(nodes))
    }

    fn flow_mapping(&mut self) -> Result<Content, YamlError> {
        self.next();
        let end = Kind::FlowMappingEnd;
        let mut pairs = Vec::new();
        while *self.kind() != end {
            self.comma(pairs.is_empty(), "}")?;
            if self.at(&[Kind::Key]) {
                pairs.push(self.flow_pair(&end)?);
            } else if *self.kind() != end {
                let key = self.node(false, false)?;
                pairs.push((key, empty(self.end)));
            }
        }
        self.next();
        Ok(Content::Mapping(pairs))
    }

    /// A key and what follows it, in brackets that end with `end`.
    fn flow_pair(&mut self, end: &Kind) -> Result<Pair, YamlError> {
        self.next();
        let ends = [Kind::Value, Kind::FlowEntry, end.clone()];
        let key = self.node_or_empty(&ends, false, false)?;
        if !self.at(&[Kind::Value]) {
            return Ok((key, empty(self.end)));
        }
        self.next();
        let value = self.node_or_empty(&ends[1..], false, false)?;
        Ok((key, value))
    }
}

/// A value that is left out.
fn empty(mark: Mark) -> Rc<Node> {
    Rc::new(Node {
        tag: Tag::Null,
        content: Content::Scalar(String::new()),
        mark,
    })
}
