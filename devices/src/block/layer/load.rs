//! Reads the header and the bitmaps of a layer.

use std::io;

use super::bitmap::{Bitmap, PAGE};
use super::header::{self, Header, Layout};
use crate::block::error::DiskError;
use crate::block::host::HostFile;

/// Reads the header, and the boot of the live bitmap.
pub(super) fn read_header(file: &HostFile) -> Result<(Header, [u8; 16]), DiskError> {
    let mut bytes = [0; header::LEN];
    file.read_up_to_end(&mut bytes, 0)
        .map_err(DiskError::io("read", file.path()))?;
    let header = Header::decode(&bytes, file.path(), file.len())?;
    let mut boot = [0; 16];
    boot.copy_from_slice(&bytes[header::BOOT_ID as usize..header::BOOT_ID as usize + 16]);
    Ok((header, boot))
}

/// Reads the bitmap at offset `start` of the file.
pub(super) fn read_bitmap(file: &HostFile, layout: &Layout, start: u64) -> io::Result<Bitmap> {
    let mut bitmap = Bitmap::new(layout.blocks);
    let end = start + layout.bitmap_len;
    let mut at = start;
    while let Some(data) = file.next_data(at)?.filter(|d| *d < end) {
        // Pages lie at multiples of their size in the file.
        let page = (data - start) / PAGE as u64;
        let mut bytes = [0; PAGE];
        at = start + page * PAGE as u64;
        file.read(&mut bytes, at)?;
        bitmap.load(page as usize, &bytes);
        at += PAGE as u64;
    }
    Ok(bitmap)
}
