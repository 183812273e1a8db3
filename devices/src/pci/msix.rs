//! MSI-X: the vector table and pending bits of a function (PCI Local Bus 3.0, section 6.8.2).

use crate::irq::{MsiMessage, MsiVector};

use super::registers::{le_value, read_registers};
use crate::state::{MsixState, RestoreError};

/// Maximum number of vectors of a function here, so that the pending bits are one word.
pub const MAX_MSIX_VECTORS: u16 = 64;

const ENTRY: u64 = 16;
const ENTRY_MASKED: u32 = 1;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;

/// Address low, address high, data, vector control.
type Entry = [u32; 4];

const RESET_ENTRY: Entry = [0, 0, 0, ENTRY_MASKED];

struct Vector {
    entry: Entry,
    backend: Box<dyn MsiVector>,
    /// The last configuration sent to the backend, to avoid updates without a change.
    told: Option<MsiMessage>,
}

impl Vector {
    fn message(&self) -> MsiMessage {
        let [low, high, data, _] = self.entry;
        MsiMessage {
            address: u64::from(high) << 32 | u64::from(low & !3),
            data,
        }
    }
}

/// The MSI-X vectors of a function.
///
/// Masking is done here: while a vector is masked, its interrupts only set the pending bit. The
/// backend is updated only when the vector is unmasked with another message, because guests mask
/// and unmask often, and changing a route in a hypervisor is slow.
pub struct Msix {
    vectors: Vec<Vector>,
    pending: u64,
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// A table with a masked vector for each of `backends`. Those beyond [`MAX_MSIX_VECTORS`] are
    /// dropped.
    pub fn new(backends: Vec<Box<dyn MsiVector>>) -> Self {
        let vector = |backend| Vector {
            entry: RESET_ENTRY,
            backend,
            told: None,
        };
        Self {
            vectors: backends
                .into_iter()
                .take(MAX_MSIX_VECTORS.into())
                .map(vector)
                .collect(),
            pending: 0,
            enabled: false,
            masked: false,
        }
    }

    /// Number of vectors.
    pub fn len(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// True if there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The MSI-X Enable bit.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The body of the MSI-X capability (after id and link) and its writable bits, for a table and
    /// pending bits at the given offsets of BAR `bar`.
    pub fn capability(&self, bar: u8, table: u32, pba: u32) -> (Vec<u8>, Vec<u8>) {
        let mut body = Vec::with_capacity(10);
        body.extend((self.len().saturating_sub(1)).to_le_bytes());
        body.extend((table | u32::from(bar)).to_le_bytes());
        body.extend((pba | u32::from(bar)).to_le_bytes());
        (body, (CONTROL_ENABLE | CONTROL_MASK).to_le_bytes().to_vec())
    }

    /// Applies a Message Control word that the guest wrote.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.masked = control & CONTROL_MASK != 0;
        for index in 0..self.vectors.len() {
            self.update(index);
        }
    }

    fn deliverable(&self, index: usize) -> bool {
        let masked = |v: &Vector| v.entry[3] & ENTRY_MASKED != 0;
        self.enabled && !self.masked && self.vectors.get(index).is_some_and(|v| !masked(v))
    }

    /// Configures the backend for an unmasked vector, and delivers a pending interrupt.
    fn update(&mut self, index: usize) {
        if !self.deliverable(index) {
            return;
        }
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let message = vector.message();
        if vector.told != Some(message) {
            match vector.backend.configure(Some(message)) {
                Ok(()) => vector.told = Some(message),
                Err(error) => {
                    vector.told = None;
                    tracing::warn!(index, ?message, %error, "cannot route an MSI-X vector");
                }
            }
        }
        if self.pending & 1 << index != 0 {
            self.pending &= !(1 << index);
            self.trigger(index as u16);
        }
    }

    /// Signals a vector. Does nothing if it does not exist or MSI-X is disabled.
    pub fn trigger(&mut self, index: u16) {
        let at = usize::from(index);
        if !self.enabled || at >= self.vectors.len() {
            return;
        }
        if !self.deliverable(at) {
            self.pending |= 1 << at;
        } else if let Some(Err(error)) = self.vectors.get(at).map(|v| v.backend.trigger()) {
            tracing::warn!(index, %error, "cannot deliver an MSI-X interrupt");
        }
    }

