//! How soon a guest that has reset its machine runs again.

use std::time::Duration;

/// A boot that ends sooner than this is quick: the guest did not come far.
const QUICK: Duration = Duration::from_secs(10);
/// So many quick boots in a row are followed by the next at once.
const FREE: u32 = 5;
/// How long the first one after those waits. The time doubles with each.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest time between two boots.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// After so many quick boots in a row the machine is given up.
const LIMIT: u32 = 32;

/// Counts the boots that ended soon by a reset.
#[derive(Debug, Default)]
pub(super) struct Resets {
    quick: u32,
}

/// What follows a reset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next boot, after this time.
    Boot(Duration),
    /// The machine's end. The text says why.
    GiveUp(String),
}

impl Resets {
    /// What follows a boot that took `time` from its start to its reset.
    pub(super) fn after(&mut self, time: Duration) -> Next {
        if time >= QUICK {
            self.quick = 0;
            return Next::Boot(Duration::ZERO);
        }
        self.quick += 1;
        if self.quick >= LIMIT {
            return Next::GiveUp(format!(
                "it has reset the machine {LIMIT} times in a row, each time within {} seconds of its start",
                QUICK.as_secs()
            ));
        }
        let delay = match self.quick.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_DELAY
                .checked_mul(1 << doublings.min(16))
                .map_or(LONGEST_DELAY, |delay| delay.min(LONGEST_DELAY)),
        };
        Next::Boot(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(resets: &mut Resets) -> Vec<Duration> {
        std::iter::from_fn(|| match resets.after(Duration::from_millis(5)) {
            Next::Boot(delay) => Some(delay),
            Next::GiveUp(_) => None,
        })
        .collect()
    }

    #[test]
    fn quick_resets_wait_longer_and_longer_and_come_to_an_end() {
        let delays = delays(&mut Resets::default());
        assert_eq!(delays.len(), 31);
        assert_eq!(delays[..5], [Duration::ZERO; 5]);
        assert_eq!(delays[5], Duration::from_millis(100));
        assert_eq!(delays[6], Duration::from_millis(200));
        assert_eq!(delays[30], Duration::from_secs(10));
        assert!(delays.is_sorted());
    }

    #[test]
    fn a_boot_that_lasts_starts_the_count_again() {
        let mut resets = Resets::default();
        for _ in 0..1000 {
            for _ in 0..20 {
                assert!(matches!(resets.after(Duration::ZERO), Next::Boot(_)));
            }
            assert_eq!(resets.after(QUICK), Next::Boot(Duration::ZERO));
        }
    }
}
