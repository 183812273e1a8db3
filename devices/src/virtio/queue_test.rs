use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;

use super::super::testing::{INDIRECT, MockMsi, NEXT, WRITE, memory};
use super::*;
use crate::irq::MsiController;
use crate::pci::Msix;

const SIZE: u16 = 16;
const USED_RING: u64 = 0x8000;

struct Setup {
    msi: MockMsi,
    memory: GuestMemory,
}

impl Setup {
    fn new() -> Self {
        Self {
            msi: MockMsi::default(),
            memory: memory(),
        }
    }

    fn mock(&self) -> MockSplitQueue<'_, GuestMemory> {
        MockSplitQueue::create(&self.memory, GuestAddress(0x1000), SIZE)
    }

    fn state(&self, mock: &MockSplitQueue<'_, GuestMemory>) -> QueueState {
        QueueState {
            enabled: true,
            desc_table: mock.desc_table_addr().0,
            avail_ring: mock.avail_addr().0,
            // The mock's own place for it overlaps the available ring.
            used_ring: USED_RING,
            ..QueueState::new(SIZE)
        }
    }

    fn open(&self, state: &QueueState, features: u64) -> Result<Virtqueue, QueueError> {
        let mut msix = Msix::new(self.msi.allocate(1).unwrap());
        msix.set_control(1 << 15);
        msix.write_table(12, &[0; 4]);
        let interrupt = Interrupt::new(1, msix);
        interrupt.set_queue_vector(0, 0);
        Virtqueue::new(
            0,
            state,
            features,
            self.memory.clone(),
            Event::new()?,
            interrupt,
            Arc::default(),
        )
    }
}

fn store(mock: &MockSplitQueue<'_, GuestMemory>, at: u16, addr: u64, len: u32, flags: u16, n: u16) {
    let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, n));
    mock.desc_table().store(at, descriptor).unwrap();
}

fn offer(mock: &MockSplitQueue<'_, GuestMemory>, head: u16) {
    let next = mock.avail().idx().load();
    let slot = usize::from(next % SIZE);
    mock.avail().ring().ref_at(slot).unwrap().store(head);
    mock.avail().idx().store(next.wrapping_add(1));
}

#[test]
fn chains_come_out_as_they_went_in() {
    let setup = Setup::new();
    let mock = setup.mock();
    store(&mock, 3, 0x10_0000, 16, NEXT, 5);
    store(&mock, 5, 0x20_0000, 0, NEXT, 4);
    store(&mock, 4, 0x30_0000, 512, NEXT | WRITE, 0);
    store(&mock, 0, 0x40_0000, 1, WRITE, 9);
    offer(&mock, 3);
    let mut queue = setup.open(&setup.state(&mock), 0).unwrap();
    let mut chain = Chain::default();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(chain.head, 3);
    assert_eq!((chain.readable.len(), chain.readable_len()), (1, 16));
    assert_eq!((chain.writable.len(), chain.writable_len()), (2, 513));
    queue.undo_pop();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(chain.head, 3);
    assert!(!queue.pop(&mut chain).unwrap());
    queue.push(3, 513).unwrap();
    let used_idx: u16 = setup.memory.read_obj(GuestAddress(USED_RING + 2)).unwrap();
    assert_eq!(used_idx, 1);
    queue.stop.store(true, Ordering::Release);
    offer(&mock, 3);
    assert!(!queue.pop(&mut chain).unwrap(), "no more after stop");
    assert!(!queue.enable_notifications().unwrap());
}

#[test]
fn indirect_tables_are_followed() {
    let setup = Setup::new();
    let mock = setup.mock();
    let table = 0x10_0000;
    for (i, flags) in [(0, NEXT), (1, NEXT | WRITE), (2, WRITE)] {
        let d = RawDescriptor::from(Descriptor::new(0x20_0000, 8, flags, i + 1));
        let at = GuestAddress(table + 16 * u64::from(i));
        setup.memory.write_obj(d, at).unwrap();
    }
    store(&mock, 0, table, 48, INDIRECT, 0);
    offer(&mock, 0);
    let mut queue = setup.open(&setup.state(&mock), 0).unwrap();
    let mut chain = Chain::default();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 16));
}

