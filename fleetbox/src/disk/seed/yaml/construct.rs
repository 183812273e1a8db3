//! From nodes to values: types, merged mappings, and limits.

use std::collections::HashMap;
use std::rc::Rc;

use super::node::{Content, Node, Pair, Tag};
use super::scan::too_deep;
use super::value::{Mapping, Yaml};
use super::{DEPTH, YamlError, base64, number, resolve};

/// Maximum values of a document, and maximum bytes of their text. With aliases, ten lines can stand for more than a
/// computer can hold.
const VALUES: usize = 1 << 18;
const BYTES: usize = 16 << 20;

/// The value of a document.
///
/// # Errors
/// A value does not fit its type, a key is a list or a mapping or occurs twice, or it becomes too large.
pub(super) fn value(root: &Node) -> Result<Yaml, YamlError> {
    let mut constructor = Constructor {
        values: VALUES,
        bytes: BYTES,
    };
    constructor.value(root, 0)
}

/// What is left of the limits.
struct Constructor {
    values: usize,
    bytes: usize,
}

impl Constructor {
    fn take(&mut self, node: &Node) -> Result<(), YamlError> {
        let length = match &node.content {
            Content::Scalar(text) => text.len(),
            _ => 0,
        };
        let left = (self.values.checked_sub(1), self.bytes.checked_sub(length));
        let (Some(values), Some(bytes)) = left else {
            return Err(node
                .mark
                .wrong(format!(
                    "with its aliases, the document is larger than 16 MiB or has more than {VALUES} values"
                )));
        };
        (self.values, self.bytes) = (values, bytes);
        Ok(())
    }

    fn value(&mut self, node: &Node, depth: usize) -> Result<Yaml, YamlError> {
        self.take(node)?;
        if depth > DEPTH {
            return Err(too_deep(node.mark));
        }
        let depth = depth + 1;
        match (&node.tag, &node.content) {
            (Tag::Other(tag), _) => Err(node.mark.wrong(format!(
                "cloud-init does not know the tag {tag:?}; if it is text, put it in quotes"
            ))),
            (Tag::Merge | Tag::Value, _) => Err(node
                .mark
                .wrong("a lone '=' or '<<' has a meaning of its own in YAML; put it in quotes")),
            (Tag::Seq, Content::Sequence(nodes)) => {
                let values = nodes.iter().map(|node| self.value(node, depth));
                values.collect::<Result<_, _>>().map(Yaml::List)
            }
            (Tag::Map, Content::Mapping(pairs)) => self.mapping(pairs, depth).map(Yaml::Map),
            (Tag::Set, Content::Mapping(pairs)) => {
                let keys = self.mapping(pairs, depth)?.0;
                Ok(Yaml::Set(keys.into_iter().map(|(key, _)| key).collect()))
            }
            (Tag::Omap | Tag::Pairs, Content::Sequence(nodes)) => {
                let pairs = nodes.iter().map(|node| self.pair(node, depth));
                pairs.collect::<Result<_, _>>().map(Yaml::Pairs)
            }
            (tag, Content::Scalar(text)) => scalar(tag, text).map_err(|why| node.mark.wrong(why)),
            _ => Err(node
                .mark
                .wrong("its tag (the word with '!') does not fit a list or a mapping")),
        }
    }

    /// One entry of an ordered map.
    fn pair(&mut self, node: &Node, depth: usize) -> Result<(Yaml, Yaml), YamlError> {
        match &node.content {
            Content::Mapping(pairs) if pairs.len() == 1 => {
                let (key, value) = &pairs[0];
                Ok((self.value(key, depth)?, self.value(value, depth)?))
            }
            _ => Err(node
                .mark
                .wrong("an entry of an ordered map is one `key: value`")),
        }
    }

