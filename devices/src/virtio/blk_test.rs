use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::super::testing::{Driver, INDIRECT, WRITE};
use super::super::{F_EVENT_IDX, VirtioPciState};
use super::*;
use crate::pci::{PciDevice, PciDeviceState};
use crate::sync::lock;

/// A disk in memory that can be told to fail.
struct MemoryDisk {
    data: Mutex<Vec<u8>>,
    read_only: bool,
    failing: AtomicBool,
    log: Mutex<Vec<String>>,
}

impl MemoryDisk {
    fn new(len: usize, read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            data: Mutex::new((0..len).map(|i| (i / 512) as u8).collect()),
            read_only,
            failing: AtomicBool::new(false),
            log: Mutex::default(),
        })
    }
    fn range(&self, offset: u64, len: u64) -> io::Result<std::ops::Range<usize>> {
        let range = offset as usize..(offset + len) as usize;
        if self.failing.load(Ordering::Relaxed) || range.end > lock(&self.data).len() {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(range)
    }
    fn check_writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        lock(&self.data).len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let range = self.range(offset, buf.len() as u64)?;
        buf.copy_from_slice(&lock(&self.data)[range]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let range = self.range(offset, buf.len() as u64)?;
        lock(&self.data)[range].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.range(0, 0)?;
        lock(&self.log).push("flush".to_owned());
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)?;
        lock(&self.log).push(format!("discard {offset}+{len}"));
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        let range = self.range(offset, len)?;
        lock(&self.data)[range].fill(0);
        lock(&self.log).push(format!("zeroes {offset}+{len} {unmap}"));
        Ok(())
    }
}

const HEADER_AT: u64 = 0x10_0000;
const STATUS_AT: u64 = 0x11_0000;
const DATA_AT: u64 = 0x20_0000;
const LEN: usize = 1 << 20;

