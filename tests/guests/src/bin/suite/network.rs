//! virtio-net: frames in both directions.

use fleetbox_guests::virtio::{Buffer, Device, Queue, Rings};
use fleetbox_guests::{apic, interrupts};

const CHECKSUM: u64 = 1;
const MAC: u64 = 1 << 5;
const CUT_TCP4: u64 = 1 << 11;
const HEADER: usize = 12;

static mut RX: Rings = Rings::new();
static mut TX: Rings = Rings::new();
static mut RECEIVED: [u8; 2048] = [0; 2048];

struct Nic {
    mac: [u8; 6],
    rx: Queue,
    tx: Queue,
    count: u32,
}

impl Nic {
    fn open(features: u64) -> Self {
        apic::enable();
        let device = Device::open(1, 0, MAC | features).expect("a network device");
        assert_eq!(device.features & features, features);
        let rx = device.queue(0, &raw mut RX as u64, 0x50);
        let tx = device.queue(1, &raw mut TX as u64, 0x51);
        let mac = core::array::from_fn(|i| device.read_config(i as u64));
        device.start();
        Self {
            mac,
            rx,
            tx,
            count: 0,
        }
    }

    fn offer(&mut self) {
        self.count = interrupts::count(0x50);
        let buffer = &raw mut RECEIVED;
        // SAFETY: nothing refers to the buffer while the device has it.
        let buffer = unsafe { &mut *buffer };
        self.rx.post(&[Buffer::into(buffer)]);
    }

    fn received(&mut self) -> &'static [u8] {
        let len = self.rx.finish(self.count).expect("a frame") as usize;
        let buffer = &raw const RECEIVED;
        // SAFETY: the device has returned the buffer.
        let frame = unsafe { &*buffer };
        &frame[HEADER..len]
    }

    fn send(&mut self, frame: &[u8]) {
        self.send_with(&[0; HEADER], frame);
    }

    fn send_with(&mut self, header: &[u8; HEADER], frame: &[u8]) {
        let done = self.tx.request(&[Buffer::out(header), Buffer::out(frame)]);
        assert!(done.is_some(), "the frame was not sent");
    }
}

/// Sends its MAC address, then returns every frame that it gets with the addresses swapped.
pub(super) fn both_ways() {
    let mut nic = Nic::open(0);
    let mut frame = [0u8; 60];
    frame[..6].fill(0xFF);
    frame[6..12].copy_from_slice(&nic.mac);
    frame[12..14].copy_from_slice(&[0x88, 0xB5]);
    nic.offer();
    nic.send(&frame);
    for _ in 0..3 {
        let received = nic.received();
        let len = received.len();
        let mut reply = [0u8; 1514];
        reply[..len].copy_from_slice(received);
        reply[..6].copy_from_slice(&received[6..12]);
        reply[6..12].copy_from_slice(&nic.mac);
        nic.offer();
        nic.send(&reply[..len]);
    }
}

/// Sends a hundred numbered frames of all sizes.
pub(super) fn burst() {
    let mut nic = Nic::open(0);
    for i in 0..100u16 {
        let mut frame = [i as u8; 1514];
        frame[6..12].copy_from_slice(&nic.mac);
        nic.send(&frame[..60 + usize::from(i) * 14]);
    }
}

/// Sends a TCP packet of 4000 bytes of payload, which the device is to cut and to checksum.
pub(super) fn large() {
    const HEADERS: usize = 14 + 20 + 20;
    let mut nic = Nic::open(CHECKSUM | CUT_TCP4);
    let mut packet = [0u8; HEADERS + 4000];
    packet[6..12].copy_from_slice(&nic.mac);
    packet[12..14].copy_from_slice(&[8, 0]);
    let len = (packet.len() - 14) as u16;
    packet[14..18].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
    packet[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
    packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet[34..38].copy_from_slice(&[0, 9, 0, 80]);
    // An acknowledgement that pushes; the checksum is that of the pseudo header.
    packet[46..48].copy_from_slice(&[0x50, 0x18]);
    let tcp = u32::from(len - 20);
    let sum = 0x0A00 + 1 + 0x0A00 + 2 + 6 + tcp;
    packet[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
    for (i, byte) in packet[HEADERS..].iter_mut().enumerate() {
        *byte = (i / 3) as u8;
    }
    // Needs a checksum; TCP over IPv4; the headers' length; bytes in a frame; where TCP begins and
    // its checksum is.
    nic.send_with(
        &[1, 1, HEADERS as u8, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0],
        &packet,
    );
}