    fn mapping(&mut self, pairs: &[Pair], depth: usize) -> Result<Mapping, YamlError> {
        let mut mapping = Mapping::default();
        let mut places = HashMap::new();
        for (key, value) in self.merged(pairs, depth)? {
            self.entry(&mut mapping, &mut places, &key, &value, depth)?;
        }
        let mut lines = HashMap::new();
        for (key, value) in pairs.iter().filter(|(key, _)| key.tag != Tag::Merge) {
            let identity = self.entry(&mut mapping, &mut places, key, value, depth)?;
            if let Some(line) = lines.insert(identity, key.mark.line + 1) {
                return Err(key.mark.wrong(format!(
                    "this key is in line {line} too, and cloud-init would use the last one only; \
                     put both under one key"
                )));
            }
        }
        Ok(mapping)
    }

    /// Adds an entry, or replaces the one of the same key. Returns what the key is told by.
    fn entry(
        &mut self,
        mapping: &mut Mapping,
        places: &mut HashMap<String, usize>,
        key_node: &Node,
        value: &Node,
        depth: usize,
    ) -> Result<String, YamlError> {
        let key = match (&key_node.tag, &key_node.content) {
            // `=` is an ordinary key.
            (Tag::Value, Content::Scalar(text)) => Yaml::Str(text.clone()),
            _ => self.value(key_node, depth)?,
        };
        if matches!(
            key,
            Yaml::List(_) | Yaml::Map(_) | Yaml::Set(_) | Yaml::Pairs(_)
        ) {
            return Err(key_node
                .mark
                .wrong("a key is a list or a mapping; if it is a template, put it in quotes"));
        }
        let value = self.value(value, depth)?;
        let identity = key.identity();
        match places.get(&identity) {
            Some(place) => mapping.0[*place].1 = value,
            None => {
                places.insert(identity.clone(), mapping.0.len());
                mapping.0.push((key, value));
            }
        }
        Ok(identity)
    }

    /// What the merge keys (`<<`) of a mapping bring, in the order in which it applies: what comes later wins.
    fn merged(&mut self, pairs: &[Pair], depth: usize) -> Result<Vec<Pair>, YamlError> {
        let mut merged = Vec::new();
        for (_, value) in pairs.iter().filter(|(key, _)| key.tag == Tag::Merge) {
            match &value.content {
                Content::Mapping(_) => merged.extend(self.flattened(value, depth)?),
                // The first of several mappings wins.
                Content::Sequence(nodes) => {
                    for node in nodes.iter().rev() {
                        merged.extend(self.flattened(node, depth)?);
                    }
                }
                Content::Scalar(_) => {
                    return Err(value
                        .mark
                        .wrong("'<<' needs a mapping, or a list of mappings"));
                }
            }
        }
        Ok(merged)
    }

    /// The entries of a mapping after its own merge keys.
    fn flattened(&mut self, node: &Node, depth: usize) -> Result<Vec<Pair>, YamlError> {
        let Content::Mapping(pairs) = &node.content else {
            return Err(node
                .mark
                .wrong("'<<' needs a mapping, or a list of mappings"));
        };
        if depth > DEPTH {
            return Err(too_deep(node.mark));
        }
        let mut all = self.merged(pairs, depth + 1)?;
        for (key, value) in pairs.iter().filter(|(key, _)| key.tag != Tag::Merge) {
            all.push((Rc::clone(key), Rc::clone(value)));
        }
        for (key, _) in &all {
            self.take(key)?;
        }
        Ok(all)
    }
}

fn scalar(tag: &Tag, text: &str) -> Result<Yaml, String> {
    let value = match tag {
        Tag::Null => Ok(Yaml::Null),
        Tag::Str => Ok(Yaml::Str(text.to_owned())),
        Tag::Bool => resolve::boolean(text)
            .map(Yaml::Bool)
            .ok_or("this is neither true nor false"),
        Tag::Int if resolve::is_int(resolve::bare(text)) => {
            number::int(resolve::bare(text)).map(Yaml::Int)
        }
        Tag::Int => Err("this is not an integer"),
        Tag::Float => number::float(resolve::bare(text)).map(Yaml::Float),
        Tag::Timestamp => resolve::time(resolve::bare(text)).map(Yaml::Time),
        Tag::Binary => base64::decode(text).map(Yaml::Bytes),
        _ => Err("its tag (the word with '!') does not fit text"),
    };
    value.map_err(str::to_owned)
}
