//! Registers as little-endian bytes.

/// Copies the bytes of `registers` at `offset` into `data`. Bytes of `data` beyond their end are
/// not changed.
pub(crate) fn read_registers(registers: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset)
        .ok()
        .and_then(|o| registers.get(o..));
    if let Some(from) = from {
        let len = from.len().min(data.len());
        data[..len].copy_from_slice(&from[..len]);
    }
}

/// A little-endian value of up to 8 bytes.
pub(crate) fn le_value(data: &[u8]) -> u64 {
    data.iter()
        .take(8)
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
