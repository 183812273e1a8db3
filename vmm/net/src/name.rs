//! DNS names.

/// True if `name` is a DNS label (RFC 1123, 2.1).
pub(crate) fn is_label(name: &str) -> bool {
    let ends_well = !name.starts_with('-') && !name.ends_with('-');
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&name.len()) && ends_well && name.bytes().all(letters)
}

/// Encodes a name for a message. Its labels are those of members and the domain, which have been
/// checked.
pub(crate) fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes().get(..63).unwrap_or(label.as_bytes());
        bytes.push(label.len() as u8);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}
