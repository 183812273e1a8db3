//! The Internet checksum (RFC 1071).

/// The one's complement sum of `data`, in memory byte order, neither folded nor inverted. The sums
/// of several parts may be added if every part except the last has an even length.
///
/// It takes sixteen bytes per step and uses no iterators, so that it is fast even in builds without
/// optimisation.
pub fn sum(data: &[u8]) -> u64 {
    const LOW: u128 = u64::MAX as u128;
    // Halves of 64 bits in 128 leave room for more carries than there is memory.
    let mut sum = 0;
    let (chunks, tail) = data.as_chunks::<16>();
    let mut index = 0;
    while index < chunks.len() {
        let value = u128::from_ne_bytes(chunks[index]);
        sum += (value & LOW) + (value >> 64);
        index += 1;
    }
    let mut rest = [0; 16];
    if let Some(slot) = rest.get_mut(..tail.len()) {
        slot.copy_from_slice(tail);
    }
    let value = u128::from_ne_bytes(rest);
    sum += (value & LOW) + (value >> 64);
    // 2^64 and 2^32 are both 1 modulo 0xffff, so folding keeps the value.
    let folded = (sum & LOW) + (sum >> 64);
    let folded = (folded & LOW) + (folded >> 64);
    let folded = folded as u64;
    (folded & 0xffff_ffff) + (folded >> 32)
}

/// Folds a [`sum`] into the checksum of a packet.
///
/// ```
/// use fleetbox_packet::checksum::{fold, sum};
///
/// // The example of RFC 1071, section 3, whose sum is 0xddf2.
/// let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
/// assert_eq!(fold(sum(&data)), (!0xddf2u16).to_be_bytes());
/// ```
pub fn fold(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_ne_bytes()
}

/// Makes a checksum valid for UDP, where zero means "no checksum" (RFC 768). TCP accepts both forms
/// of zero.
pub fn never_zero(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] {
        [0xff, 0xff]
    } else {
        checksum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_checksum_equals_the_plain_one(data in proptest::collection::vec(0u8.., 0..2000)) {
            let mut plain = 0u32;
            for pair in data.chunks(2) {
                plain += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                plain = (plain & 0xffff) + (plain >> 16);
            }
            assert_eq!(fold(sum(&data)), (!(plain as u16)).to_be_bytes());
        }

        #[test]
        fn sums_of_parts_add_up(data in proptest::collection::vec(0u8.., 0..200), at in 0usize..100) {
            let at = (2 * at).min(data.len() / 2 * 2);
            assert_eq!(fold(sum(&data[..at]) + sum(&data[at..])), fold(sum(&data)));
        }
    }
}
