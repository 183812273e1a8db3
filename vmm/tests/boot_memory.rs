//! The memory that a boot plan takes, whatever its disk says: this program's allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

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
    many_partitions();
    scripts();
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
    for options in ["^64bit,^metadata_csum", "64bit,^metadata_csum"] {
        let intact = ext4(4 << 20, &["-O", options], &[("a/b", b"c")]);
        // Every 32-bit word of the fields that are in use, with the values that are worst.
        for at in (0..0x180).step_by(4) {
            for value in [u32::MAX, 0x1FFF, 0x7FFF_FFFF, 0x1_0000, 0] {
                let mut disk = intact.clone();
                disk[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
                let (_, peak) = measured(whole(disk), &limits);
                assert!(peak < most, "word {at:#x} = {value:#x}: {peak} bytes");
            }
        }
    }
}

/// Scripts cost a bounded amount of memory and time, over all their files.
fn scripts() {
    const MOST: usize = 64 << 20;
    let mib = |text: &str| text.repeat((1 << 20) / text.len() - 1);
    let forever = "while true; do source /boot/grub/more.cfg; done\n";
    let entry = |body: String| format!("menuentry x {{ {body}\n}}\n");
    let nested = format!("{}\n{}", "if true; then\n".repeat(60), "fi\n".repeat(60));
    let block = format!("# GRUB Environment Block\n{}", &mib("a=\n")[60..]);
    let variables: String = (0..200)
        .map(|i| format!("export v{i}{}\n", "v".repeat(50)))
        .collect();
    for (what, config, more) in [
        (
            "variables in an entry",
            forever.to_string(),
            entry(format!(":{}", &mib("$a")[40..])),
        ),
        (
            "words",
            forever.to_string(),
            entry(mib("a ")[40..].to_string()),
        ),
        (
            "commands",
            forever.to_string(),
            entry(mib("a\n")[40..].to_string()),
        ),
        ("empty lines", forever.to_string(), mib("\n")),
        (
            "quotes",
            forever.to_string(),
            entry(mib("a'b'c\"d\"\\e")[60..].to_string()),
        ),
        ("functions", forever.to_string(), mib("function f { a; }\n")),
        ("conditions", forever.to_string(), nested.repeat(500)),
        (
            "text",
            forever.to_string(),
            entry(format!("'{}'", &mib("x")[40..])),
        ),
        (
            "comments",
            forever.to_string(),
            format!("#{}", &mib("x")[40..]),
        ),
        (
            "entries",
            "while true; do menuentry x { a; }; done\n".into(),
            String::new(),
        ),
        (
            "titles",
            format!(
                "set x={}\nwhile true; do menuentry $x$x$x$x {{ a; }}; done\n",
                "x".repeat(9000)
            ),
            String::new(),
        ),
        (
            "environment blocks",
            "while true; do load_env -f /boot/grub/more.cfg; done\n".into(),
            block,
        ),
        (
            "contexts",
            format!("{variables}configfile /boot/grub/more.cfg\n"),
            "configfile /boot/grub/more.cfg\n".into(),
        ),
        (
            "submenus",
            "source /boot/grub/more.cfg\n".into(),
            "submenu a { source /boot/grub/more.cfg; }\n".into(),
        ),
        (
            "eval",
            "set a=x\nwhile true; do set a=\"$a$a\"; eval $a $a; done\n".into(),
            String::new(),
        ),
        (
            "arguments",
            "function f { f \"$@\" \"$@\"; }\nf '' ''\n".into(),
            String::new(),
        ),
        (
            "problems",
            format!(
                "set x={}\nwhile true; do search -l \"$x\"; done\n",
                "x".repeat(100_000)
            ),
            String::new(),
        ),
        (
            "wildcards",
            "while true; do for f in /*/*/*/* (*)/*; do true; done; done\n".into(),
            String::new(),
        ),
        (
            "expressions",
            "while true; do regexp '((a{9}){9}|a)*b' aaaaaaaaaaaaaaaaaaaaaa; done\n".into(),
            String::new(),
        ),
    ] {
        let files: [(&str, &[u8]); 3] = [
            ("boot/grub/grub.cfg", config.as_bytes()),
            ("boot/grub/more.cfg", more.as_bytes()),
            ("kernel", b"kernel"),
        ];
        let disk = whole(ext4(8 << 20, &[], &files));
        let started = Instant::now();
        let (plan, peak) = measured(disk, &Limits::default());
        let (took, error) = (started.elapsed(), plan.unwrap_err().to_string());
        println!("{what}: {peak} bytes, {took:?}: {error:.200}");
        assert!(peak < MOST, "{what}: {peak} bytes");
        assert!(took < Duration::from_secs(30), "{what}: {took:?}");
    }
}

/// Partitions share one cache, however many there are.
fn many_partitions() {
    const COUNT: u32 = 1024;
    const FIRST: u64 = 2048;
    let root = ext4(1 << 20, &["-b", "1024"], &[("a/b", b"c")]);
    let sectors = root.len() as u64 / 512;
    let mut table = Vec::new();
    let mut parts = Vec::new();
    for index in 0..u64::from(COUNT) {
        let start = FIRST + index * sectors;
        let mut entry = [1; 128];
        entry[32..40].copy_from_slice(&start.to_le_bytes());
        entry[40..48].copy_from_slice(&(start + sectors - 1).to_le_bytes());
        table.extend(entry);
        // The first blocks are enough for a file system with a root directory.
        parts.push((start * 512, root[..256 << 10].to_vec()));
    }
    let mut head = vec![0; 1024];
    head[446 + 4] = 0xEE;
    head[446 + 8] = 1;
    head[510..512].copy_from_slice(&[0x55, 0xAA]);
    let header = &mut head[512..512 + 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24] = 1;
    header[72] = 2;
    header[80..84].copy_from_slice(&COUNT.to_le_bytes());
    header[84] = 128;
    header[88..].copy_from_slice(&crc32(&table).to_le_bytes());
    let sum = crc32(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    parts.push((0, [head, table].concat()));
    let disk = Sparse {
        len: (FIRST + (u64::from(COUNT) + 1) * sectors) * 512,
        parts,
    };
    let limits = Limits {
        memory: 8 << 20,
        ..Limits::default()
    };
    let (plan, peak) = measured(disk, &limits);
    let error = plan.unwrap_err().to_string();
    assert!(error.contains("(hd0,gpt1) holds ext4"), "{error}");
    let most = limits.memory as usize + SLACK;
    assert!(peak < most, "{peak} of {most} bytes");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 != 0 { 0xEDB8_8320 } else { 0 }
        })
    })
}
