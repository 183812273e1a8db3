//! Files of this host as data and holes, so that a copy of a sparse file is sparse too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::util::fs::{next_data, write_sparse};

/// A part of a source.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Vec<u8>),
    /// So many bytes that read as zeros and are stored nowhere.
    Hole(u64),
}

/// What is copied to a guest.
pub(crate) enum Source<'a> {
    Bytes(&'a [u8]),
    File(SparseSource),
}

impl Source<'_> {
    /// The next part, with at most `max` bytes of data; `None` at the end.
    pub(super) async fn next(&mut self, max: usize) -> io::Result<Option<Piece>> {
        match self {
            Self::Bytes(bytes) => {
                let (part, rest) = bytes.split_at(max.min(bytes.len()));
                *bytes = rest;
                Ok((!part.is_empty()).then(|| Piece::Data(part.to_vec())))
            }
            Self::File(file) => file.next(max).await,
        }
    }
}

/// A file that is read from its beginning to its end.
pub(crate) struct SparseSource {
    file: Arc<File>,
    at: u64,
    /// End of the data at `at`.
    data_end: u64,
}

impl SparseSource {
    pub(super) fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            at: 0,
            data_end: 0,
        }
    }

    async fn next(&mut self, max: usize) -> io::Result<Option<Piece>> {
        let (file, at, data_end) = (Arc::clone(&self.file), self.at, self.data_end);
        let read = spawn_blocking(move || next(&file, at, data_end, max));
        let (piece, data_end) = read.await.map_err(io::Error::other)??;
        self.data_end = data_end;
        self.at += match &piece {
            Some(Piece::Data(bytes)) => bytes.len() as u64,
            Some(Piece::Hole(len)) => *len,
            None => 0,
        };
        Ok(piece)
    }
}

/// The part at `at`, and the end of the data that it is in.
fn next(file: &File, at: u64, data_end: u64, max: usize) -> io::Result<(Option<Piece>, u64)> {
    let mut data_end = data_end;
    if at >= data_end {
        match next_data(file, at)? {
            Some((start, end)) if start > at => return Ok((Some(Piece::Hole(start - at)), end)),
            Some((_, end)) => data_end = end,
            None => match file.metadata()?.len().saturating_sub(at) {
                // At the end; or a file of the kernel, which has no length but bytes.
                0 => data_end = u64::MAX,
                left => return Ok((Some(Piece::Hole(left)), at)),
            },
        }
    }
    let max = usize::try_from(data_end - at).unwrap_or(max).min(max);
    let mut bytes = vec![0; max];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            // Shorter than it said, as files of the kernel are.
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(((done > 0).then_some(Piece::Data(bytes)), data_end))
}

/// Takes what a guest sends.
pub(crate) trait Sink {
    /// Appends bytes.
    async fn put(&mut self, bytes: Vec<u8>) -> io::Result<()>;
}

impl Sink for Vec<u8> {
    async fn put(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.extend_from_slice(&bytes);
        Ok(())
    }
}

/// A new file, in which blocks of zeros become holes. SFTP does not say where the guest's file has them.
pub(crate) struct SparseSink {
    file: Arc<File>,
    at: u64,
}

impl SparseSink {
    pub(super) fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            at: 0,
        }
    }

    /// The file, with its length.
    pub(super) fn finish(self) -> io::Result<File> {
        // Zeros at the end were not written.
        self.file.set_len(self.at)?;
        Arc::into_inner(self.file).ok_or_else(|| io::Error::other("a write is still running"))
    }
}

impl Sink for SparseSink {
    async fn put(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let (file, at) = (Arc::clone(&self.file), self.at);
        self.at += bytes.len() as u64;
        let written = spawn_blocking(move || write_sparse(&file, at, &bytes));
        written.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn data_and_holes_make_up_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        const MIB: u64 = 1 << 20;
        for (data, len) in [
            (vec![], 0),
            (vec![], 5 * MIB + 3),
            (vec![0], 5 * MIB),
            (vec![MIB], 5 * MIB),
            (vec![0, 2 * MIB, 4 * MIB], 5 * MIB - 7),
        ] {
            let mut options = File::options();
            options.create(true).truncate(true).read(true).write(true);
            let file = options.open(&path).unwrap();
            file.set_len(len).unwrap();
            for at in &data {
                file.write_all_at(&[7; 70_000], *at).unwrap();
            }
            let mut source = Source::File(SparseSource::new(file));
            let (mut whole, mut sent) = (Vec::new(), 0);
            while let Some(piece) = source.next(50_000).await.unwrap() {
                match piece {
                    Piece::Data(bytes) => {
                        assert!(!bytes.is_empty() && bytes.len() <= 50_000);
                        sent += bytes.len();
                        whole.extend(bytes);
                    }
                    Piece::Hole(len) => whole.resize(whole.len() + len as usize, 0),
                }
            }
            assert!(whole == std::fs::read(&path).unwrap(), "{data:?} {len}");
            // Whole blocks of the file system, of which some have up to 64 KiB.
            assert!(sent <= data.len() * (256 << 10), "{sent} for {data:?}");
        }
    }

    #[tokio::test]
    async fn files_of_the_kernel_are_read_too() {
        let file = File::open("/proc/self/status").unwrap();
        let mut source = Source::File(SparseSource::new(file));
        let Some(Piece::Data(bytes)) = source.next(1 << 16).await.unwrap() else {
            panic!("no data")
        };
        assert!(bytes.starts_with(b"Name:"));
        assert_eq!(source.next(1 << 16).await.unwrap(), None);
    }
}
