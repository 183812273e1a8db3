use std::time::Duration;

use super::*;

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;

fn three() -> Faults {
    let faults = Faults::default();
    for (id, name) in [(A, "a"), (B, "B"), (C, "c")] {
        faults.join(id, name.into());
    }
    faults
}

fn set(names: &[&str]) -> BTreeSet<LinkEnd> {
    names.iter().map(|name| LinkEnd::from(*name)).collect()
}

fn loss(part: f64) -> LinkConditions {
    LinkConditions {
        loss: part,
        ..LinkConditions::default()
    }
}

#[test]
fn a_partition_is_between_its_sets_only() {
    let faults = three();
    assert!(faults.path(A, B).is_none());
    faults.partition(set(&["a"]), set(&["b", "c"]));
    for (from, to) in [(A, B), (B, A), (A, C), (C, A)] {
        let path = faults.path(from, to).unwrap();
        assert_eq!(faults.send(&path, b"frame"), Fate::Cut);
    }
    for (from, to) in [(B, C), (C, B), (A, GATEWAY), (GATEWAY, A)] {
        assert!(faults.path(from, to).is_none());
    }
    assert_eq!(faults.counts().cut, 4);
    faults.leave(A);
    faults.join(7, "A".into());
    assert!(faults.path(7, B).is_some(), "names are what counts");
    faults.heal();
    assert!(faults.path(7, B).is_none());

    faults.partition(set(&["c"]), BTreeSet::from([LinkEnd::Gateway]));
    assert!(faults.path(GATEWAY, C).unwrap().cut);
    assert!(faults.path(C, B).is_none());
}

#[test]
fn conditions_of_a_path_combine() {
    let faults = three();
    faults.set_end("a".into(), loss(0.5));
    faults.set_pair("b".into(), "a".into(), loss(0.5));
    assert_eq!(faults.path(A, C).unwrap().loss, 0.5);
    assert_eq!(faults.path(A, B).unwrap().loss, 0.75);
    assert_eq!(faults.path(GATEWAY, A).unwrap().loss, 0.5);
    assert!(faults.path(B, C).is_none());
    assert_eq!(faults.pair("a".into(), "b".into()), loss(0.5));
    faults.set_end("a".into(), LinkConditions::default());
    assert!(faults.path(A, C).is_none());
    faults.clear();
    assert!(faults.path(A, B).is_none());
    assert!(!faults.active.get());
}

#[test]
fn each_direction_has_a_line_of_its_own() {
    let faults = three();
    let slow = LinkConditions {
        bandwidth: Some(8000),
        queue: 0,
        ..LinkConditions::default()
    };
    faults.set_pair("a".into(), "b".into(), slow);
    let (there, back) = (faults.path(A, B).unwrap(), faults.path(B, A).unwrap());
    assert_eq!(faults.send(&there, &[0; 1000]), Fate::Later);
    assert_eq!(faults.send(&there, &[0; 1000]), Fate::Overflow);
    assert_eq!(faults.send(&back, &[0; 1000]), Fate::Later);
    assert_eq!(faults.counts().held, 2000);
    // A partition that comes now stops what is under way.
    faults.partition(set(&["a"]), set(&["b"]));
    let later = Instant::now() + Duration::from_secs(2);
    assert_eq!(faults.arrived(later), None);
    let counts = faults.counts();
    assert_eq!((counts.cut, counts.overflowed, counts.held), (2, 1, 0));
}

#[test]
fn what_comes_by_the_uplink_is_counted_by_its_receiver() {
    const UPLINK: u32 = 4;
    let faults = three();
    faults.join(UPLINK, LinkEnd::Gateway);
    let far = LinkConditions {
        latency: Duration::from_secs(10),
        ..LinkConditions::default()
    };
    faults.set_end(LinkEnd::Gateway, far);
    let sent = |to| {
        let path = faults.path(UPLINK, to).unwrap();
        let frames = std::iter::repeat_with(|| faults.send(&path, &[0; 1500]));
        let sent = frames.take_while(|fate| *fate == Fate::Later).count();
        assert!((5000..12_000).contains(&sent), "{sent}");
        sent
    };
    // Each of the four has a quarter.
    assert_eq!([sent(B), sent(C)], [sent(A); 2]);
    faults.leave(B);
    assert_eq!(faults.transit.borrow().members, 3);
}

#[test]
fn the_nth_frame_has_the_same_fate() {
    let fates = |seed: u64, noise: bool| {
        let faults = three();
        faults.reseed(seed);
        // What was sent before does not count, nor what others send.
        faults.set_pair("a".into(), "b".into(), loss(0.3));
        if noise {
            for _ in 0..5 {
                faults.send(&faults.path(A, B).unwrap(), b"before");
            }
        }
        faults.set_pair("a".into(), "b".into(), loss(0.3));
        faults.set_pair("a".into(), "c".into(), loss(0.3));
        (0..200)
            .map(|_| {
                if noise {
                    faults.send(&faults.path(A, C).unwrap(), b"noise");
                    faults.send(&faults.path(B, A).unwrap(), b"noise");
                }
                faults.send(&faults.path(A, B).unwrap(), b"frame") == Fate::Lost
            })
            .collect::<Vec<_>>()
    };
    let first = fates(42, false);
    assert_eq!(first, fates(42, true));
    assert_ne!(first, fates(43, false));
    let lost = first.iter().filter(|lost| **lost).count();
    assert!((30..90).contains(&lost), "{lost}");
}
