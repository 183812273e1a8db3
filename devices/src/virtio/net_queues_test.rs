//! Several pairs of queues, and the control queue by which a driver takes them.

use fleetbox_packet::testing::large;

use super::super::testing::{Driver, WRITE, eventually};
use super::tests::*;
use super::*;
use crate::pci::{PciDevice, PciDeviceState};

const MQ: u64 = 1 << VIRTIO_NET_F_MQ;
const PAIRS: u16 = 3;
const COMMAND_AT: u64 = 0x60_0000;

fn device(link: OwnedFd) -> Net {
    Net::new("net0", MAC, link, LinkFormat::Packets, PAIRS)
}

fn setup(without: u64) -> (Driver, OwnedFd) {
    let (ours, theirs) = pair();
    let driver = Driver::new(device(ours));
    driver.start(without);
    (driver, theirs)
}

/// Sends a command to the control queue at `queue`; its status.
fn command(driver: &Driver, queue: u16, bytes: &[u8]) -> u8 {
    driver.fill(COMMAND_AT, bytes);
    driver.fill(COMMAND_AT + 0x100, &[0xee]);
    let done = driver.used_idx(queue);
    let len = bytes.len() as u32;
    driver.send(
        queue,
        0,
        &[(COMMAND_AT, len, 0), (COMMAND_AT + 0x100, 1, WRITE)],
    );
    driver.notify(queue);
    driver.wait_used(queue, done.wrapping_add(1));
    driver.bytes(COMMAND_AT + 0x100, 1)[0]
}

fn use_pairs(driver: &Driver, pairs: u8) {
    assert_eq!(command(driver, 2 * PAIRS, &[4, 0, pairs, 0]), 0);
}

/// A frame of one flow, told by its port.
fn flow_frame(port: u8, payload: &[u8]) -> Vec<u8> {
    let (_, mut frame) = large(payload, 0, false);
    frame[37] = port;
    with_header(&frame)
}

/// The same flow's other direction.
fn reply(port: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = flow_frame(port, payload);
    let frame = &mut bytes[12..];
    let (addresses, ports) = (frame[26..34].to_vec(), frame[34..38].to_vec());
    frame[26..30].copy_from_slice(&addresses[4..]);
    frame[30..34].copy_from_slice(&addresses[..4]);
    frame[34..36].copy_from_slice(&ports[2..]);
    frame[36..38].copy_from_slice(&ports[..2]);
    bytes
}

/// Offers a receive buffer to a pair.
fn offer(driver: &Driver, pair: u16, i: u16) {
    let at = RX_AT + 0x2_0000 * u64::from(pair) + 0x1000 * u64::from(i);
    driver.send(2 * pair, i, &[(at, 2048, WRITE)]);
    driver.notify(2 * pair);
}

/// Sends a frame of a flow on a pair.
fn transmit_on(driver: &Driver, pair: u16, bytes: &[u8]) {
    let at = TX_AT + 0x2_0000 * u64::from(pair);
    driver.fill(at, bytes);
    let queue = 2 * pair + 1;
    let done = driver.used_idx(queue);
    driver.send(queue, 0, &[(at, bytes.len() as u32, 0)]);
    driver.notify(queue);
    driver.wait_used(queue, done.wrapping_add(1));
}

fn used(driver: &Driver) -> [u16; 3] {
    [0, 2, 4].map(|queue| driver.used_idx(queue))
}

#[test]
fn several_pairs_are_offered_only_where_there_are_some() {
    let (driver, _peer) = setup(0);
    assert_eq!(driver.read(18, 2), 7);
    assert_eq!(driver.read(0x2008, 2), 3);
    assert_eq!(driver.offered() & MQ, MQ);
    let single = Net::new("net0", MAC, pair().0, LinkFormat::Packets, 1);
    let driver = Driver::new(single);
    assert_eq!(driver.read(18, 2), 2);
    assert_eq!(driver.read(0x2008, 2), 1);
    let both = MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
    assert_eq!(driver.offered() & both, 0);
}

