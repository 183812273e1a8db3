//! Creates layers.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::bitmap::BLOCK;
use super::header::{self, Header, Layout};
use super::info::{Base, BaseInfo, LayerInfo, LayerOptions};
use super::load::{read_bitmap, read_header};
use crate::block::chain::{Chain, probe};
use crate::block::disk::check_size;
use crate::block::error::DiskError;
use crate::block::format::{Format, OpenOptions};
use crate::block::host::{HostFile, boot_id};

/// Creates a layer at `path`; its base is opened by `chain`.
pub(in crate::block) fn create(
    path: &Path,
    options: &LayerOptions,
    chain: &mut Chain,
) -> Result<LayerInfo, DiskError> {
    let base = match &options.base {
        Some(base) => Some(look_at_base(base, options.follow, chain)?),
        None => None,
    };
    let base_size = base.as_ref().map_or(0, |b| b.size);
    let size = options.size.unwrap_or(base_size);
    check_size(path, size)?;
    if size < base_size {
        return Err(DiskError::TooSmall {
            path: path.to_path_buf(),
            size,
            base_size,
        });
    }
    let header = Header { size, base };
    let bytes = header.encode().map_err(|e| {
        DiskError::io("create", path)(io::Error::new(io::ErrorKind::InvalidInput, e))
    })?;
    write_file(path, &bytes, Layout::new(size).end, options.durable)
        .map_err(DiskError::io("create", path))?;
    Ok(LayerInfo {
        path: path.to_path_buf(),
        size,
        base: header.base,
        own: 0,
    })
}

/// Reads the properties of the layer at `path`. It ignores locks, because the layer may be in use,
/// and does not open the base.
///
/// # Errors
/// See [`DiskError`].
pub fn layer_info(path: &Path) -> Result<LayerInfo, DiskError> {
    let file = HostFile::peek(path)?;
    let (header, boot) = read_header(&file)?;
    let layout = Layout::new(header.size);
    let live = boot_id().is_some_and(|id| id == boot);
    let from = if live { layout.live } else { layout.durable };
    let bitmap = read_bitmap(&file, &layout, from).map_err(DiskError::io("read", path))?;
    let own = (bitmap.count() * BLOCK).min(header.size);
    Ok(LayerInfo {
        path: path.to_path_buf(),
        size: header.size,
        base: header.base,
        own,
    })
}

/// Refuses a layer that was recognised by its content if it has a base, which the author of the file chose.
pub(in crate::block) fn refuse_base(file: &HostFile) -> Result<(), DiskError> {
    match read_header(file)?.0.base {
        None => Ok(()),
        Some(info) => Err(DiskError::NamesFile {
            path: file.path().to_path_buf(),
            format: Format::Layer,
            role: "base",
            named: info.base.path.to_string_lossy().into_owned(),
            remedy: "a layer is the disk of one VM; use the image that the VM was made from".into(),
        }),
    }
}

/// Opens the base as the layer will, and records its properties.
fn look_at_base(base: &Base, follow: bool, chain: &mut Chain) -> Result<BaseInfo, DiskError> {
    let path = fs::canonicalize(&base.path).map_err(DiskError::io("find", &base.path))?;
    let format = match base.format {
        Some(format) => format,
        None => {
            let file = HostFile::open(&path, false)?;
            let format = probe(&file)?;
            if format == Format::Layer && !follow {
                refuse_base(&file)?;
            }
            format
        }
    };
    let options = OpenOptions {
        format: Some(format),
        follow,
        ..OpenOptions::read_only()
    };
    let (disk, identity) = chain.open_with_identity(&path, &options)?;
    let base = Base {
        path,
        format: Some(format),
        digest: base.digest.clone(),
    };
    Ok(BaseInfo {
        base,
        size: disk.len(),
        identity,
    })
}

/// Writes the header to a file of `len` bytes, and then renames the file to its final name.
fn write_file(path: &Path, header: &[u8], len: u64, durable: bool) -> io::Result<()> {
    let directory = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let (mut file, temporary) = temporary_file(path)?;
    let mut write = || {
        file.write_all(header)?;
        file.set_len(len)?;
        if durable {
            file.sync_all()?;
        }
        // Unlike a rename, a link does not replace a file that is there already.
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists && !fs::exists(path)? => {
                // A file system without links.
                fs::rename(&temporary, path)
            }
            linked => linked.and_then(|()| fs::remove_file(&temporary)),
        }
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    if durable {
        File::open(directory)?.sync_all()
    } else {
        Ok(())
    }
}

/// Creates a file next to `path` with an unused name.
fn temporary_file(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?;
    for n in 0..1000 {
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{n}.new", std::process::id()));
        let temporary = path.with_file_name(temporary);
        match create_private(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        "there are too many unfinished layers next to it",
    ))
}

fn create_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

const _: () = assert!(header::LEN.is_multiple_of(4096));
