//! virtio-net: frames in both directions.

use fleetbox_guests::virtio::{Buffer, Device, Queue, Rings};
use fleetbox_guests::{apic, interrupts};

const MAC: u64 = 1 << 5;
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
    fn open() -> Self {
        apic::enable();
        let device = Device::open(1, 0, MAC).expect("a network device");
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
        let header = [0u8; HEADER];
        let done = self.tx.request(&[Buffer::out(&header), Buffer::out(frame)]);
        assert!(done.is_some(), "the frame was not sent");
    }
}

/// Sends its MAC address, then returns every frame that it gets with the addresses swapped.
pub(super) fn both_ways() {
    let mut nic = Nic::open();
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
    let mut nic = Nic::open();
    for i in 0..100u16 {
        let mut frame = [i as u8; 1514];
        frame[6..12].copy_from_slice(&nic.mac);
        nic.send(&frame[..60 + usize::from(i) * 14]);
    }
}
