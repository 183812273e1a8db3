//! Entropy device (virtio 1.2, section 5.4).

use super::{
    ActivateContext, Chain, DeviceState, QueueError, QueueWorker, VirtioDevice, Virtqueue, Workers,
};

const QUEUE_SIZE: u16 = 16;

/// Maximum number of random bytes in one request. Drivers ask again for the rest.
const MAX_REQUEST: usize = 16 << 10;

/// Maximum bytes that the host returns at a time.
const ENTROPY: usize = 256;

/// A source of random bytes: the host's.
#[derive(Debug, Default)]
pub struct Rng(());

impl Rng {
    /// The device.
    pub fn new() -> Self {
        Self(())
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn device_type(&self) -> u16 {
        4
    }

    fn pci_class(&self) -> u32 {
        0x00_ff_00
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _context: ActivateContext) -> std::io::Result<Workers> {
        Ok(vec![Box::new(RngWorker::default())])
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }
}

#[derive(Default)]
struct RngWorker {
    chain: Chain,
}

impl QueueWorker for RngWorker {
    fn queue_ready(&mut self, queues: &mut [Virtqueue], index: usize) -> Result<(), QueueError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(());
        };
        loop {
            queue.disable_notifications()?;
            while queue.pop(&mut self.chain)? {
                let written = fill(queue, &self.chain)?;
                queue.push(self.chain.head, written)?;
                queue.interrupt()?;
            }
            if !queue.enable_notifications()? {
                return Ok(());
            }
        }
    }
}

/// Fills a request's buffers, and returns the number of bytes written.
fn fill(queue: &Virtqueue, chain: &Chain) -> Result<u32, QueueError> {
    let mut entropy = [0; ENTROPY];
    let len = chain.writable_len().min(MAX_REQUEST as u64) as usize;
    for at in (0..len).step_by(ENTROPY) {
        let entropy = &mut entropy[..(len - at).min(ENTROPY)];
        random(entropy)?;
        if !chain.write(queue.memory(), at as u64, entropy) {
            return Err(queue.malformed(chain.head, "its buffers are not in guest memory"));
        }
    }
    Ok(len as u32)
}

/// Fills at most [`ENTROPY`] bytes.
fn random(data: &mut [u8]) -> std::io::Result<()> {
    // SAFETY: the pointer and the length are those of a slice that is ours to write.
    let result = unsafe { libc::getentropy(data.as_mut_ptr().cast(), data.len()) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Driver, WRITE};
    use super::*;
    use crate::pci::PciDevice;

    fn request(driver: &Driver, buffers: &[(u64, u32, u16)]) -> u32 {
        let done = driver.used_idx(0);
        driver.send(0, 0, buffers);
        driver.notify(0);
        driver.wait_used(0, done + 1);
        driver.used(0, done).1
    }

    #[test]
    fn requests_are_filled() {
        let driver = Driver::new(Rng::new());
        driver.start(0);
        driver.fill(0x10_0000, &[0; 4096]);
        let buffers = [(0x10_0000, 1000, WRITE), (0x10_0800, 1000, WRITE)];
        assert_eq!(request(&driver, &buffers), 2000);
        let (a, b) = (driver.bytes(0x10_0000, 1000), driver.bytes(0x10_0800, 1000));
        // 64 zero bytes in a row, or twice the same bytes, do not happen by chance.
        for bytes in [&a, &b] {
            assert!(bytes.windows(64).all(|w| w.iter().any(|b| *b != 0)));
        }
        assert_ne!(a, b);
        assert_eq!(driver.bytes(0x10_0000 + 1000, 24), [0; 24]);
    }

    #[test]
    fn large_and_empty_requests_are_bounded() {
        let driver = Driver::new(Rng::new());
        driver.start(0);
        let len = request(&driver, &[(0x10_0000, 1 << 20, WRITE)]);
        assert_eq!(len as usize, MAX_REQUEST);
        assert_eq!(request(&driver, &[(0x10_0000, 10, 0)]), 0);
        assert_eq!(driver.read(0x2000, 4), 0xffff_ffff);
    }

    #[test]
    fn a_buffer_outside_of_memory_breaks_the_device() {
        let driver = Driver::new(Rng::new());
        driver.start(0);
        driver.send(0, 0, &[(8 << 20, 8, WRITE)]);
        driver.notify(0);
        driver.wait_broken();
    }

    #[test]
    fn states_round_trip() {
        let driver = Driver::new(Rng::new());
        driver.start(0);
        request(&driver, &[(0x10_0000, 16, WRITE)]);
        driver.function.pause();
        let state = driver.function.save();
        let other = Driver::with_memory(Rng::new(), driver.memory.clone());
        other.function.restore(&state).unwrap();
        assert_eq!(other.function.save(), state);
        other.function.resume();
        assert_eq!(request(&other, &[(0x10_0000, 16, WRITE)]), 16);
    }
}
