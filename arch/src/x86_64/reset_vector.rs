//! Code at the real-mode reset vector, where a PC has its firmware. It resets the machine.
//!
//! Linux does not use the ACPI reset register of a hardware-reduced platform. It leaves the reset
//! to the EFI runtime. Without one it jumps to F000:FFF0 in real mode, so there must be code.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

/// GPA of the vector, F000:FFF0.
pub const RESET_VECTOR: u64 = 0xF_FFF0;

/// Writes [`layout::RESET_VALUE`] to [`layout::RESET_PORT`], and halts until that has worked.
const CODE: [u8; 9] = [
    0xBA, // mov dx, RESET_PORT
    layout::RESET_PORT.to_le_bytes()[0],
    layout::RESET_PORT.to_le_bytes()[1],
    0xB0, // mov al, RESET_VALUE
    layout::RESET_VALUE,
    0xEE, // out dx, al
    0xF4, // hlt
    0xEB, // jmp to the hlt
    0xFD,
];

/// Writes the code to the vector. Every machine has memory there.
///
/// # Errors
/// The memory ends below 1 MiB.
pub fn write(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_slice(&CODE, GuestAddress(RESET_VECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_between_the_vector_and_the_first_mebibyte() {
        let memory = crate::allocate(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write(&memory).unwrap();
        let mut read = [0; 16];
        memory
            .read_slice(&mut read, GuestAddress(RESET_VECTOR))
            .unwrap();
        assert_eq!(
            read,
            [
                0xBA, 0x02, 0x06, 0xB0, 0x01, 0xEE, 0xF4, 0xEB, 0xFD, 0, 0, 0, 0, 0, 0, 0
            ]
        );
        assert!(RESET_VECTOR >= layout::ACPI_START + super::super::acpi::tables(255).len() as u64);
        let tiny = crate::allocate(&[(GuestAddress(0), 4096)]).unwrap();
        assert!(write(&tiny).is_err());
    }
}
