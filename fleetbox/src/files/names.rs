//! Names of files in SFTP's messages, where they are bytes, and in russh-sftp, where they are text.
//!
//! [`over`] stands between the two. It writes each byte of a name that is not UTF-8 as one character of a private range,
//! and each such character as its byte. Text in that form is turned back by [`to_bytes`], also for this host's files.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};

/// The character of byte 0. The range of 256 is in a plane for private use, so that names hardly ever have one of them.
/// Those that do are written byte by byte too.
const FIRST: u32 = 0x10_fe00;

/// Bytes that may wait for russh-sftp, or for the guest.
const BUFFER: usize = 512 << 10;

/// The text for a name.
pub(crate) fn to_text(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if byte_of(c).is_some() {
                push_bytes(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(c);
            }
        }
        push_bytes(&mut text, chunk.invalid());
    }
    text
}

/// The name of a text that [`to_text`] made.
pub(crate) fn to_bytes(text: &str) -> Cow<'_, [u8]> {
    if !text.chars().any(|c| byte_of(c).is_some()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// The name as a path of this host.
pub(crate) fn to_path(text: &str) -> OsString {
    OsString::from_vec(to_bytes(text).into_owned())
}

fn byte_of(c: char) -> Option<u8> {
    u8::try_from(u32::from(c).checked_sub(FIRST)?).ok()
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    let chars = bytes.iter().map(|b| char::from_u32(FIRST + u32::from(*b)));
    text.extend(chars.flatten());
}

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the guest: bytes become text.
    In,
    /// To the guest: text becomes bytes.
    Out,
}

/// The same messages as `stream`, with names as text. Messages have at most `limit` bytes; a longer one ends the
/// connection.
pub(super) fn over<S>(stream: S, limit: u32) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    tokio::spawn(async move {
        let (from_guest, to_guest) = tokio::io::split(stream);
        let (from_us, to_us) = tokio::io::split(theirs);
        // When one way ends, so does the other: each needs the answers of the other.
        tokio::select! {
            ended = pass(from_guest, to_us, Way::In, limit) => drop(ended),
            ended = pass(from_us, to_guest, Way::Out, limit) => drop(ended),
        }
    });
    ours
}

/// Passes messages on until the end.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    limit: u32,
) -> io::Result<()> {
    let mut body = Vec::new();
    loop {
        let len = from.read_u32().await?;
        if len > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        body.resize(len as usize, 0);
        from.read_exact(&mut body).await?;
        let changed = translate(&body, way);
        let body = changed.as_deref().unwrap_or(&body);
        let len = u32::try_from(body.len()).map_err(io::Error::other)?;
        to.write_u32(len).await?;
        to.write_all(body).await?;
        to.flush().await?;
    }
}

/// The message with its names translated; `None` if nothing changes, or the message is malformed, which its reader will
/// notice.
pub(super) fn translate(message: &[u8], way: Way) -> Option<Vec<u8>> {
    let (&kind, rest) = message.split_first()?;
    // The numbers are those of section 3 of the draft.
    let strings = match kind {
        // OPEN, LSTAT, SETSTAT, OPENDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, READLINK
        3 | 7 | 9 | 11 | 13..=17 | 19 => 1,
        // RENAME, SYMLINK
        18 | 20 => 2,
        // EXTENDED: the name of the extension, and for those in use two paths
        200 => 3,
        // NAME
        104 => return entries(message, way),
        _ => return None,
    };
    let mut out = vec![kind];
    let mut rest = Parser(rest);
    out.extend_from_slice(rest.take(4)?);
    let mut changed = false;
    for _ in 0..strings {
        // An extension may have fewer.
        let Some(name) = rest.string() else { break };
        changed |= put(&mut out, name, way)?;
    }
    out.extend_from_slice(rest.0);
    changed.then_some(out)
}

/// An answer with the entries of a directory, or the target of a link.
fn entries(message: &[u8], way: Way) -> Option<Vec<u8>> {
    let mut rest = Parser(message);
    let mut out = rest.take(9)?.to_vec();
    let mut changed = false;
    while !rest.0.is_empty() {
        changed |= put(&mut out, rest.string()?, way)?;
        // The long form is for people, in the guest's own words.
        changed |= put(&mut out, rest.string()?, way)?;
        out.extend_from_slice(rest.attributes()?);
    }
    changed.then_some(out)
}

