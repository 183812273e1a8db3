//! Raw images: the file's bytes are the disk's.

use std::io;

use super::disk::{Disk, SECTOR, check_range, refuse_write};
use super::format::{OpenOptions, probe_magic};
use super::host::HostFile;

/// A raw image or block device.
pub(super) struct RawDisk {
    file: HostFile,
    len: u64,
    read_only: bool,
    /// Flushes make writes durable.
    durable: bool,
    /// The format was detected from the content, so it must not change.
    probed: bool,
}

impl RawDisk {
    /// Opens the image. If the file ends within a sector, the disk's last sector is filled up with
    /// zeros.
    pub(super) fn new(file: HostFile, options: &OpenOptions) -> Self {
        let len = file.len().div_ceil(SECTOR).saturating_mul(SECTOR);
        let &OpenOptions {
            read_only,
            durable,
            format,
            ..
        } = options;
        Self {
            file,
            len,
            read_only,
            durable,
            probed: format.is_none(),
        }
    }

    /// Refuses a write that would make this image look like another format, whose header could name
    /// any file of the host as its base.
    fn keep_format(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut start = [0; 8];
        if !self.probed || offset >= start.len() as u64 {
            return Ok(());
        }
        self.file.read_up_to_end(&mut start, 0)?;
        for (to, from) in start.iter_mut().skip(offset as usize).zip(buf) {
            *to = *from;
        }
        if probe_magic(&start).is_none() {
            return Ok(());
        }
        let path = self.file.path().display();
        tracing::warn!(%path, "refused a write that would change the format of a raw image");
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "this write would make {path} look like another image format; state the format raw when opening it"
            ),
        ))
    }
}

impl Disk for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        if offset + buf.len() as u64 <= self.file.len() {
            return self.file.read(buf, offset);
        }
        let got = self.file.read_up_to_end(buf, offset)?;
        if offset + (got as u64) < self.file.len().min(offset + buf.len() as u64) {
            let path = self.file.path().display();
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path} has become shorter"),
            ));
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        refuse_write(self.read_only)?;
        check_range(self.len, offset, buf.len() as u64)?;
        self.keep_format(buf, offset)?;
        self.file.write(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only || !self.durable {
            Ok(())
        } else {
            self.file.sync()
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        refuse_write(self.read_only)?;
        check_range(self.len, offset, len)?;
        if unmap {
            self.file.punch(offset, len)
        } else {
            self.file.zero(offset, len)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;
    use crate::block::model_test::{compare, op};
    use crate::block::{DiskError, Format, create_raw, open_disk};

    #[test]
    fn a_raw_image_stays_raw() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [0; 4096]).unwrap();
        let options = OpenOptions {
            read_only: false,
            ..OpenOptions::read_only()
        };
        let disk = open_disk(&path, &options).unwrap();
        let mut sector = [0; 512];
        sector[..4].copy_from_slice(b"QFI\xfb");
        let refused = disk.write_at(&sector, 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        disk.write_at(b"QFI", 0).unwrap();
        assert!(disk.write_at(b"\xfb", 3).is_err());
        disk.write_at(&sector, 512).unwrap();
        drop(disk);
        // With an explicit format the content is the guest's own business.
        let disk = open_disk(&path, &OpenOptions::writable(Format::Raw)).unwrap();
        disk.write_at(&sector, 0).unwrap();
        disk.read_at(&mut [0; 512], 0).unwrap();
    }

    #[test]
    fn a_file_that_ends_within_a_sector_is_filled_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [7; 1000]).unwrap();
        let disk = open_disk(&path, &OpenOptions::writable(Format::Raw)).unwrap();
        let mut all = [1; 1024];
        disk.read_at(&mut all, 0).unwrap();
        assert!(all[..1000] == [7; 1000] && all[1000..] == [0; 24]);
        disk.write_at(&[8; 100], 924).unwrap();
        disk.read_at(&mut all, 0).unwrap();
        assert!(all[924..] == [8; 100]);
        assert!(disk.read_at(&mut [0; 2], 1023).is_err());
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(500)
            .unwrap();
        let error = disk.read_at(&mut all, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn discards_give_blocks_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create_raw(&path, 1 << 20).unwrap();
        assert!(create_raw(&path, 1 << 20).is_err());
        let blocks = || fs::metadata(&path).unwrap().blocks() * 512;
        let disk = open_disk(&path, &OpenOptions::writable(Format::Raw)).unwrap();
        disk.write_at(&vec![1; 1 << 20], 0).unwrap();
        disk.flush().unwrap();
        assert!(blocks() >= 1 << 20);
        disk.discard(0, 1 << 20).unwrap();
        assert!(blocks() < 64 << 10);
        disk.write_zeroes(0, 1 << 20, false).unwrap();
        disk.flush().unwrap();
        assert!(blocks() >= 1 << 20);
        disk.write_zeroes(0, 1 << 20, true).unwrap();
        assert!(blocks() < 64 << 10);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let read_only = OpenOptions::read_only();
        let error = open_disk(dir.path(), &read_only).err().unwrap();
        assert!(matches!(error, DiskError::NotADisk { .. }), "{error}");
        let error = open_disk("/dev/zero".as_ref(), &read_only).err().unwrap();
        assert!(matches!(error, DiskError::NotADisk { .. }), "{error}");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = open_disk(&fifo, &read_only).err().unwrap();
        assert!(matches!(error, DiskError::NotADisk { .. }), "{error}");
        let error = open_disk(&dir.path().join("none"), &read_only)
            .err()
            .unwrap();
        assert!(error.to_string().contains("none"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..Default::default() })]

        #[test]
        fn behaves_like_bytes(ops in proptest::collection::vec(op(1 << 20), 1..40)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk");
            create_raw(&path, 1 << 20).unwrap();
            compare(&mut vec![0; 1 << 20], &ops, || {
                open_disk(&path, &OpenOptions::writable(Format::Raw)).unwrap()
            });
        }
    }
}
