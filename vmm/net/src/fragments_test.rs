use proptest::prelude::*;

use super::*;
use crate::frame::{Ipv4Header, PROTO_UDP};

const FROM: Ipv4Addr = Ipv4Addr::new(10, 187, 41, 2);
const TO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A fragment of datagram `id`.
fn fragment(id: u16, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header::new(FROM, TO, PROTO_UDP);
    header.id = id;
    header.fragment = (offset / 8) as u16 | if more { MORE_FRAGMENTS } else { 0 };
    let mut packet = vec![0; IPV4];
    packet.extend(payload);
    let total = packet.len();
    header.write(&mut packet, total);
    packet
}

fn give(fragments: &Fragments, packet: &[u8]) -> Option<Vec<u8>> {
    fragments.add(1, &Ipv4::parse(packet).unwrap(), Instant::now())
}

fn held(fragments: &Fragments) -> (usize, usize) {
    let ports = fragments.ports.borrow();
    let all = || ports.values().flatten();
    (all().count(), all().map(|partial| partial.bytes).sum())
}

proptest! {
    #[test]
    fn fragments_in_any_order_make_the_datagram(
        payload in prop::collection::vec(0u8.., 9..6000),
        size in 1usize..200,
        order in any::<u64>(),
    ) {
        let size = size.max(payload.len() / 100 / 8 + 1) * 8;
        let count = payload.len().div_ceil(size);
        prop_assume!(count > 1);
        let mut parts: Vec<_> = payload
            .chunks(size)
            .enumerate()
            .map(|(index, part)| fragment(7, index * size, index + 1 < count, part))
            .collect();
        let len = parts.len();
        let mut state = order;
        for at in (1..len).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            parts.swap(at, (state >> 33) as usize % (at + 1));
        }
        let fragments = Fragments::default();
        // The first comes twice.
        prop_assert!(give(&fragments, &parts[0]).is_none());
        let mut whole = None;
        for part in &parts {
            prop_assert!(whole.is_none());
            whole = give(&fragments, part);
        }
        let whole = whole.unwrap();
        let packet = Ipv4::parse(&whole).unwrap();
        prop_assert!(!packet.fragment && packet.offset == 0);
        prop_assert_eq!(packet.payload, &payload[..]);
        prop_assert_eq!(held(&fragments), (0, 0));
    }

    #[test]
    fn any_fragments_are_held_within_bounds(
        all in prop::collection::vec((0u16..40, 0usize..8192, any::<bool>(), 0usize..1481), 1..300),
    ) {
        let fragments = Fragments::default();
        for (id, offset, more, len) in all {
            if let Some(whole) = give(&fragments, &fragment(id, offset * 8, more, &vec![id as u8; len])) {
                prop_assert!(Ipv4::parse(&whole).is_some());
            }
            let (count, bytes) = held(&fragments);
            prop_assert!(count <= MAX_DATAGRAMS && bytes <= MAX_BYTES);
        }
    }
}

#[test]
fn what_does_not_fit_ends_the_datagram() {
    let first = fragment(1, 0, true, &[1; 16]);
    for bad in [
        // Over the first one.
        fragment(1, 8, true, &[2; 16]),
        fragment(1, 0, true, &[2; 16]),
        fragment(1, 0, true, &[1; 8]),
        // An end before what has come.
        fragment(1, 8, false, &[1; 4]),
    ] {
        let fragments = Fragments::default();
        assert_eq!(give(&fragments, &first), None);
        assert_eq!(give(&fragments, &bad), None);
        assert_eq!(held(&fragments).1, 0, "{bad:?}");
    }
    // Malformed ones are ignored.
    let fragments = Fragments::default();
    assert_eq!(give(&fragments, &first), None);
    assert_eq!(give(&fragments, &fragment(1, 16, true, &[1; 9])), None);
    assert_eq!(
        give(&fragments, &fragment(1, 65528, false, &[1; 100])),
        None
    );
    assert_eq!(give(&fragments, &fragment(1, 16, false, &[])), None);
    assert!(give(&fragments, &fragment(1, 16, false, b"end")).is_some());
}

#[test]
fn what_never_arrives_is_forgotten() {
    let fragments = Fragments::default();
    let now = Instant::now();
    let add = |id, now| {
        let packet = fragment(id, 0, true, &[1; 8]);
        fragments.add(1, &Ipv4::parse(&packet).unwrap(), now)
    };
    assert_eq!(add(1, now), None);
    assert_eq!(add(2, now + PATIENCE), None);
    assert_eq!(held(&fragments), (1, 8));
    fragments.forget(1);
    assert_eq!(held(&fragments), (0, 0));
}

#[test]
fn tiny_fragments_are_bounded() {
    let fragments = Fragments::default();
    for index in 0..1000 {
        let part = fragment(1, 16 * index, true, &[1; 8]);
        assert_eq!(give(&fragments, &part), None);
    }
    assert!(held(&fragments).1 <= MAX_FRAGMENTS * 8);
}
