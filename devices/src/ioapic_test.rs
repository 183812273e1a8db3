use std::io;

use proptest::prelude::*;

use super::*;
use crate::irq::MsiVector;

#[derive(Default)]
struct Sent(Mutex<Vec<MsiMessage>>);

impl Sent {
    fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MsiController for Sent {
    fn allocate(&self, _count: u16) -> io::Result<Vec<Box<dyn MsiVector>>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn send(&self, message: MsiMessage) -> io::Result<()> {
        self.0.lock().unwrap().push(message);
        Ok(())
    }
}

type Updates = Arc<Mutex<Vec<(u8, Option<MsiMessage>)>>>;

struct Routes(Updates);

impl IoApicRoutes for Routes {
    fn update(&self, pin: u8, message: Option<MsiMessage>) {
        self.0.lock().unwrap().push((pin, message));
    }
}

fn ioapic() -> (Arc<IoApic>, Arc<Sent>, Updates) {
    let (sent, updates) = (Arc::new(Sent::default()), Updates::default());
    let ioapic = IoApic::new(sent.clone(), Box::new(Routes(updates.clone())));
    (ioapic, sent, updates)
}

fn write(ioapic: &IoApic, register: u8, value: u32) {
    ioapic.write(SELECT, &u32::from(register).to_le_bytes());
    ioapic.write(WINDOW, &value.to_le_bytes());
}

fn read(ioapic: &IoApic, register: u8) -> u32 {
    ioapic.write(SELECT, &u32::from(register).to_le_bytes());
    let mut data = [0; 4];
    ioapic.read(WINDOW, &mut data);
    u32::from_le_bytes(data)
}

fn program(ioapic: &IoApic, pin: u8, entry: u64) {
    let low = REG_REDIRECTION + 2 * pin;
    write(ioapic, low + 1, (entry >> 32) as u32);
    write(ioapic, low, entry as u32);
}

#[test]
fn after_reset_every_pin_is_masked() {
    let (ioapic, sent, _) = ioapic();
    assert_eq!(read(&ioapic, REG_VERSION), 0x0017_0011);
    for pin in 0..IOAPIC_PINS {
        assert_eq!(read(&ioapic, REG_REDIRECTION + 2 * pin), MASKED as u32);
        ioapic.line(pin).pulse();
    }
    assert!(sent.take().is_empty());
    assert_eq!(read(&ioapic, 0x40), u32::MAX, "no such register");
}

#[test]
fn an_edge_sends_one_message_to_the_destination() {
    let (ioapic, sent, updates) = ioapic();
    program(&ioapic, 4, 3 << DESTINATION_SHIFT | 0x31);
    let message = MsiMessage {
        address: 0xFEE0_3000,
        data: 0x31,
    };
    assert_eq!(updates.lock().unwrap().last(), Some(&(4, Some(message))));
    let line = ioapic.line(4);
    line.set_level(true);
    line.set_level(true);
    assert_eq!(sent.take(), [message]);
    line.set_level(false);
    assert!(sent.take().is_empty());
    line.pulse();
    assert_eq!(sent.take(), [message]);
}

#[test]
fn an_edge_at_a_masked_pin_is_lost() {
    let (ioapic, sent, _) = ioapic();
    program(&ioapic, 4, MASKED | 0x31);
    ioapic.line(4).set_level(true);
    program(&ioapic, 4, 0x31);
    assert!(sent.take().is_empty());
}

#[test]
fn a_level_repeats_at_each_end_of_interrupt_until_it_is_low() {
    let (ioapic, sent, _) = ioapic();
    program(&ioapic, 9, DESTINATION_LOGICAL | LEVEL_TRIGGERED | 0x52);
    let line = ioapic.line(9);
    line.set_level(true);
    let first = sent.take();
    assert_eq!(
        first,
        [MsiMessage {
            address: 0xFEE0_0004,
            data: 0xC052,
        }]
    );
    assert_ne!(
        read(&ioapic, REG_REDIRECTION + 18) & REMOTE_IRR as u32,
        0,
        "in service"
    );
    ioapic.end_of_interrupt(0x51);
    assert!(sent.take().is_empty(), "another vector's end");
    ioapic.end_of_interrupt(0x52);
    assert_eq!(sent.take(), first);
    line.set_level(false);
    ioapic.end_of_interrupt(0x52);
    assert!(sent.take().is_empty());
    assert_eq!(read(&ioapic, REG_REDIRECTION + 18) & REMOTE_IRR as u32, 0);
}

#[test]
fn a_level_that_rose_while_masked_is_sent_at_unmasking() {
    let (ioapic, sent, _) = ioapic();
    program(&ioapic, 9, MASKED | LEVEL_TRIGGERED | 0x52);
    ioapic.line(9).set_level(true);
    assert!(sent.take().is_empty());
    program(&ioapic, 9, LEVEL_TRIGGERED | 0x52);
    assert_eq!(sent.take().len(), 1);
}

#[test]
fn switching_to_edge_clears_a_stuck_interrupt() {
    let (ioapic, sent, _) = ioapic();
    program(&ioapic, 9, LEVEL_TRIGGERED | 0x52);
    ioapic.line(9).set_level(true);
    sent.take();
    program(&ioapic, 9, MASKED | 0x52);
    assert_eq!(read(&ioapic, REG_REDIRECTION + 18) & REMOTE_IRR as u32, 0);
    program(&ioapic, 9, LEVEL_TRIGGERED | 0x52);
    assert_eq!(sent.take().len(), 1);
}

#[test]
fn read_only_bits_cannot_be_written() {
    let (ioapic, _, _) = ioapic();
    program(&ioapic, 0, u64::MAX);
    let entry = ioapic.save().redirection[0];
    assert_eq!(entry & READ_ONLY, 0);
    write(&ioapic, REG_ID, u32::MAX);
    assert_eq!(read(&ioapic, REG_ID), ID_MASK);
    write(&ioapic, REG_VERSION, 0);
    assert_eq!(read(&ioapic, REG_VERSION), VERSION);
}

#[test]
fn a_saved_state_continues_where_it_was() {
    let (one, _, _) = ioapic();
    program(&one, 9, LEVEL_TRIGGERED | 0x52);
    one.line(9).set_level(true);
    let json = serde_json::to_string(&one.save()).unwrap();

    let (other, sent, updates) = ioapic();
    other.restore(&serde_json::from_str(&json).unwrap());
    assert_eq!(other.save(), one.save());
    assert!(sent.take().is_empty(), "was sent before");
    assert_eq!(updates.lock().unwrap().len(), PINS);
    assert!(updates.lock().unwrap()[9].1.is_some());
    assert!(updates.lock().unwrap()[8].1.is_none());
    other.end_of_interrupt(0x52);
    assert_eq!(sent.take().len(), 1, "the line is still high");
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_harmless(
        steps in prop::collection::vec(
            (0u64..0x50, prop::collection::vec(any::<u8>(), 1..9), any::<u8>(), any::<bool>()),
            0..200,
        )
    ) {
        let (ioapic, sent, _) = ioapic();
        for (offset, data, pin, high) in steps {
            ioapic.write(offset & !0xF, &data);
            ioapic.line(pin % 30).set_level(high);
            let mut out = vec![0; data.len()];
            ioapic.read(offset & !0xF, &mut out);
            ioapic.end_of_interrupt(pin);
        }
        for message in sent.take() {
            prop_assert_eq!(message.address & !0xF_F004, LAPIC_START);
        }
    }
}