fn setup(read_only: bool) -> (Arc<MemoryDisk>, Driver) {
    let disk = MemoryDisk::new(LEN, read_only);
    let driver = Driver::new(Blk::new("blk0", disk.clone(), "serial-number", 1));
    driver.start(0);
    (disk, driver)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// Sends a request with the given data buffers and returns its status and used length.
fn request(driver: &Driver, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
    driver.fill(HEADER_AT, &header(kind, sector));
    driver.fill(STATUS_AT, &[0xee]);
    let mut buffers = vec![(HEADER_AT, 16, 0)];
    buffers.extend(data);
    buffers.push((STATUS_AT, 1, WRITE));
    let done = driver.used_idx(0);
    driver.send(0, 0, &buffers);
    driver.notify(0);
    driver.wait_used(0, done + 1);
    let (head, len) = driver.used(0, done);
    assert_eq!(head, 0);
    (driver.bytes(STATUS_AT, 1)[0], len)
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

#[test]
fn the_configuration_describes_the_disk() {
    let (_, driver) = setup(false);
    assert_eq!(driver.read(0x2000, 8), LEN as u64 / 512);
    assert_eq!(driver.read(0x2000 + 20, 4), 512);
    assert_eq!(driver.read(0x2000 + 12, 4), 254);
    assert_eq!(driver.read(0x2000 + 60, 4), 0xffff_ffff, "beyond the end");
    assert_eq!(driver.offered() >> VIRTIO_BLK_F_RO & 1, 0);
    let (_, driver) = setup(true);
    assert_eq!(driver.offered() >> VIRTIO_BLK_F_RO & 1, 1);
    assert_eq!(driver.offered() >> VIRTIO_BLK_F_DISCARD & 1, 0);
}

#[test]
fn reads_and_writes_in_several_segments() {
    let (disk, driver) = setup(false);
    let data = [
        (DATA_AT, 100, WRITE),
        (DATA_AT + 0x1000, 412, WRITE),
        (DATA_AT + 0x2000, 512, WRITE),
    ];
    assert_eq!(request(&driver, 0, 7, &data), (OK, 1025));
    assert_eq!(driver.bytes(DATA_AT, 100), [7; 100]);
    assert_eq!(driver.bytes(DATA_AT + 0x1000, 412), [7; 412]);
    assert_eq!(driver.bytes(DATA_AT + 0x2000, 512), [8; 512]);
    driver.msi.wait(1, 1);

    driver.fill(DATA_AT, &[0x5a; 300]);
    driver.fill(DATA_AT + 0x1000, &[0xa5; 212]);
    let data = [(DATA_AT, 300, 0), (DATA_AT + 0x1000, 212, 0)];
    assert_eq!(request(&driver, 1, 3, &data), (OK, 1));
    let disk = lock(&disk.data);
    assert_eq!(disk[1536..1836], [0x5a; 300]);
    assert_eq!(disk[1836..2048], [0xa5; 212]);
    assert_eq!(disk[2048], 4);
}

#[test]
fn requests_may_be_split_anywhere_and_be_larger_than_the_bounce_buffer() {
    let disk = MemoryDisk::new(4 << 20, false);
    let driver = Driver::new(Blk::new("blk0", disk.clone(), "", 1));
    driver.start(0);
    driver.fill(HEADER_AT, &header(VIRTIO_BLK_T_IN, 1));
    // The header in two pieces; data and status in one.
    let len = (3 << 20) + 1024;
    driver.send(
        0,
        4,
        &[
            (HEADER_AT, 5, 0),
            (HEADER_AT + 5, 11, 0),
            (DATA_AT, len + 1, WRITE),
        ],
    );
    driver.notify(0);
    driver.wait_used(0, 1);
    assert_eq!(driver.used(0, 0), (4, len + 1));
    let read = driver.bytes(DATA_AT, len as usize + 1);
    assert_eq!(
        read[..len as usize],
        lock(&disk.data)[512..512 + len as usize]
    );
    assert_eq!(read[len as usize], OK);
}

#[test]
fn flush_id_and_unknown_requests() {
    let (disk, driver) = setup(false);
    assert_eq!(request(&driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    assert_eq!(*lock(&disk.log), ["flush"]);
    let data = [(DATA_AT, 20, WRITE)];
    assert_eq!(request(&driver, VIRTIO_BLK_T_GET_ID, 0, &data), (OK, 21));
    assert_eq!(driver.bytes(DATA_AT, 20), *b"serial-number\0\0\0\0\0\0\0");
    assert_eq!(request(&driver, 99, 0, &data), (UNSUPP, 1));
    assert_eq!(request(&driver, VIRTIO_BLK_T_GET_ID, 0, &[]), (OK, 1));
}

#[test]
fn failures_of_the_host_are_io_errors() {
    let (disk, driver) = setup(false);
    disk.failing.store(true, Ordering::Relaxed);
    for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH] {
        let flags = if kind == VIRTIO_BLK_T_IN { WRITE } else { 0 };
        let data = [(DATA_AT, 512, flags)];
        assert_eq!(request(&driver, kind, 0, &data), (IOERR, 1), "{kind}");
    }
    disk.failing.store(false, Ordering::Relaxed);
    assert_eq!(request(&driver, 0, 0, &[(DATA_AT, 512, WRITE)]).0, OK);
}

#[test]
fn requests_outside_of_disk_or_memory_are_io_errors() {
    let (_, driver) = setup(false);
    let sectors = LEN as u64 / 512;
    let data = [(DATA_AT, 1024, WRITE)];
    for sector in [sectors, sectors - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        assert_eq!(request(&driver, 0, sector, &data).0, IOERR, "{sector}");
    }
    let outside = 8 << 20;
    for (addr, len) in [
        (DATA_AT, 511),
        (outside, 512),
        (outside - 1, 512),
        (u64::MAX - 100, 512),
        (0, u32::MAX - 600),
    ] {
        assert_eq!(request(&driver, 0, 0, &[(addr, len, WRITE)]).0, IOERR);
        assert_eq!(request(&driver, 1, 0, &[(addr, len, 0)]).0, IOERR);
    }
    assert_eq!(request(&driver, 0, 0, &data).0, OK);
}

#[test]
fn a_read_only_disk_refuses_every_modification() {
    let (disk, driver) = setup(true);
    let before = lock(&disk.data).clone();
    assert_eq!(request(&driver, 1, 0, &[(DATA_AT, 512, 0)]).0, IOERR);
    let range = [(DATA_AT, 16, 0)];
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(request(&driver, kind, 0, &range).0, UNSUPP);
    }
    assert_eq!(*lock(&disk.data), before);
    assert_eq!(request(&driver, 0, 0, &[(DATA_AT, 512, WRITE)]).0, OK);
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn discards_and_zeroes() {
    let (disk, driver) = setup(false);
    let mut ranges = range(8, 8, 0);
    ranges.extend(range(32, 1, 0));
    driver.fill(DATA_AT, &ranges);
    let data = [(DATA_AT, 32, 0)];
    assert_eq!(request(&driver, VIRTIO_BLK_T_DISCARD, 0, &data), (OK, 1));
    assert!(lock(&disk.log).contains(&"discard 16384+512".to_owned()));
    assert_eq!(lock(&disk.data)[4096..8192], [0; 4096]);
    driver.fill(DATA_AT, &range(100, 2, 1));
    let data = [(DATA_AT, 16, 0)];
    assert_eq!(request(&driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &data).0, OK);
    assert!(lock(&disk.log).contains(&"zeroes 51200+1024 true".to_owned()));
    // Unmap means nothing to a discard, and other flags nothing to either.
    assert_eq!(request(&driver, VIRTIO_BLK_T_DISCARD, 0, &data).0, UNSUPP);
    driver.fill(DATA_AT, &range(100, 2, 2));
    assert_eq!(
        request(&driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &data).0,
        UNSUPP
    );
    // Out of range, too long, too many, odd sizes: and nothing is touched.
    let before = lock(&disk.data).clone();
    for (sector, sectors) in [(2047, 2), (u64::MAX, 1), (0, u32::MAX), (1 << 60, 1)] {
        let mut ranges = range(200, 1, 0);
        ranges.extend(range(sector, sectors, 0));
        driver.fill(DATA_AT, &ranges);
        let data = [(DATA_AT, 32, 0)];
        assert_eq!(request(&driver, VIRTIO_BLK_T_DISCARD, 0, &data).0, IOERR);
    }
    for len in [15, 16 * 33, u32::MAX - 100] {
        let data = [(DATA_AT, len, 0)];
        assert_eq!(request(&driver, VIRTIO_BLK_T_DISCARD, 0, &data).0, IOERR);
    }
    assert_eq!(*lock(&disk.data), before);
}

#[test]
fn a_request_without_header_or_status_breaks_the_device_until_reset() {
    let (_, driver) = setup(false);
    let cases: &[&[(u64, u32, u16)]] = &[
        &[(HEADER_AT, 16, 0)],
        &[(STATUS_AT, 1, WRITE)],
        &[(HEADER_AT, 15, 0), (STATUS_AT, 1, WRITE)],
        &[(8 << 20, 16, 0), (STATUS_AT, 1, WRITE)],
        &[(HEADER_AT, 16, 0), (8 << 20, 1, WRITE)],
        &[(HEADER_AT, 0, 0), (STATUS_AT, 0, WRITE)],
    ];
    for buffers in cases {
        driver.send(0, 0, buffers);
        driver.notify(0);
        driver.wait_broken();
        driver.start(0);
        assert_eq!(driver.status(), 0xf);
        assert_eq!(request(&driver, 0, 0, &[(DATA_AT, 512, WRITE)]).0, OK);
    }
    // The driver was told, by the configuration vector.
    driver.msi.wait(0, cases.len());
}

#[test]
fn a_looping_chain_breaks_the_device() {
    let (_, driver) = setup(false);
    driver.descriptor(0, 0, (HEADER_AT, 16, 1, 1));
    driver.descriptor(0, 1, (DATA_AT, 512, 1, 0));
    driver.offer(0, 0);
    driver.notify(0);
    driver.wait_broken();
}

#[test]
fn an_indirect_request_works() {
    let (_, driver) = setup(false);
    let table = 0x30_0000;
    for (i, (addr, len, flags)) in [
        (HEADER_AT, 16u32, 1u16),
        (DATA_AT, 512, 3),
        (STATUS_AT, 1, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bytes = u64::to_le_bytes(addr).to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((i as u16 + 1).to_le_bytes());
        driver.fill(table + 16 * i as u64, &bytes);
    }
    driver.fill(HEADER_AT, &header(VIRTIO_BLK_T_IN, 9));
    driver.send(0, 2, &[(table, 48, INDIRECT)]);
    driver.notify(0);
    driver.wait_used(0, 1);
    assert_eq!(driver.used(0, 0), (2, 513));
    assert_eq!(driver.bytes(DATA_AT, 512), [9; 512]);
}

#[test]
fn many_requests_wrap_around_the_ring() {
    for without in [0, F_EVENT_IDX] {
        let disk = MemoryDisk::new(LEN, false);
        let driver = Driver::new(Blk::new("blk0", disk, "", 1));
        driver.start(without);
        for sector in 0..100 {
            let (status, _) = request(&driver, 0, sector, &[(DATA_AT, 512, WRITE)]);
            assert_eq!(status, OK);
            assert_eq!(driver.bytes(DATA_AT, 1), [sector as u8]);
        }
    }
}

#[test]
fn a_saved_device_goes_on_where_it_was() {
    let disk = MemoryDisk::new(LEN, false);
    let driver = Driver::new(Blk::new("blk0", disk.clone(), "serial-number", 1));
    driver.start(F_EVENT_IDX);
    for sector in 0..5 {
        request(&driver, 0, sector, &[(DATA_AT, 512, WRITE)]);
    }
    // One request is made available but not served: the device is paused.
    driver.function.pause();
    driver.fill(HEADER_AT, &header(VIRTIO_BLK_T_IN, 77));
    driver.send(
        0,
        0,
        &[
            (HEADER_AT, 16, 0),
            (DATA_AT, 512, WRITE),
            (STATUS_AT, 1, WRITE),
        ],
    );
    driver.notify(0);
    let state = driver.function.save();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(driver.used_idx(0), 5);

    let blk = Blk::new("blk0", disk, "serial-number", 1);
    let other = Driver::with_memory(blk, driver.memory.clone());
    let state: PciDeviceState = serde_json::from_str(&json).unwrap();
    other.function.restore(&state).unwrap();
    assert_eq!(other.function.save(), state);
    assert_eq!(other.status(), 0xf);
    assert_eq!(other.used_idx(0), 5, "still paused");
    other.function.resume();
    other.wait_used(0, 6);
    other.msi.wait(1, 1);
    assert_eq!(other.bytes(DATA_AT, 512), [77; 512]);
    assert_eq!(request(&other, 0, 1, &[(DATA_AT, 512, WRITE)]).0, OK);

    // Another disk is not the same device.
    let small = Blk::new("blk0", MemoryDisk::new(512, false), "", 1);
    let small = Driver::new(small);
    assert!(small.function.restore(&state).is_err());
}

#[test]
fn saving_does_not_stop_a_running_device() {
    let (_, driver) = setup(false);
    for sector in 0..20 {
        let PciDeviceState::Virtio(state) = driver.function.save() else {
            panic!("a virtio state");
        };
        let VirtioPciState { status, queues, .. } = *state;
        assert_eq!((status, queues[0].next_used), (0xf, sector as u16));
        request(&driver, 0, sector, &[(DATA_AT, 512, WRITE)]);
    }
}

#[test]
fn several_queues_are_served_at_once() {
    let disk = MemoryDisk::new(LEN, false);
    let driver = Driver::new(Blk::new("blk0", disk.clone(), "", 3));
    assert_eq!(driver.offered() >> VIRTIO_BLK_F_MQ & 1, 1);
    assert_eq!(driver.read(0x2000 + 34, 2), 3);
    driver.start(0);
    // Requests of the three queues stand beside each other before any is announced.
    for queue in 0..3u16 {
        let at = u64::from(queue) * 0x1000;
        driver.fill(
            HEADER_AT + at,
            &header(VIRTIO_BLK_T_IN, 10 + u64::from(queue)),
        );
        driver.send(
            queue,
            0,
            &[
                (HEADER_AT + at, 16, 0),
                (DATA_AT + at, 512, WRITE),
                (STATUS_AT + at, 1, WRITE),
            ],
        );
    }
    for queue in [2, 0, 1] {
        driver.notify(queue);
    }
    for queue in 0..3u16 {
        driver.wait_used(queue, 1);
        driver.msi.wait(u32::from(queue) + 1, 1);
        let data = driver.bytes(DATA_AT + u64::from(queue) * 0x1000, 512);
        assert_eq!(data, [10 + queue as u8; 512]);
    }
    // One that breaks is the device's end until it is reset.
    driver.send(1, 0, &[(HEADER_AT, 15, 0), (STATUS_AT, 1, WRITE)]);
    driver.notify(1);
    driver.wait_broken();
    driver.start(0);
    assert_eq!(request(&driver, 0, 7, &[(DATA_AT, 512, WRITE)]), (OK, 513));
}

#[test]
fn a_driver_of_one_queue_finds_one() {
    let disk = MemoryDisk::new(LEN, false);
    let driver = Driver::new(Blk::new("blk0", disk, "", 2));
    driver.enable_msix();
    driver.negotiate(1 << VIRTIO_BLK_F_MQ);
    driver.set_up_queue(0);
    driver.write(20, 1, 0xf);
    assert_eq!(request(&driver, 0, 7, &[(DATA_AT, 512, WRITE)]), (OK, 513));
    assert_eq!(driver.bytes(DATA_AT, 512), [7; 512]);
}

#[test]
fn several_queues_are_saved_with_their_positions() {
    let disk = MemoryDisk::new(LEN, false);
    let driver = Driver::new(Blk::new("blk0", disk.clone(), "", 2));
    driver.start(0);
    request(&driver, 0, 1, &[(DATA_AT, 512, WRITE)]);
    driver.function.pause();
    let chain = [
        (HEADER_AT, 16, 0),
        (DATA_AT, 512, WRITE),
        (STATUS_AT, 1, WRITE),
    ];
    driver.fill(HEADER_AT, &header(VIRTIO_BLK_T_IN, 9));
    driver.send(1, 0, &chain);
    driver.notify(1);
    let json = serde_json::to_string(&driver.function.save()).unwrap();
    let state: PciDeviceState = serde_json::from_str(&json).unwrap();
    let other = Blk::new("blk0", disk.clone(), "", 2);
    let other = Driver::with_memory(other, driver.memory.clone());
    other.function.restore(&state).unwrap();
    assert_eq!(other.function.save(), state);
    other.function.resume();
    other.wait_used(1, 1);
    assert_eq!(other.bytes(DATA_AT, 512), [9; 512]);
    assert_eq!(request(&other, 0, 3, &[(DATA_AT, 512, WRITE)]), (OK, 513));
    // Nor does it fit a device of another number of queues.
    let single = Driver::new(Blk::new("blk0", disk, "", 1));
    assert!(single.function.restore(&state).is_err());
}

/// Data buffers: mostly in memory, of any length that there is.
fn hostile_buffers() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let addr = prop_oneof![
        6 => DATA_AT..0x70_0000,
        1 => 0x7f_0000u64..0x90_0000,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        4 => prop::sample::select(vec![0u32, 1, 8, 16, 20, 511, 512, 4096]),
        2 => 0u32..100_000,
        // All of a chain are less than 4 GiB, or it is none.
        1 => any::<u32>().prop_map(|len| len / 16),
    ];
    prop::collection::vec((addr, len), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// A request that has a header and room for a status has an answer, whatever else it says.
    #[test]
    fn any_request_has_a_status(
        requests in prop::collection::vec(
            (
                prop_oneof![4 => 0u32..16, 1 => any::<u32>()],
                prop_oneof![3 => 0u64..(LEN as u64 / 512 + 2), 1 => any::<u64>()],
                hostile_buffers(),
                hostile_buffers(),
                prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 64),
            ),
            1..6,
        ),
    ) {
        let (disk, driver) = setup(false);
        for (kind, sector, readable, writable, data) in requests {
            driver.fill(DATA_AT, &data);
            let mut buffers: Vec<_> = readable.iter().map(|(at, len)| (*at, *len, 0)).collect();
            buffers.extend(writable.iter().map(|(at, len)| (*at, *len, WRITE)));
            let (status, _) = request(&driver, kind, sector, &buffers);
            prop_assert!(matches!(status, OK | IOERR | UNSUPP), "{status}");
            // A panic of the device's thread would end here, too.
            prop_assert_eq!(driver.status() & 0x40, 0);
        }
        prop_assert_eq!(lock(&disk.data).len(), LEN);
    }
}
