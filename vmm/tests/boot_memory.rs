//! The memory that a boot plan takes, whatever its disk says: this program's allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use fleetbox_devices::block::Disk;
use fleetbox_vmm::boot::{BootError, BootPlan, Limits, discover};

/// Counts live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator with the same arguments; only numbers are
// kept besides.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises; `at` is from `alloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory that is not accounted for: errors' texts, small vectors, the program's own.
const SLACK: usize = 4 << 20;

/// A disk of `len` bytes that has only some.
struct Sparse {
    len: u64,
    parts: Vec<(u64, Vec<u8>)>,
}

impl Disk for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.fill(0);
        for (at, bytes) in &self.parts {
            let from = offset.max(*at);
            let to = (offset + buf.len() as u64).min(at + bytes.len() as u64);
            if from < to {
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
            }
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// The plan, and the most memory that was live at a time while it was made.
fn measured(disk: Sparse, limits: &Limits) -> (Result<BootPlan, BootError>, usize) {
    let disk = Arc::new(disk);
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let plan = discover(disk, limits);
    (plan, PEAK.load(Relaxed) - before)
}

/// An ext4 file system of `size` bytes with the given files.
fn ext4(size: u64, options: &[&str], files: &[(&str, &[u8])]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let image = dir.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(size)
        .unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let made = Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(&root)
        .args(options)
        .arg(&image)
        .status();
    assert!(
        made.expect("`mke2fs` is needed: install e2fsprogs")
            .success()
    );
    std::fs::read(image).unwrap()
}

fn whole(bytes: Vec<u8>) -> Sparse {
    Sparse {
        len: bytes.len() as u64,
        parts: vec![(0, bytes)],
    }
}

#[test]
fn a_plan_takes_no_more_memory_than_its_limits() {
    honest();
    superblocks();
}

/// The kernel and the initrds are held once, and little else.
fn honest() {
    const KERNEL: usize = 3 << 20;
    const INITRD: usize = 24 << 20;
    let config = b"menuentry a {\n linux /kernel x\n initrd /ucode /initrd\n}\n";
    let files: [(&str, &[u8]); 4] = [
        ("boot/grub/grub.cfg", config),
        ("kernel", &vec![1; KERNEL]),
        ("ucode", &[2; 1001]),
        ("initrd", &vec![3; INITRD]),
    ];
    let limits = Limits {
        memory: 8 << 20,
        ..Limits::default()
    };
    let (plan, peak) = measured(whole(ext4(64 << 20, &[], &files)), &limits);
    let plan = plan.unwrap();
    assert_eq!(plan.initrd.unwrap().len(), 1004 + INITRD);
    let most = KERNEL + INITRD + limits.memory as usize + SLACK;
    assert!(peak < most, "{peak} of {most} bytes");
}

/// No number of a superblock is believed before it was compared with the partition.
fn superblocks() {
    let limits = Limits::default();
    let most = limits.memory as usize + SLACK;
    let narrow = ext4(4 << 20, &["-O", "^64bit,^metadata_csum"], &[("a/b", b"c")]);
    // Every 32-bit word of the fields that are in use, with the values that are worst.
    for at in (0..0x180).step_by(4) {
        for value in [u32::MAX, 0x1FFF, 0x7FFF_FFFF, 0x1_0000, 0] {
            let mut disk = narrow.clone();
            disk[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
            let (_, peak) = measured(whole(disk), &limits);
            assert!(peak < most, "word {at:#x} = {value:#x}: {peak} bytes");
        }
    }
}
