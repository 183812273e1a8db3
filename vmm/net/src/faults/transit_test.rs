use proptest::prelude::*;

use super::super::conditions::LinkConditions;
use super::super::line::send_time;
use super::*;

fn path(from: u32, to: u32, loss: f64, conditions: &[LinkConditions]) -> Rc<Path> {
    Rc::new(Path {
        from,
        to,
        of_gateway: from == GATEWAY,
        cut: false,
        loss,
        dice: Rc::new(Dice::new(7, &from.to_string(), &to.to_string())),
        lines: conditions.iter().filter_map(Line::new).collect(),
    })
}

fn delay(millis: u64) -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(millis),
        ..LinkConditions::default()
    }
}

fn rate(bits: u64, queue: usize) -> LinkConditions {
    LinkConditions {
        bandwidth: Some(bits),
        queue,
        ..LinkConditions::default()
    }
}

/// All that arrives, and after how many microseconds, looking once per `step`.
fn run(transit: &mut Transit, start: Instant, step: Duration) -> Vec<(u64, Arrival)> {
    let mut seen = Vec::new();
    let mut now = start;
    while transit.next().is_some() {
        while let Some(arrival) = transit.arrived(now) {
            seen.push(((now - start).as_micros() as u64, arrival));
        }
        now += step;
    }
    seen
}

#[test]
fn latencies_of_a_path_add_up() {
    let start = Instant::now();
    let mut transit = Transit::default();
    let way = path(1, 2, 0.0, &[delay(10), delay(20), delay(5)]);
    assert_eq!(transit.send(&way, b"frame", start), Fate::Later);
    assert_eq!(transit.bytes(), 5);
    assert!(transit.arrived(start + Duration::from_millis(34)).is_none());
    let arrival = transit.arrived(start + Duration::from_millis(35)).unwrap();
    assert_eq!((arrival.from, arrival.to), (1, 2));
    assert_eq!(*arrival.frame, *b"frame");
    assert_eq!((transit.bytes(), transit.bytes), (0, 0));
    assert!(transit.of_sender.is_empty() && transit.of_path.is_empty());
}

#[test]
fn a_line_sends_no_more_than_its_rate() {
    let start = Instant::now();
    let mut transit = Transit::default();
    // A frame of 1000 bytes takes 8 ms.
    let way = path(1, 2, 0.0, &[rate(1_000_000, 1 << 20)]);
    for _ in 0..100 {
        assert_eq!(transit.send(&way, &[0; 1000], start), Fate::Later);
    }
    let seen = run(&mut transit, start, Duration::from_millis(1));
    for (index, (micros, _)) in seen.iter().enumerate() {
        assert_eq!(*micros, (index as u64 + 1) * 8000);
    }
    assert_eq!(seen.len(), 100);
}

#[test]
fn a_full_queue_loses_what_comes() {
    let start = Instant::now();
    let mut transit = Transit::default();
    let way = path(1, 2, 0.0, &[rate(1_000_000, 3000)]);
    let fates: Vec<_> = (0..5)
        .map(|_| transit.send(&way, &[0; 1000], start))
        .collect();
    use Fate::{Later, Overflow};
    assert_eq!(fates, [Later, Later, Later, Overflow, Overflow]);
    assert_eq!(transit.overflowed, 2);
    assert!(way.room_at(start).is_some());
    let room = way.room_at(start).unwrap();
    assert_eq!(room - start, Duration::from_millis(12));
    assert_eq!(way.room_at(room), None);
    // However small the queue, an idle line takes a frame.
    let narrow = path(1, 2, 0.0, &[rate(1_000_000, 0)]);
    assert_eq!(transit.send(&narrow, &[0; 1500], start), Later);
    assert_eq!(transit.send(&narrow, &[0; 1500], start), Overflow);
}

