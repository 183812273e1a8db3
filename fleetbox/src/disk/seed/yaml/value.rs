//! What a document says, as cloud-init sees it.

use std::ops::Index;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{load, number};

/// A value of a cloud-config document, with the type that cloud-init gives it. Its text form is YAML in ASCII.
///
/// ```
/// use fleetbox::seed::{GuestConfig, Yaml};
///
/// let mut config = GuestConfig::default();
/// config.add_user_data("mode: 0644\nready: yes\nwhen: 12:30\nname: y\n")?;
/// let document = &config.user_data[0];
/// assert_eq!(document["mode"], Yaml::Int("420".to_owned())); // octal
/// assert_eq!(document["ready"], Yaml::Bool(true));
/// assert_eq!(document["when"], Yaml::Int("750".to_owned())); // 12 times 60, and 30
/// assert_eq!(document["name"], "y");
/// # Ok::<(), fleetbox::seed::SeedError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Yaml {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// Decimal digits, perhaps after a minus sign. There may be more than fit in any type of Rust.
    Int(String),
    /// A float, in one form for each value.
    Float(String),
    /// A date, or a date and a time, in one form for each value.
    Time(String),
    /// Text.
    Str(String),
    /// What `!!binary` makes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Yaml>),
    /// A mapping.
    Map(Mapping),
    /// What `!!set` makes.
    Set(Vec<Yaml>),
    /// What `!!omap` and `!!pairs` make.
    Pairs(Vec<(Yaml, Yaml)>),
}

impl Yaml {
    /// The text, if it is [`Yaml::Str`].
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A text that is the same for keys that are one key in Python, where `1`, `1.0` and `true` are equal.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Bool(value) => format!("n{}", u8::from(*value)),
            Self::Int(digits) => format!("n{digits}"),
            Self::Float(text) => format!("n{}", text.strip_suffix(".0").unwrap_or(text)),
            Self::Str(text) => format!("s{text}"),
            other => format!("o{other}"),
        }
    }
}

impl PartialEq<&str> for Yaml {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == Some(other)
    }
}

impl From<serde_json::Value> for Yaml {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => match number.as_f64() {
                Some(float) if number.is_f64() => Self::Float(number::float_text(float)),
                _ => Self::Int(number.to_string()),
            },
            Value::String(text) => Self::Str(text),
            Value::Array(values) => Self::List(values.into_iter().map(Self::from).collect()),
            Value::Object(map) => Self::Map(map.into()),
        }
    }
}

/// A mapping of a cloud-config document: keys and values in the order in which they were written. No key occurs twice.
/// Its text form is YAML in ASCII. See [`Yaml`] for an example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping(pub(super) Vec<(Yaml, Yaml)>);

impl Mapping {
    /// True if it has no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys and values.
    pub fn iter(&self) -> impl Iterator<Item = &(Yaml, Yaml)> {
        self.0.iter()
    }

    /// The value of a key that is text.
    pub fn get(&self, key: &str) -> Option<&Yaml> {
        let found = self.0.iter().find(|(k, _)| k.as_str() == Some(key));
        found.map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Yaml> {
        let found = self.0.iter_mut().find(|(k, _)| k.as_str() == Some(key));
        found.map(|(_, value)| value)
    }

    /// Sets a value, and replaces the one that is there.
    pub(crate) fn set(&mut self, key: &str, value: Yaml) {
        match self.get_mut(key) {
            Some(there) => *there = value,
            None => self.0.push((Yaml::Str(key.to_owned()), value)),
        }
    }

    /// The mapping at `key`. It is made if there is no mapping.
    pub(crate) fn mapping(&mut self, key: &str) -> &mut Self {
        let index = match self.0.iter().position(|(k, _)| k.as_str() == Some(key)) {
            Some(index) => index,
            None => {
                self.0.push((Yaml::Str(key.to_owned()), Yaml::Null));
                self.0.len() - 1
            }
        };
        let value = &mut self.0[index].1;
        if !matches!(value, Yaml::Map(_)) {
            *value = Yaml::Map(Self::default());
        }
        match value {
            Yaml::Map(mapping) => mapping,
            _ => unreachable!("a mapping was just put there"),
        }
    }

    pub(crate) fn into_pairs(self) -> impl Iterator<Item = (Yaml, Yaml)> {
        self.0.into_iter()
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Yaml> {
        let index = self.0.iter().position(|(k, _)| k.as_str() == Some(key))?;
        Some(self.0.remove(index).1)
    }

    /// Merges `more` into this: lists are appended, mappings merged, and other values replaced.
    pub(crate) fn merge(&mut self, more: Self) {
        for (key, value) in more.0 {
            let identity = key.identity();
            let there = self.0.iter_mut().find(|(k, _)| k.identity() == identity);
            match (there, value) {
                (Some((_, Yaml::List(there))), Yaml::List(value)) => there.extend(value),
                (Some((_, Yaml::Map(there))), Yaml::Map(value)) => there.merge(value),
                (Some((_, there)), value) => *there = value,
                (None, value) => self.0.push((key, value)),
            }
        }
    }
}

impl From<serde_json::Map<String, serde_json::Value>> for Mapping {
    fn from(map: serde_json::Map<String, serde_json::Value>) -> Self {
        let pairs = map.into_iter();
        Self(
            pairs
                .map(|(key, value)| (Yaml::Str(key), value.into()))
                .collect(),
        )
    }
}

/// The value of a key that is text; [`Yaml::Null`] if it is missing.
impl Index<&str> for Mapping {
    type Output = Yaml;

    fn index(&self, key: &str) -> &Yaml {
        self.get(key).unwrap_or(&Yaml::Null)
    }
}

impl Serialize for Mapping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the text form, and also the JSON that earlier states of the repository recorded.
impl<'de> Deserialize<'de> for Mapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "the recorded user data is neither text nor a mapping"
        )]
        enum Recorded {
            Text(String),
            Json(serde_json::Map<String, serde_json::Value>),
        }
        match Recorded::deserialize(deserializer)? {
            Recorded::Text(text) => match load(&text).map_err(de::Error::custom)? {
                Yaml::Map(mapping) => Ok(mapping),
                _ => Err(de::Error::custom("the recorded user data is not a mapping")),
            },
            Recorded::Json(map) => Ok(map.into()),
        }
    }
}