/// Appends a name with its length. Returns whether it was changed.
fn put(out: &mut Vec<u8>, name: &[u8], way: Way) -> Option<bool> {
    let new: Cow<'_, [u8]> = match way {
        Way::In => Cow::Owned(to_text(name).into_bytes()),
        Way::Out => to_bytes(std::str::from_utf8(name).ok()?),
    };
    out.extend_from_slice(&u32::try_from(new.len()).ok()?.to_be_bytes());
    out.extend_from_slice(&new);
    Some(*new != *name)
}

/// The rest of a message.
struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.take(4)?.first_chunk()?;
        usize::try_from(u32::from_be_bytes(*bytes)).ok()
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let before = self.0;
        let taken = self.number().and_then(|len| self.take(len));
        if taken.is_none() {
            self.0 = before;
        }
        taken
    }

    /// Attributes, as they are in the message (section 5 of the draft).
    fn attributes(&mut self) -> Option<&'a [u8]> {
        let before = self.0;
        let flags = self.number()?;
        for (flag, bytes) in [(1, 8), (2, 8), (4, 4), (8, 8)] {
            if flags & flag != 0 {
                self.take(bytes)?;
            }
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.number()? {
                self.string()?;
                self.string()?;
            }
        }
        before.get(..before.len().checked_sub(self.0.len())?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_name_has_a_text_and_comes_back(
            name in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                "[a-z\u{10fdff}-\u{10ffff}é]{0,9}".prop_map(String::into_bytes),
            ],
        ) {
            let text = to_text(&name);
            prop_assert_eq!(&*to_bytes(&text), &*name);
            // What is checked on text holds for the name.
            for c in ['/', '\0', '.'] {
                prop_assert_eq!(text.contains(c), name.contains(&(c as u8)));
            }
        }

        #[test]
        fn no_message_is_too_strange(message in proptest::collection::vec(any::<u8>(), 0..60), kind in 0..22usize) {
            let mut message = message;
            if let Some(first) = message.first_mut() {
                *first = [3, 7, 9, 11, 13, 14, 15, 16, 17, 18, 19, 20, 104, 104, 104, 104, 104, 200, 200, 1, 103, 255][kind];
            }
            let _ = translate(&message, Way::In);
            let _ = translate(&message, Way::Out);
        }
    }

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    /// Written by hand after the draft, so that both ends cannot have the same mistake.
    #[test]
    fn names_are_found_in_messages() {
        let text = to_text(b"a\xff");
        let attributes: Vec<u8> = [
            &0x8000_000fu32.to_be_bytes()[..],
            &[0xfe; 8 + 8 + 4 + 8],
            &1u32.to_be_bytes(),
            &string(b"kind"),
            &string(b"\xff"),
        ]
        .concat();
        let entries = |name: &[u8]| {
            [
                &[104, 0, 0, 0, 9, 0, 0, 0, 2][..],
                &string(name),
                &string(b"long"),
                &attributes,
                &string(b"plain"),
                &string(b"long"),
                &0u32.to_be_bytes(),
            ]
            .concat()
        };
        let open = |name: &[u8]| {
            [
                &[3, 0, 0, 0, 9][..],
                &string(name),
                &26u32.to_be_bytes(),
                &attributes,
            ]
            .concat()
        };
        let link = |name: &[u8]| [&[20, 0, 0, 0, 9][..], &string(b"to"), &string(name)].concat();
        let rename = |name: &[u8]| {
            let extension = string(b"posix-rename@openssh.com");
            [
                &[200, 0, 0, 0, 9][..],
                &extension,
                &string(name),
                &string(b"x"),
            ]
            .concat()
        };
        for message in [&entries as &dyn Fn(&[u8]) -> Vec<u8>, &open, &link, &rename] {
            let (bytes, texts) = (message(b"a\xff"), message(text.as_bytes()));
            assert_eq!(translate(&bytes, Way::In), Some(texts.clone()));
            assert_eq!(translate(&texts, Way::Out), Some(bytes.clone()));
            assert_eq!(translate(&message(b"plain"), Way::In), None);
            for cut in 0..bytes.len() {
                let _ = translate(&bytes[..cut], Way::In);
            }
        }
        // Data of files are not names.
        assert_eq!(
            translate(&[103, 0, 0, 0, 9, 0, 0, 0, 1, 0xff], Way::In),
            None
        );
        assert_eq!(
            translate(&[6, 0, 0, 0, 9, 0, 0, 0, 1, 0xff], Way::Out),
            None
        );
    }
}