#[test]
fn frames_of_two_senders_share_the_line_of_their_receiver() {
    let start = Instant::now();
    let mut transit = Transit::default();
    let line = Line::new(&rate(8_000_000, 1 << 20)).unwrap();
    let shared = |from: u32, first: LinkConditions| {
        let mut lines: Vec<_> = Line::new(&first).into_iter().collect();
        lines.push(line.clone());
        Rc::new(Path {
            from,
            to: 9,
            of_gateway: false,
            cut: false,
            loss: 0.0,
            dice: Rc::new(Dice::new(0, "", "")),
            lines,
        })
    };
    let (far, near) = (shared(1, delay(50)), shared(2, LinkConditions::default()));
    // The far one sends first, yet its frame does not hold up the line while it travels.
    transit.send(&far, &[1; 1000], start);
    transit.send(&near, &[2; 1000], start);
    let seen = run(&mut transit, start, Duration::from_millis(1));
    let order: Vec<_> = seen.iter().map(|(at, seen)| (*at, seen.from)).collect();
    assert_eq!(order, [(1000, 2), (51_000, 1)]);
}

/// Sends frames of 1500 bytes until one is lost, and says how many went.
fn fill(transit: &mut Transit, way: &Rc<Path>, now: Instant) -> usize {
    std::iter::repeat_with(|| transit.send(way, &[0; 1500], now))
        .take(100_000)
        .take_while(|fate| *fate == Fate::Later)
        .count()
}

/// A path that takes seconds.
fn far(from: u32, to: u32) -> Rc<Path> {
    path(from, to, 0.0, &[delay(5000)])
}

#[test]
fn what_one_path_has_under_way_is_bounded() {
    let start = Instant::now();
    let mut transit = Transit::default();
    let sent = fill(&mut transit, &far(1, 2), start);
    assert!((9000..12_000).contains(&sent), "{sent}");
    assert!(transit.bytes <= MAX_OF_PATH);
    // Others are not affected.
    let other = far(3, 2);
    assert_eq!(transit.send(&other, &[0; 1500], start), Fate::Later);
    transit.forget(1);
    assert_eq!(transit.bytes(), 1500);
    assert_eq!(run(&mut transit, start, Duration::from_millis(50)).len(), 1);
    assert!(transit.of_sender.is_empty() && transit.of_path.is_empty());
}

#[test]
fn a_member_that_is_far_away_leaves_the_gateway_room_for_the_others() {
    let start = Instant::now();
    let mut transit = Transit {
        members: 11,
        ..Transit::default()
    };
    let sent = fill(&mut transit, &far(GATEWAY, 1), start);
    assert!((3000..5000).contains(&sent), "{sent}");
    // Megabytes are under way to each of the others, and arrive, as if the first were not.
    for member in 2..=11 {
        let near = path(GATEWAY, member, 0.0, &[delay(1)]);
        assert_eq!(fill(&mut transit, &near, start), sent);
    }
    let soon = start + Duration::from_millis(1);
    let arrived = std::iter::from_fn(|| transit.arrived(soon));
    assert_eq!(arrived.filter(|arrival| arrival.to > 1).count(), 10 * sent);
    assert_eq!(transit.held.len(), sent);
    // What was lost is counted for no path.
    assert_eq!(transit.of_path.len(), 1);
}

#[test]
fn bulk_data_of_the_gateway_waits_before_its_share_is_full() {
    let start = Instant::now();
    let mut transit = Transit {
        members: 64,
        ..Transit::default()
    };
    let way = far(GATEWAY, 1);
    // What the uplink sends to the same member has the same part.
    let uplink = Rc::new(Path {
        from: 65,
        of_gateway: true,
        dice: Rc::new(Dice::new(7, "65", "1")),
        lines: way.lines.clone(),
        ..*way
    });
    assert_eq!(transit.room_at(&way), None);
    let mut sent = 0;
    while transit.room_at(&way).is_none() {
        let path = if sent % 2 == 0 { &way } else { &uplink };
        assert_eq!(transit.send(path, &[0; 1500], start), Fate::Later);
        sent += 1;
    }
    assert!((200..400).contains(&sent), "{sent}");
    let again = transit.room_at(&way).unwrap();
    assert!(transit.arrived(again).is_some());
    let rest = fill(&mut transit, &way, start);
    assert!((200..400).contains(&rest), "{rest}");
}

