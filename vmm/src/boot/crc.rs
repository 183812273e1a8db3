//! The two checksums of on-disk structures.

/// A table-driven, reflected CRC that takes eight bytes at a time, because megabytes of journals
/// are hashed, in unoptimised builds too.
struct Crc([[u32; 256]; 8]);

impl Crc {
    const fn new(polynomial: u32) -> Self {
        let mut tables = [[0u32; 256]; 8];
        let mut i = 0;
        while i < 256 {
            let mut value = i as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 != 0 {
                    (value >> 1) ^ polynomial
                } else {
                    value >> 1
                };
                bit += 1;
            }
            tables[0][i] = value;
            i += 1;
        }
        let mut table = 1;
        while table < 8 {
            let mut i = 0;
            while i < 256 {
                let previous = tables[table - 1][i];
                tables[table][i] = (previous >> 8) ^ tables[0][(previous & 0xff) as usize];
                i += 1;
            }
            table += 1;
        }
        Self(tables)
    }

    fn update(&self, mut crc: u32, bytes: &[u8]) -> u32 {
        let table = &self.0;
        let (blocks, rest) = bytes.as_chunks::<8>();
        for b in blocks {
            let low = crc ^ u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            crc = table[7][(low & 0xff) as usize]
                ^ table[6][(low >> 8 & 0xff) as usize]
                ^ table[5][(low >> 16 & 0xff) as usize]
                ^ table[4][(low >> 24) as usize]
                ^ table[3][usize::from(b[4])]
                ^ table[2][usize::from(b[5])]
                ^ table[1][usize::from(b[6])]
                ^ table[0][usize::from(b[7])];
        }
        for byte in rest {
            crc = (crc >> 8) ^ table[0][((crc ^ u32::from(*byte)) & 0xff) as usize];
        }
        crc
    }
}

static IEEE: Crc = Crc::new(0xEDB8_8320);
static CASTAGNOLI: Crc = Crc::new(0x82F6_3B78);

/// CRC-32 as GPT uses it (UEFI 2.10, 5.3.2).
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !IEEE.update(!0, bytes)
}

/// CRC-32C as ext4 and jbd2 use it: it starts from `seed` (`!0` at first), and is not inverted at
/// the end.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    CASTAGNOLI.update(seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values() {
        // The check values of the catalogued CRC-32/ISO-HDLC and CRC-32/ISCSI.
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
        let (a, b) = b"some bytes that are longer than eight".split_at(13);
        assert_eq!(crc32c(crc32c(!0, a), b), crc32c(!0, &[a, b].concat()));
    }
}