#[test]
fn broken_chains_are_errors() {
    type Case<'a> = (&'a str, &'a [(u16, u64, u32, u16, u16)]);
    let cases: &[Case<'_>] = &[
        ("loop", &[(0, 0x1000, 4, NEXT, 1), (1, 0x1000, 4, NEXT, 0)]),
        ("self loop", &[(0, 0x1000, 4, NEXT, 0)]),
        ("next out of table", &[(0, 0x1000, 4, NEXT, SIZE)]),
        (
            "readable after writable",
            &[(0, 0x1000, 4, NEXT | WRITE, 1), (1, 0x1000, 4, 0, 0)],
        ),
        (
            "more than 4 GiB",
            &[(0, 0, u32::MAX, NEXT, 1), (1, 0, u32::MAX, 0, 0)],
        ),
        (
            "indirect table of odd size",
            &[(0, 0x1000, 17, INDIRECT, 0)],
        ),
        ("empty indirect table", &[(0, 0x1000, 0, INDIRECT, 0)]),
        (
            "indirect table outside of memory",
            &[(0, 0xffff_ffff_ffff_fff0, 32, INDIRECT, 0)],
        ),
        ("huge indirect table", &[(0, 0, 0xffff_fff0, INDIRECT, 0)]),
        // The descriptor table itself serves as the indirect table.
        ("nested indirect table", &[(0, 0x1000, 256, INDIRECT, 0)]),
    ];
    for (what, descriptors) in cases {
        let setup = Setup::new();
        let mock = setup.mock();
        for (at, addr, len, flags, next) in *descriptors {
            store(&mock, *at, *addr, *len, *flags, *next);
        }
        offer(&mock, 0);
        let mut queue = setup.open(&setup.state(&mock), 0).unwrap();
        let result = queue.pop(&mut Chain::default());
        assert!(
            matches!(result, Err(QueueError::Chain { head: 0, .. })),
            "{what}: {result:?}"
        );
    }
}

#[test]
fn broken_rings_are_errors() {
    let setup = Setup::new();
    let mock = setup.mock();
    let mut queue = setup.open(&setup.state(&mock), 0).unwrap();
    mock.avail().idx().store(SIZE + 1);
    assert!(matches!(
        queue.pop(&mut Chain::default()),
        Err(QueueError::Ring { .. })
    ));
    let mock = setup.mock();
    offer(&mock, SIZE);
    let mut queue = setup.open(&setup.state(&mock), 0).unwrap();
    assert!(queue.pop(&mut Chain::default()).is_err());
    assert!(queue.push(SIZE, 0).is_err());
}

#[test]
fn impossible_layouts_are_refused() {
    let setup = Setup::new();
    let mock = setup.mock();
    let good = setup.state(&mock);
    let with = |change: fn(&mut QueueState)| {
        let mut state = good.clone();
        change(&mut state);
        setup.open(&state, 0)
    };
    assert!(with(|_| {}).is_ok());
    assert!(with(|s| s.size = 0).is_err());
    assert!(with(|s| s.size = 3).is_err());
    assert!(with(|s| s.size = 32).is_err());
    assert!(with(|s| s.desc_table = 0x1008).is_err());
    assert!(with(|s| s.desc_table = 8 << 20).is_err());
    assert!(with(|s| s.desc_table = u64::MAX - 15).is_err());
    assert!(with(|s| s.avail_ring = 0).is_err());
    assert!(with(|s| s.avail_ring = (8 << 20) - 2).is_err());
    assert!(with(|s| s.avail_ring = u64::MAX - 1).is_err());
    assert!(with(|s| s.used_ring = 0x2002).is_err());
    assert!(with(|s| s.used_ring = u64::MAX - 3).is_err());
}

#[test]
fn a_disabled_queue_is_empty_whatever_it_points_to() {
    let setup = Setup::new();
    let state = QueueState {
        desc_table: u64::MAX,
        ..QueueState::new(SIZE)
    };
    let mut queue = setup.open(&state, 0).unwrap();
    assert!(!queue.pop(&mut Chain::default()).unwrap());
    assert!(!queue.enable_notifications().unwrap());
    queue.disable_notifications().unwrap();
    queue.push(0, 0).unwrap();
    queue.interrupt().unwrap();
    assert!(setup.msi.delivered().is_empty());
}

