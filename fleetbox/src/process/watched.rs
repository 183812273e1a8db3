//! A disk whose errors are reported: a host that can no longer store what a guest writes is its user's concern, and the
//! guest only sees that its disk fails.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use fleetbox_devices::block::Disk;
use fleetbox_vmm::machine::Event;

use super::machine::OnEvent;
use crate::util::sync::lock;

/// Passes everything on to `disk`, and reports each kind of error of the host once.
pub(super) struct Watched {
    disk: Arc<dyn Disk>,
    /// What the disk is called.
    name: String,
    on_event: Arc<OnEvent>,
    reported: Mutex<BTreeSet<String>>,
}

impl Watched {
    pub(super) fn around(
        disk: Arc<dyn Disk>,
        name: &str,
        on_event: &Arc<OnEvent>,
    ) -> Arc<dyn Disk> {
        Arc::new(Self {
            disk,
            name: name.to_owned(),
            on_event: Arc::clone(on_event),
            reported: Mutex::default(),
        })
    }

    fn note(&self, what: &str, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result
            // These are the guest's doing.
            && !matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::ReadOnlyFilesystem
            )
        {
            let text = format!("cannot {what}: {error}");
            let mut reported = lock(&self.reported);
            // The text may say where on the disk it was.
            let kind = format!("{what}: {:?}", error.kind());
            if reported.len() < MAX_REPORTS && reported.insert(kind) {
                (self.on_event)(Event::DeviceError {
                    device: self.name.clone(),
                    error: text,
                });
            }
        }
        result
    }
}

/// Maximum number of different errors of a disk that are reported.
const MAX_REPORTS: usize = 8;

impl Disk for Watched {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.note("read", self.disk.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.note("write", self.disk.write_at(buf, offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.note("make durable", self.disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note("discard", self.disk.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.note("write", self.disk.write_zeroes(offset, len, unmap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetbox_devices::block::Format;
    use fleetbox_devices::block::{Base, LayerOptions, OpenOptions, create_layer, open_disk};

    #[test]
    fn an_error_of_the_host_is_reported_once_and_one_of_the_guest_never() {
        let dir = tempfile::tempdir().unwrap();
        let (base, layer) = (dir.path().join("base.raw"), dir.path().join("disk.layer"));
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        let options = LayerOptions {
            base: Some(Base::new(&base, Some(Format::Raw))),
            size: None,
            durable: false,
            follow: false,
        };
        create_layer(&layer, &options).unwrap();
        let disk = open_disk(&layer, &OpenOptions::writable(Format::Layer)).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let on_event: OnEvent = {
            let events = Arc::clone(&events);
            Box::new(move |event| lock(&events).push(event))
        };
        let disk = Watched::around(disk, "disk", &Arc::new(on_event));
        let mut sector = [0; 512];
        disk.read_at(&mut sector, 0).unwrap();
        assert!(disk.read_at(&mut sector, 1 << 30).is_err());
        assert!(lock(&events).is_empty());

        // What the host can no longer read.
        std::fs::File::options()
            .write(true)
            .open(&base)
            .unwrap()
            .set_len(0)
            .unwrap();
        for offset in [4096, 8192] {
            assert!(disk.read_at(&mut sector, offset).is_err());
        }
        let events = lock(&events);
        let [Event::DeviceError { device, error }] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!(device, "disk");
        assert!(error.starts_with("cannot read: "), "{error}");
    }
}