    /// Reads from the table: aligned, 4 or 8 bytes. Other accesses do not change `data`.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        for (i, chunk) in (0..).step_by(4).zip(data.chunks_mut(4)) {
            let at = offset.wrapping_add(i);
            let index = usize::try_from(at / ENTRY).ok();
            if let Some(vector) = index.and_then(|i| self.vectors.get(i)) {
                let field = (at % ENTRY / 4) as usize;
                chunk.copy_from_slice(&vector.entry[field].to_le_bytes());
            }
        }
    }

    /// Writes to the table: aligned, 4 or 8 bytes. Other accesses are dropped.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        let Ok(index) = usize::try_from(offset / ENTRY) else {
            return;
        };
        // Eight aligned bytes lie within one entry.
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        for (i, chunk) in (0..).step_by(4).zip(data.chunks(4)) {
            let field = (offset.wrapping_add(i) % ENTRY / 4) as usize;
            let value = le_value(chunk) as u32;
            // All other bits of the vector control are reserved.
            vector.entry[field] = if field == 3 {
                value & ENTRY_MASKED
            } else {
                value
            };
        }
        self.update(index);
    }

    /// Reads from the pending bits: aligned, 4 or 8 bytes.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        if aligned(offset, data.len()) {
            read_registers(&self.pending.to_le_bytes(), offset, data);
        }
    }

    /// Masks all vectors, and disables MSI-X.
    pub fn reset(&mut self) {
        self.enabled = false;
        self.masked = false;
        self.pending = 0;
        for vector in &mut self.vectors {
            vector.entry = RESET_ENTRY;
            if vector.told.take().is_some()
                && let Err(error) = vector.backend.configure(None)
            {
                tracing::warn!(%error, "cannot mask an MSI-X vector");
            }
        }
    }

    /// The state.
    pub fn save(&self) -> MsixState {
        MsixState {
            entries: self.vectors.iter().map(|v| v.entry).collect(),
            pending: self.pending,
            enabled: self.enabled,
            masked: self.masked,
        }
    }

    /// Restores a state and routes its vectors. `device` is named in errors.
    ///
    /// # Errors
    /// The state has another number of vectors.
    pub fn restore(&mut self, state: &MsixState, device: &str) -> Result<(), RestoreError> {
        if state.entries.len() != self.vectors.len() {
            return Err(RestoreError::Mismatch {
                device: device.to_owned(),
                what: "number of MSI-X vectors".to_owned(),
            });
        }
        self.reset();
        for (vector, entry) in self.vectors.iter_mut().zip(&state.entries) {
            vector.entry = *entry;
        }
        self.pending = state.pending;
        let bit = |on, bit| if on { bit } else { 0 };
        self.set_control(bit(state.enabled, CONTROL_ENABLE) | bit(state.masked, CONTROL_MASK));
        Ok(())
    }
}

fn aligned(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::MsiController;
    use crate::virtio::testing::MockMsi;

    fn setup(count: u16) -> (MockMsi, Msix) {
        let msi = MockMsi::default();
        let vectors = msi.allocate(count).unwrap();
        (msi, Msix::new(vectors))
    }

    fn program(msix: &mut Msix, index: u64, data: u32) {
        msix.write_table(index * 16, &0xfee0_1000u32.to_le_bytes());
        msix.write_table(index * 16 + 4, &0u32.to_le_bytes());
        msix.write_table(index * 16 + 8, &data.to_le_bytes());
    }

    #[test]
    fn a_masked_vector_is_pending_until_it_is_unmasked() {
        let (msi, mut msix) = setup(2);
        msix.set_control(CONTROL_ENABLE);
        program(&mut msix, 1, 0x31);
        msix.trigger(1);
        assert!(msi.delivered().is_empty());
        let mut pba = [0; 8];
        msix.read_pba(0, &mut pba);
        assert_eq!(pba, 2u64.to_le_bytes());
        msix.write_table(16 + 12, &0u32.to_le_bytes());
        assert_eq!(msi.delivered(), [0x31]);
        msix.read_pba(0, &mut pba);
        assert_eq!(pba, [0; 8]);
        msix.trigger(1);
        assert_eq!(msi.delivered(), [0x31, 0x31]);
    }

    #[test]
    fn the_function_mask_covers_all_vectors() {
        let (msi, mut msix) = setup(1);
        program(&mut msix, 0, 7);
        msix.write_table(12, &0u32.to_le_bytes());
        msix.trigger(0);
        assert_eq!(msix.save().pending, 0, "MSI-X is disabled");
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
        msix.trigger(0);
        assert!(msi.delivered().is_empty());
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(msi.delivered(), [7]);
    }

    #[test]
    fn masking_and_unmasking_does_not_bother_the_backend() {
        let (msi, mut msix) = setup(1);
        msix.set_control(CONTROL_ENABLE);
        program(&mut msix, 0, 7);
        for _ in 0..10 {
            msix.write_table(12, &0u32.to_le_bytes());
            msix.write_table(12, &1u32.to_le_bytes());
        }
        assert_eq!(msi.configured(), 1);
        program(&mut msix, 0, 8);
        msix.write_table(12, &0u32.to_le_bytes());
        assert_eq!(msi.configured(), 2);
        msix.trigger(0);
        assert_eq!(msi.delivered(), [8]);
    }

    #[test]
    fn odd_accesses_are_dropped() {
        let (_, mut msix) = setup(1);
        for (offset, len) in [(0, 1), (2, 2), (2, 4), (4, 8), (16, 4), (u64::MAX - 7, 8)] {
            msix.write_table(offset, &vec![0xee; len]);
            let mut data = vec![0xff; len];
            msix.read_table(offset, &mut data);
            assert!(
                data.iter().all(|b| *b == 0xff) || offset == 4,
                "{offset}/{len}"
            );
            msix.read_pba(offset, &mut data);
        }
        assert_eq!(msix.save().entries, [RESET_ENTRY]);
        msix.trigger(1);
        msix.trigger(u16::MAX);
    }

    #[test]
    fn states_round_trip() {
        let (_, mut a) = setup(3);
        a.set_control(CONTROL_ENABLE);
        program(&mut a, 2, 0x55);
        a.write_table(2 * 16 + 12, &0u32.to_le_bytes());
        a.trigger(0);
        let state = a.save();
        let (msi, mut b) = setup(3);
        b.restore(&state, "b").unwrap();
        assert_eq!(b.save(), state);
        b.trigger(2);
        assert_eq!(msi.delivered(), [0x55]);
        assert!(setup(2).1.restore(&state, "c").is_err());
    }
}