#[test]
fn interrupts_are_suppressed_as_the_driver_wishes() {
    let setup = Setup::new();
    let mock = setup.mock();
    let mut queue = setup.open(&setup.state(&mock), F_EVENT_IDX).unwrap();
    let used_event = GuestAddress(mock.avail_addr().0 + 4 + 2 * u64::from(SIZE));
    setup.memory.write_obj(2u16, used_event).unwrap();
    for expected in [0, 0, 1, 1] {
        queue.push(0, 0).unwrap();
        queue.interrupt().unwrap();
        assert_eq!(setup.msi.delivered().len(), expected);
    }
    // The one it waits for may be any of several returned together.
    setup.memory.write_obj(5u16, used_event).unwrap();
    queue.push_all(&[(1, 10), (2, 20), (3, 30)]).unwrap();
    queue.interrupt().unwrap();
    assert_eq!(setup.msi.delivered().len(), 2);
    let used = |at: u64| -> [u32; 2] {
        let at = GuestAddress(USED_RING + 4 + 8 * at);
        setup.memory.read_obj(at).unwrap()
    };
    assert_eq!([used(4), used(5), used(6)], [[1, 10], [2, 20], [3, 30]]);
    let used_idx: u16 = setup.memory.read_obj(GuestAddress(USED_RING + 2)).unwrap();
    assert_eq!(used_idx, 7);
    // Without EVENT_IDX it is the flag.
    let setup = Setup::new();
    let mock = setup.mock();
    let mut queue = setup.open(&setup.state(&mock), 0).unwrap();
    queue.push(0, 0).unwrap();
    queue.interrupt().unwrap();
    assert_eq!(setup.msi.delivered().len(), 1);
    setup.memory.write_obj(1u16, mock.avail_addr()).unwrap();
    queue.push(0, 0).unwrap();
    queue.interrupt().unwrap();
    assert_eq!(setup.msi.delivered().len(), 1);
}

fn chain(buffers: &[(u64, u32)]) -> Chain {
    let buffer = |(addr, len): &(u64, u32)| Buffer {
        addr: GuestAddress(*addr),
        len: *len,
    };
    Chain {
        head: 0,
        readable: buffers.iter().map(buffer).collect(),
        writable: buffers.iter().map(buffer).collect(),
    }
}

#[test]
fn buffers_outside_of_memory_are_noticed() {
    let memory = memory();
    let end = 8 << 20;
    for bad in [
        chain(&[(end, 4)]),
        chain(&[(end - 2, 4)]),
        chain(&[(0x1000, 2), (u64::MAX - 1, 2)]),
        chain(&[(u64::MAX, 4)]),
        chain(&[(0x1000, 3)]),
        chain(&[]),
    ] {
        assert!(!bad.read(&memory, 0, &mut [0; 4]), "{bad:?}");
        assert!(!bad.write(&memory, 0, &[0; 4]), "{bad:?}");
        assert!(!bad.write(&memory, u64::MAX, &[0; 4]), "{bad:?}");
    }
}

proptest! {
    /// Whatever the buffers and the offset, the bytes land in order.
    #[test]
    fn scattered_bytes_come_back(
        lens in prop::collection::vec(1u32..40, 1..8),
        offset in 0u64..100,
        data in prop::collection::vec(any::<u8>(), 0..150),
    ) {
        let memory = memory();
        let buffers: Vec<_> = (0..).map(|i| 0x1000 * (i + 1)).zip(lens.clone()).collect();
        let chain = chain(&buffers);
        let total: u64 = lens.iter().map(|l| u64::from(*l)).sum();
        let fits = offset + data.len() as u64 <= total;
        prop_assert_eq!(chain.write(&memory, offset, &data), fits);
        if fits {
            let mut back = vec![0; data.len()];
            prop_assert!(chain.read(&memory, offset, &mut back));
            prop_assert_eq!(&back, &data);
            // The same, by a walk over single bytes.
            let flat: Vec<u64> = buffers
                .iter()
                .flat_map(|(addr, len)| (0..u64::from(*len)).map(move |i| addr + i))
                .collect();
            for (i, byte) in data.iter().enumerate() {
                let addr = GuestAddress(flat[offset as usize + i]);
                prop_assert_eq!(memory.read_obj::<u8>(addr).unwrap(), *byte);
            }
        }
    }

    /// No content of the tables makes the queue panic or run for ever.
    #[test]
    fn random_descriptors_do_no_harm(
        descriptors in prop::collection::vec(
            (any::<u64>(), any::<u32>(), 0u16..8, 0u16..20),
            SIZE as usize,
        ),
        heads in prop::collection::vec(0u16..20, 1..16),
        near in any::<bool>(),
    ) {
        let setup = Setup::new();
        let mock = setup.mock();
        for (i, (addr, len, flags, next)) in (0..).zip(descriptors) {
            let (addr, len) = if near { (addr % (8 << 20), len % 0x1000) } else { (addr, len) };
            store(&mock, i, addr, len, flags, next);
        }
        heads.iter().for_each(|head| offer(&mock, *head));
        let mut queue = setup.open(&setup.state(&mock), F_EVENT_IDX).unwrap();
        let mut chain = Chain::default();
        for _ in 0..heads.len() {
            match queue.pop(&mut chain) {
                Ok(true) => {
                    let _ = chain.read(&setup.memory, 3, &mut [0; 100]);
                    let _ = queue.push(chain.head, 0);
                }
                Ok(false) | Err(_) => break,
            }
        }
    }
}
