//! virtio-blk: every request type, and requests no driver would make.

use fleetbox_guests::apic;
use fleetbox_guests::virtio::{Buffer, Device, Queue, Rings};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const READ_ONLY: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

static mut RINGS: Rings = Rings::new();
static mut DATA: [u8; 16384] = [0; 16384];

struct Disk {
    device: Device,
    queue: Queue,
}

impl Disk {
    fn open() -> Self {
        apic::enable();
        let features = READ_ONLY | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        let device = Device::open(2, 0, features).expect("a block device");
        let queue = device.queue(0, &raw mut RINGS as u64, 0x40);
        device.start();
        Self { device, queue }
    }

    fn request(&mut self, kind: u32, sector: u64, part: Option<Buffer>) -> u8 {
        let header = [kind, 0, sector as u32, (sector >> 32) as u32];
        let mut status = [0xEEu8];
        let tail = Buffer::into(&mut status);
        let done = match part {
            Some(part) => self.queue.request(&[Buffer::out(&header), part, tail]),
            None => self.queue.request(&[Buffer::out(&header), tail]),
        };
        assert!(
            done.is_some(),
            "request {kind} at {sector} had no interrupt"
        );
        // SAFETY: a byte of this stack; the device wrote it.
        unsafe { (&raw const status[0]).read_volatile() }
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(OUT, sector, Some(Buffer::out(data)))
    }

    fn read(&mut self, sector: u64, len: usize) -> (&'static [u8], u8) {
        let buffer = &raw mut DATA;
        // SAFETY: one vCPU, one request at a time: nothing else refers to the buffer now.
        let data = &mut unsafe { &mut *buffer }[..len];
        data.fill(0x55);
        let status = self.request(IN, sector, Some(Buffer::into(data)));
        (data, status)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let range = [sector as u32, (sector >> 32) as u32, sectors, flags];
        self.request(kind, 0, Some(Buffer::out(&range)))
    }
}

fn pattern(sector: u64) -> [u8; 4096] {
    core::array::from_fn(|i| (i as u64 * 7 + sector + (i as u64 >> 8)) as u8)
}

pub(super) fn read_and_write() {
    let mut disk = Disk::open();
    let sectors: u64 = disk.device.read_config(0);
    assert!(sectors >= 64, "{sectors} sectors");
    for sector in [0, 9, 48, sectors - 8] {
        assert_eq!(disk.write(sector, &pattern(sector)), OK);
    }
    for sector in [sectors - 8, 48, 9, 0] {
        let (data, status) = disk.read(sector, 4096);
        assert_eq!(status, OK);
        assert!(data == pattern(sector), "sector {sector} differs");
    }
    assert_eq!(disk.request(FLUSH, 0, None), OK);
    let mut id = [0u8; 20];
    assert_eq!(disk.request(GET_ID, 0, Some(Buffer::into(&mut id))), OK);
    assert!(id.starts_with(b"guest-disk\0"), "{id:?}");
}

pub(super) fn discard() {
    let mut disk = Disk::open();
    assert_eq!(
        disk.device.features & (F_DISCARD | F_WRITE_ZEROES),
        F_DISCARD | F_WRITE_ZEROES
    );
    assert_eq!(disk.write(0, &pattern(0)), OK);
    assert_eq!(disk.write(8, &pattern(8)), OK);
    assert_eq!(disk.write(16, &pattern(16)), OK);
    assert_eq!(disk.range(DISCARD, 0, 8, 0), OK);
    assert_eq!(disk.range(WRITE_ZEROES, 10, 2, 0), OK);
    assert_eq!(disk.range(WRITE_ZEROES, 16, 8, 1), OK);
    let zeroes = |data: &[u8]| data.iter().all(|b| *b == 0);
    assert!(
        zeroes(disk.read(0, 4096).0),
        "discarded data reads as zeroes"
    );
    let (data, _) = disk.read(8, 4096);
    assert!(data[..1024] == pattern(8)[..1024]);
    assert!(zeroes(&data[1024..2048]));
    assert!(data[2048..] == pattern(8)[2048..]);
    assert!(zeroes(disk.read(16, 4096).0));
    let sectors: u64 = disk.device.read_config(0);
    assert_eq!(
        disk.range(DISCARD, sectors - 1, 2, 0),
        IOERR,
        "beyond the end"
    );
}

pub(super) fn read_only() {
    let mut disk = Disk::open();
    assert!(disk.device.features & READ_ONLY != 0);
    let (data, status) = disk.read(0, 512);
    assert_eq!(status, OK);
    assert!(data.iter().all(|b| *b == 0xA5));
    assert_eq!(disk.write(0, &pattern(0)), IOERR);
    assert!(disk.read(0, 512).0.iter().all(|b| *b == 0xA5));
}

/// The host side fails every access to the second half.
pub(super) fn failing_disk() {
    let mut disk = Disk::open();
    let half = disk.device.read_config::<u64>(0) / 2;
    assert_eq!(disk.write(0, &pattern(0)), OK);
    assert_eq!(disk.write(half, &pattern(0)), IOERR);
    assert_eq!(disk.read(half, 4096).1, IOERR);
    assert_eq!(disk.read(0, 4096).1, OK);
}

pub(super) fn hostile_requests() {
    let mut disk = Disk::open();
    let sectors: u64 = disk.device.read_config(0);
    assert_eq!(disk.read(sectors, 512).1, IOERR);
    assert_eq!(disk.read(u64::MAX, 512).1, IOERR);
    assert_eq!(disk.read(sectors - 1, 1024).1, IOERR);
    assert_eq!(disk.request(77, 0, None), UNSUPPORTED);
    // Buffers outside of memory: an error or a device that wants a reset, but no dead machine.
    let header = [IN, 0, 0, 0];
    let mut status = [0xEEu8];
    let parts = [
        Buffer::out(&header),
        Buffer::hostile(0xC000_0000_0000, 512, true),
        Buffer::into(&mut status),
    ];
    let before = fleetbox_guests::interrupts::count(0x40);
    disk.queue.post(&parts);
    let finished = disk.queue.finish(before).is_some();
    let needs_reset = disk.device.status() & 0x40 != 0;
    // SAFETY: a byte of this stack.
    let status = unsafe { (&raw const status[0]).read_volatile() };
    assert!(
        needs_reset || (finished && status == IOERR),
        "{finished} {status:#x}"
    );
    // After a reset it works again.
    let mut disk = Disk::open();
    assert_eq!(disk.write(0, &pattern(3)), OK);
    assert!(disk.read(0, 4096).0 == pattern(3));
}
