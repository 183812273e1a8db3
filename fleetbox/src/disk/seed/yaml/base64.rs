//! Base64, as Python's `base64.decodebytes` reads it.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as text, with padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            // Six bits are an index of the alphabet.
            let six = (bits >> (18 - 6 * index) & 63) as usize;
            text.push(if index <= group.len() {
                char::from(ALPHABET[six])
            } else {
                '='
            });
        }
    }
    text
}

/// The bytes of a text. Characters that are not Base64 are skipped, and the first whole padding ends the text.
///
/// # Errors
/// The last group is not whole, or there are characters that are not ASCII.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, &'static str> {
    if !text.is_ascii() {
        return Err("Base64 is ASCII only");
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held, mut pads) = (0u32, 0, 0);
    for c in text.bytes() {
        if c == b'=' {
            pads += 1;
            if held >= 2 && held + pads >= 4 {
                return Ok(bytes);
            }
            continue;
        }
        let Some(six) = ALPHABET.iter().position(|a| *a == c) else {
            continue;
        };
        pads = 0;
        // An index of the alphabet has six bits.
        bits = bits << 6 | six as u32;
        if held > 0 {
            // The last byte that is complete; what is above it is cut off.
            bytes.push((bits >> (6 - 2 * held)) as u8);
        }
        held = (held + 1) % 4;
    }
    if held == 0 {
        Ok(bytes)
    } else {
        Err("Base64 ends in the middle of a group; is its padding ('=') missing?")
    }
}
