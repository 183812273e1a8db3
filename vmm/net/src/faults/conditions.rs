//! The ends of links, and the conditions of frames between them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// Maximum latency of a link.
const MAX_LATENCY: Duration = Duration::from_secs(60);

/// An end of a link.
///
/// ```
/// use fleetbox_net::LinkEnd;
///
/// assert_eq!(LinkEnd::from("db"), LinkEnd::Member("db".to_owned()));
/// assert_ne!(LinkEnd::from("gateway"), LinkEnd::Gateway); // a member may be called so
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkEnd {
    /// A member, by its name.
    Member(String),
    /// The gateway, with the host and the outside behind it. Connections through
    /// [`Network::connect`](crate::Network::connect) and
    /// [`Network::forward`](crate::Network::forward) come from here.
    Gateway,
}

impl LinkEnd {
    /// Names are compared as in DNS.
    pub(crate) fn normal(self) -> Self {
        match self {
            Self::Member(name) => Self::Member(name.to_ascii_lowercase()),
            Self::Gateway => Self::Gateway,
        }
    }

    /// The name for the random numbers. It is empty for the gateway, because no member's name is.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Member(name) => name,
            Self::Gateway => "",
        }
    }
}

impl From<&str> for LinkEnd {
    fn from(name: &str) -> Self {
        Self::Member(name.to_owned())
    }
}

impl From<String> for LinkEnd {
    fn from(name: String) -> Self {
        Self::Member(name)
    }
}

/// The conditions of a link, for each direction separately. The default is a link without faults.
///
/// ```
/// use std::time::Duration;
/// use fleetbox_net::LinkConditions;
///
/// let dsl = LinkConditions {
///     latency: Duration::from_millis(15),
///     loss: 0.001,
///     bandwidth: Some(16_000_000),
///     ..LinkConditions::default()
/// };
/// # assert!(!dsl.is_default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkConditions {
    /// How long each frame takes to arrive, at most 60 s. It is always the same, so frames stay in order.
    pub latency: Duration,
    /// The fraction of frames that is lost, from 0 to 1.
    pub loss: f64,
    /// Bits per second, counted over whole Ethernet frames; `None` for no limit.
    pub bandwidth: Option<u64>,
    /// Maximum bytes that wait if `bandwidth` is limited. More are lost, as in any router.
    pub queue: usize,
}

impl Default for LinkConditions {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            loss: 0.0,
            bandwidth: None,
            queue: 256 << 10,
        }
    }
}

impl LinkConditions {
    /// True if the link has no faults.
    pub fn is_default(&self) -> bool {
        self.latency.is_zero() && self.loss == 0.0 && self.bandwidth.is_none()
    }

    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let refuse = |what, value: String, why| Err(NetworkError::Condition { what, value, why });
        if self.latency > MAX_LATENCY {
            let value = format!("{:?}", self.latency);
            return refuse("latency", value, "it must be at most 60 s");
        }
        if !(0.0..=1.0).contains(&self.loss) {
            let why = "it must be between 0 and 1";
            return refuse("loss", self.loss.to_string(), why);
        }
        if self.bandwidth == Some(0) {
            let why = "it must be more than 0; cut the link with a partition";
            return refuse("bandwidth", "0 bit/s".to_owned(), why);
        }
        Ok(())
    }
}

/// The effects of link faults on frames since the network started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultCounts {
    /// Frames that a partition stopped.
    pub cut: u64,
    /// Frames lost by chance.
    pub lost: u64,
    /// Frames lost because too many waited for bandwidth, or too many were under way.
    pub overflowed: u64,
    /// Bytes under way now.
    pub held: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(part: f64) -> LinkConditions {
        LinkConditions {
            loss: part,
            ..LinkConditions::default()
        }
    }

    #[test]
    fn impossible_conditions_are_refused() {
        let good = LinkConditions::default();
        let bad = [
            LinkConditions {
                latency: Duration::from_secs(61),
                ..good
            },
            loss(-0.1),
            loss(1.1),
            loss(f64::NAN),
            LinkConditions {
                bandwidth: Some(0),
                ..good
            },
        ];
        for conditions in bad {
            assert!(conditions.check().is_err(), "{conditions:?}");
        }
        assert!(good.check().is_ok());
        assert!(good.is_default());
        assert!(loss(1.0).check().is_ok());
    }
}
