//! Frames on the sockets between processes: a length, a kind, a payload.
//!
//! Both ends run the same program. But a guest might break out into its machine process, so what
//! that process sends is bounded and checked like any other input.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest payload of one frame in bytes.
pub(crate) const MAX_PAYLOAD: usize = 256 * 1024;

/// Length of a frame's header: payload length (u32, little endian) and kind (u8).
const HEADER: usize = 5;

/// The kind of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json = 0,
    Bytes = 1,
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame<T> {
    /// A message.
    Message(T),
    /// Raw bytes: a machine's console output.
    Bytes(Vec<u8>),
}

fn encode(kind: Kind, payload: &[u8]) -> io::Result<Vec<u8>> {
    if payload.len() > MAX_PAYLOAD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "message of {} bytes, the limit is {MAX_PAYLOAD}",
                payload.len()
            ),
        ));
    }
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.push(kind as u8);
    frame.extend_from_slice(payload);
    Ok(frame)
}

fn encode_message<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    encode(Kind::Json, &serde_json::to_vec(message)?)
}

fn decode_header(header: [u8; HEADER]) -> io::Result<(Kind, usize)> {
    let [a, b, c, d, kind] = header;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = match kind {
        0 => Kind::Json,
        1 => Kind::Bytes,
        other => return Err(invalid(format!("frame of unknown kind {other}"))),
    };
    if len > MAX_PAYLOAD {
        return Err(invalid(format!(
            "frame of {len} bytes, the limit is {MAX_PAYLOAD}"
        )));
    }
    Ok((kind, len))
}

fn decode<T: DeserializeOwned>(kind: Kind, payload: Vec<u8>) -> io::Result<Frame<T>> {
    match kind {
        Kind::Bytes => Ok(Frame::Bytes(payload)),
        Kind::Json => Ok(Frame::Message(serde_json::from_slice(&payload)?)),
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Sends one message.
///
/// # Errors
/// The peer is gone, or the message is too long.
pub(crate) fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode_message(message)?)
}

/// Sends raw bytes, split as needed.
///
/// # Errors
/// The peer is gone.
pub(crate) fn send_bytes(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    for chunk in bytes.chunks(MAX_PAYLOAD) {
        to.write_all(&encode(Kind::Bytes, chunk)?)?;
    }
    Ok(())
}

/// Receives one message; raw bytes are an error.
///
/// # Errors
/// The peer is gone, or sent something else.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let (kind, len) = decode_header(header)?;
    let mut payload = vec![0; len];
    from.read_exact(&mut payload)?;
    message(decode(kind, payload)?)
}

/// Sends one message.
///
/// # Errors
/// The peer is gone, or the message is too long.
pub(crate) async fn send_async<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    to.write_all(&encode_message(message)?).await
}

/// Receives one frame. Not cancel safe: dropping the future loses a half-received frame.
///
/// # Errors
/// The peer is gone, or sent something else.
pub(crate) async fn receive_frame<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Frame<T>> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).await?;
    let (kind, len) = decode_header(header)?;
    let mut payload = vec![0; len];
    from.read_exact(&mut payload).await?;
    decode(kind, payload)
}

/// Receives one message; raw bytes are an error.
///
/// # Errors
/// The peer is gone, or sent something else.
pub(crate) async fn receive_async<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    message(receive_frame(from).await?)
}

fn message<T>(frame: Frame<T>) -> io::Result<T> {
    match frame {
        Frame::Message(message) => Ok(message),
        Frame::Bytes(_) => Err(invalid("raw bytes where a message was expected".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_bytes_come_through() {
        let mut pipe = Vec::new();
        send(&mut pipe, &("start", 3)).unwrap();
        let mut read = pipe.as_slice();
        assert_eq!(
            receive::<(String, u32)>(&mut read).unwrap(),
            ("start".to_owned(), 3)
        );
        assert!(read.is_empty());

        let mut pipe = Vec::new();
        send_bytes(&mut pipe, &vec![7; MAX_PAYLOAD + 1]).unwrap();
        assert_eq!(pipe.len(), MAX_PAYLOAD + 1 + 2 * HEADER);
    }

    #[tokio::test]
    async fn the_async_side_reads_what_the_other_wrote() {
        let mut pipe = Vec::new();
        send_bytes(&mut pipe, b"login: ").unwrap();
        send_async(&mut pipe, &42).await.unwrap();
        let mut read = pipe.as_slice();
        let first = receive_frame::<u32>(&mut read).await.unwrap();
        assert_eq!(first, Frame::Bytes(b"login: ".to_vec()));
        assert_eq!(receive_async::<u32>(&mut read).await.unwrap(), 42);
    }

    #[test]
    fn hostile_frames_are_errors() {
        let oversized = [0xff, 0xff, 0xff, 0xff, 0];
        assert!(receive::<u32>(&mut oversized.as_slice()).is_err());
        let unknown = [1, 0, 0, 0, 9, b'1'];
        assert!(receive::<u32>(&mut unknown.as_slice()).is_err());
        let cut = [4, 0, 0, 0, 0, b'1'];
        assert!(receive::<u32>(&mut cut.as_slice()).is_err());
        let raw = [1, 0, 0, 0, 1, b'1'];
        assert!(receive::<u32>(&mut raw.as_slice()).is_err());
    }

    #[test]
    fn a_message_over_the_limit_is_not_sent() {
        let mut pipe = Vec::new();
        assert!(send(&mut pipe, &"x".repeat(MAX_PAYLOAD)).is_err());
        assert!(pipe.is_empty());
    }
}
