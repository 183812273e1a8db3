//! Serial port: a 16550A.

use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{SerialEvents, SerialState as UartState};

use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::sync::lock;

/// Size of the receive FIFO in bytes.
const FIFO_SIZE: usize = 64;

/// Raises an interrupt as one edge. The UART keeps its cause in IIR until the guest has read it,
/// and raises the next edge only after that.
struct Edge(Arc<dyn IrqLine>);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// Tells the owner that the guest has read all input.
struct Drained(Arc<dyn Fn() + Send + Sync>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        (self.0)();
    }
}

type Output = Box<dyn Write + Send>;
type Uart = vm_superio::Serial<Edge, Drained, Output>;

/// A shared handle on the real sink of the guest's output.
///
/// It is shared because a UART owns its sink, and restoring a state makes a new UART.
struct Shared(Arc<Mutex<Output>>);

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        lock(&self.0).flush()
    }
}

/// A 16550A UART. The guest's output goes to a sink, and its input comes from [`Serial::enqueue`].
///
/// It occupies 8 ports and raises one edge of its interrupt line for each cause.
pub struct Serial {
    uart: Mutex<Uart>,
    output: Arc<Mutex<Output>>,
    irq: Arc<dyn IrqLine>,
    drained: Arc<dyn Fn() + Send + Sync>,
}

/// Why a saved state cannot be restored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SerialError {
    /// It has more input than fits into the FIFO.
    #[error("the saved serial port has {0} bytes of input, but its FIFO holds only {FIFO_SIZE}")]
    TooMuchInput(usize),
}

/// Registers and pending input of a [`Serial`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// Input that the guest has not read, at most 64 bytes.
    pub input: Vec<u8>,
}

impl Serial {
    /// A UART after reset. Each byte is written to `output` and flushed. If that fails, the byte is
    /// lost and the error is traced.
    pub fn new(
        irq: Arc<dyn IrqLine>,
        output: Output,
        drained: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let drained: Arc<dyn Fn() + Send + Sync> = Arc::new(drained);
        let output = Arc::new(Mutex::new(output));
        let uart = Uart::with_events(
            Edge(irq.clone()),
            Drained(drained.clone()),
            Box::new(Shared(output.clone())),
        );
        Self {
            uart: Mutex::new(uart),
            output,
            irq,
            drained,
        }
    }

    /// Offers input to the guest without waiting. Returns how many bytes the FIFO accepted.
    ///
    /// If not all were accepted, try again after the function given to [`Serial::new`] was called,
    /// which means that the guest has read everything. That function is called on a vCPU's thread
    /// with the port locked, so it must only notify another thread.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        // The errors are a full FIFO and a failed trigger, and the trigger cannot fail.
        lock(&self.uart).enqueue_raw_bytes(input).unwrap_or(0)
    }

    /// Registers and pending input.
    pub fn save(&self) -> SerialState {
        let s = lock(&self.uart).state();
        SerialState {
            baud_divisor_low: s.baud_divisor_low,
            baud_divisor_high: s.baud_divisor_high,
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            input: s.in_buffer,
        }
    }

    /// Sets registers and pending input, and raises the interrupts for them.
    ///
    /// # Errors
    /// `state` has more input than fits into the FIFO. Then nothing has changed.
    pub fn restore(&self, state: &SerialState) -> Result<(), SerialError> {
        let uart_state = UartState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        };
        let uart = Uart::from_state(
            &uart_state,
            Edge(self.irq.clone()),
            Drained(self.drained.clone()),
            Box::new(Shared(self.output.clone())),
        )
        .map_err(|_| SerialError::TooMuchInput(state.input.len()))?;
        *lock(&self.uart) = uart;
        Ok(())
    }
}