#[test]
fn no_number_of_slow_paths_keeps_out_another() {
    let start = Instant::now();
    let mut transit = Transit {
        members: 16,
        ..Transit::default()
    };
    let fair = (MEMBERS / 16).min(MAX_OF_MEMBER);
    for from in 1..=16 {
        // All that a member can send to all others except one.
        for to in (0..=16).filter(|to| *to != from && *to != 16) {
            fill(&mut transit, &far(from, to), start);
        }
        let before = transit.of_sender[&from];
        assert!(before <= fair, "{before}");
    }
    assert!(transit.bytes <= MEMBERS);
    // The gateway has its part for each of them.
    for member in 1..=16 {
        let sent = fill(&mut transit, &far(GATEWAY, member), start);
        assert!(sent * 1628 >= GATEWAYS / 16 - 1628, "{sent} to {member}");
    }
    assert!(transit.bytes <= MAX_HELD);
    assert_eq!(transit.bytes, transit.of_sender.values().sum::<usize>());
    assert_eq!(transit.bytes, transit.of_path.values().sum::<usize>());
    for id in 0..=16 {
        transit.forget(id);
    }
    assert!(transit.of_sender.is_empty() && transit.of_path.is_empty());
    assert_eq!(transit.bytes, 0);
}

#[test]
fn one_slow_path_of_a_member_leaves_room_for_its_others() {
    let start = Instant::now();
    let mut transit = Transit {
        members: 3,
        ..Transit::default()
    };
    let sent = fill(&mut transit, &far(1, 2), start);
    assert!(sent >= 9000, "{sent}");
    assert!(fill(&mut transit, &far(1, 3), start) >= sent / 2 - 1);
    transit.members = 64;
    assert_eq!(fill(&mut transit, &far(1, GATEWAY), start), 0);
    let (first, second) = (far(2, 1), far(2, 3));
    let sent = fill(&mut transit, &first, start);
    assert!((500..700).contains(&sent), "{sent}");
    assert!(fill(&mut transit, &second, start) >= sent / 2 - 1);
}

proptest! {
    #[test]
    fn nothing_is_reordered_lost_or_early(
        frames in prop::collection::vec((0u64..3000, 1usize..1600), 1..80),
        latency in 0u64..100,
        bits in prop_oneof![Just(None), (10_000u64..10_000_000).prop_map(Some)],
        step in 100u64..20_000,
    ) {
        let start = Instant::now();
        let mut transit = Transit::default();
        let conditions = LinkConditions {
            latency: Duration::from_millis(latency.max(1)),
            bandwidth: bits,
            queue: usize::MAX,
            ..LinkConditions::default()
        };
        let way = path(1, 2, 0.0, &[conditions]);
        let mut at = start;
        let mut sent = Vec::new();
        let mut seen = Vec::new();
        let step = Duration::from_micros(step);
        for (index, (gap, len)) in frames.iter().enumerate() {
            at += Duration::from_micros(*gap);
            let mut frame = vec![0; *len];
            frame[0] = index as u8;
            prop_assert_eq!(transit.send(&way, &frame, at), Fate::Later);
            sent.push((at, frame));
        }
        let mut now = start;
        while transit.next().is_some() {
            while let Some(arrival) = transit.arrived(now) {
                seen.push((now, arrival.frame));
            }
            now += step;
        }
        prop_assert_eq!(seen.len(), sent.len());
        let mut line = start;
        for ((sent, frame), (seen, arrived)) in sent.iter().zip(&seen) {
            prop_assert_eq!(&frame[..], &arrived[..]);
            line = line.max(*sent);
            if let Some(bits) = bits {
                line += send_time(frame.len() as u64, bits);
            }
            let due = line + Duration::from_millis(latency.max(1));
            prop_assert!(*seen + SLACK >= due);
            prop_assert!(*seen <= due + step);
        }
        prop_assert_eq!(transit.bytes, 0);
    }
}