#[test]
fn a_flow_comes_back_where_it_was_sent() {
    let (driver, peer) = setup(0);
    for pair in 0..3 {
        for i in 0..4 {
            offer(&driver, pair, i);
        }
    }
    // Until the driver asks for more, the first pair is the only one, whatever was sent where.
    transmit_on(&driver, 1, &flow_frame(7, b"one"));
    assert_eq!(receive_frame(&peer), flow_frame(7, b"one"));
    send_frame(&peer, &reply(7, b"two"));
    eventually("a frame", || used(&driver) == [1, 0, 0]);
    use_pairs(&driver, 3);
    send_frame(&peer, &reply(7, b"three"));
    eventually("a frame", || used(&driver) == [1, 1, 0]);
    driver.msi.wait(3, 1);
    // The flow moves.
    transmit_on(&driver, 2, &flow_frame(7, b"four"));
    receive_frame(&peer);
    send_frame(&peer, &reply(7, b"five"));
    eventually("a frame", || used(&driver) == [1, 1, 1]);
    let got = driver.bytes(RX_AT + 0x4_0000, 12 + 66 + 4);
    assert_eq!(got[78..], *b"five");
    // What belongs to no flow that was seen, or to none at all, goes to the first.
    send_frame(&peer, &reply(8, b"six"));
    send_frame(&peer, &with_header(&frame(60, 1)));
    eventually("frames", || used(&driver) == [3, 1, 1]);
    use_pairs(&driver, 1);
    send_frame(&peer, &reply(7, b"seven"));
    eventually("a frame", || used(&driver) == [4, 1, 1]);
    // A reset forgets the pairs.
    use_pairs(&driver, 3);
    driver.start(0);
    offer(&driver, 0, 0);
    transmit_on(&driver, 1, &flow_frame(7, b"eight"));
    receive_frame(&peer);
    send_frame(&peer, &reply(7, b"nine"));
    eventually("a frame", || used(&driver) == [1, 0, 0]);
}

#[test]
fn a_queue_without_room_is_waited_for() {
    let (driver, peer) = setup(0);
    use_pairs(&driver, 2);
    transmit_on(&driver, 1, &flow_frame(7, b"out"));
    receive_frame(&peer);
    send_frame(&peer, &reply(7, b"in"));
    send_frame(&peer, &reply(8, b"behind it"));
    offer(&driver, 0, 0);
    let out_again = |driver: &Driver| {
        transmit_on(driver, 1, &flow_frame(7, b"out"));
        receive_frame(&peer);
    };
    // Its queue comes behind that of the buffer.
    out_again(&driver);
    assert_eq!(used(&driver), [0, 0, 0]);
    offer(&driver, 1, 0);
    eventually("both", || used(&driver) == [1, 1, 0]);
    // One that the driver gives up is not.
    send_frame(&peer, &reply(7, b"again"));
    offer(&driver, 0, 1);
    // Twice: the link comes behind all queues.
    out_again(&driver);
    out_again(&driver);
    assert_eq!(used(&driver), [1, 1, 0]);
    use_pairs(&driver, 1);
    eventually("the frame", || used(&driver) == [2, 1, 0]);
}

#[test]
fn a_full_socket_holds_all_queues_back() {
    let (ours, peer) = pair();
    let driver = more_than_fits(ours);
    let mut seen = [0; 3];
    for _ in 0..24 {
        let got = receive_frame(&peer);
        assert_eq!(got.len(), 12 + 66 + 1000);
        seen[usize::from(got[78])] += 1;
    }
    assert_eq!(seen, [8, 8, 8]);
    for pair in 0..3 {
        driver.wait_used(2 * pair + 1, 8);
    }
}

/// A driver of which each pair has sent eight frames at once through a socket that takes fewer.
fn more_than_fits(ours: OwnedFd) -> Driver {
    nix::sys::socket::setsockopt(&ours, nix::sys::socket::sockopt::SndBuf, &4096).unwrap();
    let driver = Driver::new(device(ours));
    driver.start(0);
    use_pairs(&driver, 3);
    for pair in 0..3u16 {
        let at = TX_AT + 0x2_0000 * u64::from(pair);
        driver.fill(at, &flow_frame(pair as u8, &[pair as u8; 1000]));
        for i in 0..8 {
            driver.send(2 * pair + 1, i, &[(at, 12 + 66 + 1000, 0)]);
        }
        driver.notify(2 * pair + 1);
    }
    driver
}