impl BusDevice for Serial {
    fn name(&self) -> &str {
        "serial"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(offset), [value]) => *value = lock(&self.uart).read(offset),
            (_, data) => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data)
            && let Err(error) = lock(&self.uart).write(offset, *value)
        {
            tracing::debug!(%error, "lost serial output");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl IrqLine for Counter {
        fn set_level(&self, high: bool) {
            if high {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            lock(&self.0).extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = 2;
    const LSR: u64 = 5;
    const SCR: u64 = 7;

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    fn serial() -> (Serial, Arc<Counter>, Sink, Event) {
        let (irq, sink) = (Arc::new(Counter::default()), Sink::default());
        let drained = Event::new().unwrap();
        let serial = {
            let drained = drained.clone();
            Serial::new(irq.clone(), Box::new(sink.clone()), move || {
                drained.signal();
            })
        };
        (serial, irq, sink, drained)
    }

    #[test]
    fn output_reaches_the_sink() {
        let (serial, _, sink, _) = serial();
        for byte in b"login: " {
            serial.write(DATA, &[*byte]);
        }
        assert_eq!(*lock(&sink.0), b"login: ");
        assert_ne!(read(&serial, LSR) & 0x20, 0, "always ready for more");
    }

    #[test]
    fn input_is_bounded_by_the_fifo_and_announced() {
        let (serial, irq, _, drained) = serial();
        serial.write(IER, &[1]);
        assert_eq!(serial.enqueue(&[b'x'; 100]), FIFO_SIZE);
        assert_eq!(serial.enqueue(b"y"), 0);
        assert_eq!(irq.0.load(Ordering::SeqCst), 1);
        assert_eq!(read(&serial, IIR) & 0xF, 4, "received data");
        for _ in 0..FIFO_SIZE {
            assert!(!drained.take());
            assert_ne!(read(&serial, LSR) & 1, 0);
            assert_eq!(read(&serial, DATA), b'x');
        }
        assert!(drained.take());
        assert_eq!(read(&serial, LSR) & 1, 0);
        assert_eq!(serial.enqueue(b"y"), 1);
        assert_eq!(irq.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_enabled_transmitter_interrupt_follows_each_byte() {
        let (serial, irq, _, _) = serial();
        serial.write(IER, &[2]);
        let at_enable = irq.0.load(Ordering::SeqCst);
        assert_eq!(at_enable, 1);
        assert_eq!(read(&serial, IIR) & 0xF, 2);
        assert_eq!(read(&serial, IIR) & 0xF, 1, "acknowledged");
        serial.write(DATA, b"a");
        assert_eq!(irq.0.load(Ordering::SeqCst), at_enable + 1);
    }

    #[test]
    fn a_saved_state_continues_where_it_was() {
        let (serial, _, _, _) = serial();
        serial.write(SCR, &[0x5A]);
        serial.write(IER, &[1]);
        serial.enqueue(b"abc");
        read(&serial, DATA);
        let state = serial.save();
        let json = serde_json::to_string(&state).unwrap();

        let (other, irq, sink, _) = self::serial();
        other
            .restore(&serde_json::from_str(&json).unwrap())
            .unwrap();
        assert_eq!(other.save(), state);
        assert_eq!(read(&other, SCR), 0x5A);
        assert_eq!(read(&other, DATA), b'b');
        other.write(DATA, b"!");
        assert_eq!(*lock(&sink.0), b"!");
        assert_eq!(other.enqueue(b"d"), 1);
        assert!(irq.0.load(Ordering::SeqCst) > 0);
    }

    #[test]
    fn a_state_with_too_much_input_is_refused() {
        let (serial, _, _, _) = serial();
        let state = SerialState {
            input: vec![0; FIFO_SIZE + 1],
            ..serial.save()
        };
        assert_eq!(serial.restore(&state), Err(SerialError::TooMuchInput(65)));
    }

    #[test]
    fn wide_accesses_read_all_ones() {
        let (serial, _, sink, _) = serial();
        let mut data = [0; 4];
        serial.read(DATA, &mut data);
        assert_eq!(data, [0xFF; 4]);
        serial.write(DATA, &[1, 2]);
        assert!(lock(&sink.0).is_empty());
    }
}
