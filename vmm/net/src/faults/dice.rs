//! Random losses that are the same in each run.

use std::cell::Cell;

/// Random numbers for one direction of a link. The n-th is the same in each run with the same seed
/// and the same names.
#[derive(Debug)]
pub(crate) struct Dice {
    key: u64,
    next: Cell<u64>,
}

impl Dice {
    pub(crate) fn new(seed: u64, from: &str, to: &str) -> Self {
        // FNV-1a: unlike the standard library's hashes the same in every version. No name holds
        // a zero byte.
        let bytes = from.bytes().chain([0]).chain(to.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self {
            key: mix(seed ^ mix(hash)),
            next: Cell::new(0),
        }
    }

    /// The next number, at least 0 and below 1.
    pub(crate) fn roll(&self) -> f64 {
        let index = self.next.get();
        self.next.set(index.wrapping_add(1));
        let bits = mix(self.key.wrapping_add(index.wrapping_mul(STEP)));
        // The 53 bits of a double's fraction.
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The increment of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(STEP);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dice_are_the_same_everywhere() {
        let rolls = |seed, from, to| {
            let dice = Dice::new(seed, from, to);
            std::iter::repeat_with(move || (dice.roll() * 1000.0) as u32)
                .take(5)
                .collect::<Vec<_>>()
        };
        // Other numbers would change the outcome of users' tests.
        assert_eq!(rolls(1, "a", "b"), EXPECTED);
        assert_ne!(rolls(1, "b", "a"), EXPECTED);
        assert_ne!(rolls(2, "a", "b"), EXPECTED);
        assert_ne!(rolls(1, "ab", ""), rolls(1, "a", "b"));
    }
    const EXPECTED: [u32; 5] = [698, 959, 350, 911, 421];

    proptest! {
        #[test]
        fn losses_are_as_frequent_as_asked(seed: u64, percent in 0u32..=100) {
            let loss = f64::from(percent) / 100.0;
            let dice = Dice::new(seed, "node-1", "node-2");
            let lost = (0..10_000).filter(|_| dice.roll() < loss).count() as f64 / 10_000.0;
            // Five standard deviations of the worst case.
            prop_assert!((lost - loss).abs() <= 0.025, "{lost} of {loss}");
        }
    }
}