#[test]
fn all_that_waited_for_a_full_socket_comes_back_when_it_closes() {
    let (ours, peer) = pair();
    let driver = more_than_fits(ours);
    let back = || {
        (0..3)
            .map(|pair| driver.used_idx(2 * pair + 1))
            .sum::<u16>()
    };
    eventually("a full socket", || back() > 0);
    assert!(back() < 24);
    drop(peer);
    for pair in 0..3 {
        driver.wait_used(2 * pair + 1, 8);
    }
}

#[test]
fn commands_that_make_no_sense_fail() {
    let (driver, peer) = setup(0);
    let control = 2 * PAIRS;
    for bytes in [
        &[4, 0, 0, 0][..],
        &[4, 0, 4, 0],
        &[4, 0, 1, 1],
        &[4, 0, 2],
        &[4],
        &[4, 1, 2, 0],
        &[0, 0, 1, 0],
        &[5, 0, 2, 0],
    ] {
        assert_eq!(command(&driver, control, bytes), 1, "{bytes:?}");
    }
    // Nothing has changed.
    offer(&driver, 0, 0);
    transmit_on(&driver, 1, &flow_frame(7, b"out"));
    receive_frame(&peer);
    send_frame(&peer, &reply(7, b"in"));
    eventually("a frame", || used(&driver) == [1, 0, 0]);
    for buffer in [(COMMAND_AT, 4, 0), (8 << 20, 4, WRITE)] {
        driver.send(control, 0, &[buffer]);
        driver.notify(control);
        driver.wait_broken();
        driver.start(0);
        assert_eq!(driver.status(), 0xf);
    }
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let (driver, peer) = setup(MQ);
    assert_eq!(command(&driver, 2, &[4, 0, 2, 0]), 1);
    assert_eq!(command(&driver, 2, &[4, 0, 1, 0]), 0);
    offer_buffer(&driver, 0, 2048);
    send_frame(&peer, &with_header(&frame(60, 1)));
    driver.wait_used(RX as u16, 1);
    // What a driver does with queues that are not there is no matter.
    driver.send(4, 0, &[(RX_AT, 2048, WRITE)]);
    driver.notify(4);
    driver.send(3, 0, &[(TX_AT, 72, 0)]);
    driver.notify(3);
    transmit(&driver, 0, &with_header(&frame(60, 2)));
    assert_eq!(receive_frame(&peer), with_header(&frame(60, 2)));
    assert_eq!((driver.used_idx(3), driver.used_idx(4)), (0, 0));
}

#[test]
fn the_pairs_in_use_are_saved() {
    let (ours, peer) = pair();
    let driver = Driver::new(device(ours.try_clone().unwrap()));
    driver.start(0);
    use_pairs(&driver, 2);
    for pair in 0..2 {
        offer(&driver, pair, 0);
    }
    driver.function.pause();
    let json = serde_json::to_string(&driver.function.save()).unwrap();
    let state: PciDeviceState = serde_json::from_str(&json).unwrap();
    let other = Driver::with_memory(device(ours), driver.memory.clone());
    drop(driver);
    other.function.restore(&state).unwrap();
    assert_eq!(other.function.save(), state);
    other.function.resume();
    transmit_on(&other, 1, &flow_frame(7, b"out"));
    receive_frame(&peer);
    send_frame(&peer, &reply(7, b"in"));
    eventually("a frame", || used(&other) == [0, 1, 0]);
    // A number of pairs that cannot be is none that is taken over.
    let PciDeviceState::Virtio(mut state) = state else {
        panic!("a virtio state");
    };
    for pairs in [0, PAIRS + 1, u16::MAX] {
        state.device = super::super::DeviceState::Net(NetState { mac: MAC, pairs });
        let another = Driver::new(device(pair().0));
        let state = PciDeviceState::Virtio(state.clone());
        assert!(another.function.restore(&state).is_err(), "{pairs}");
    }
}
