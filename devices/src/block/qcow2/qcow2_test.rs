use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::block::model_test::{compare, contents, op, pattern};
use crate::block::{
    Base, Disk, DiskError, Format, LayerOptions, OpenOptions, create_layer, open_disk,
};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Ends within a cluster, and within a block.
const SIZE: u64 = 20 * CLUSTER as u64 - 3 * 512;

/// What a cluster of the test image is.
#[derive(Clone, Copy)]
enum Kind {
    Unallocated,
    Zero,
    Data,
    Compressed,
}
use Kind::{Compressed, Data, Unallocated, Zero};

/// A writer for small images: header, refcount table and block, L1 and L2 table, then clusters.
struct Builder {
    cluster_bits: u32,
    size: u64,
    backing: Option<(String, String)>,
    kinds: Vec<Kind>,
    zstd: bool,
    version: u32,
}

impl Builder {
    fn new(kinds: &[Kind]) -> Self {
        let kinds = kinds.iter().copied().cycle().take(20).collect();
        Self {
            cluster_bits: CLUSTER_BITS,
            size: SIZE,
            backing: None,
            kinds,
            zstd: false,
            version: 3,
        }
    }

    fn backed(self, name: &str, format: &str) -> Self {
        Self {
            backing: Some((name.to_owned(), format.to_owned())),
            ..self
        }
    }

    fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    fn compress(&self, bytes: &[u8]) -> Vec<u8> {
        let mut packed = vec![0; bytes.len()];
        let n = if self.zstd {
            zstd::bulk::compress_to_buffer(bytes, &mut packed, 1).unwrap()
        } else {
            let level = libdeflater::CompressionLvl::default();
            let mut compressor = libdeflater::Compressor::new(level);
            compressor.deflate_compress(bytes, &mut packed).unwrap()
        };
        packed.truncate(n);
        packed
    }

    /// The file's bytes; `content` is the disk's.
    fn build(&self, content: &[u8]) -> Vec<u8> {
        let cluster = 1usize << self.cluster_bits;
        let mut file = vec![0u8; 5 * cluster];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &(3 * cluster as u64).to_be_bytes());
        put(48, &(cluster as u64).to_be_bytes());
        put(56, &1u32.to_be_bytes());
        let header_len = if self.version == 3 { 112 } else { 72 };
        if self.version == 3 {
            put(96, &4u32.to_be_bytes());
            put(100, &112u32.to_be_bytes());
        }
        if self.zstd {
            put(79, &[8]);
            put(104, &[1]);
        }
        if let Some((name, format)) = &self.backing {
            let mut at = header_len;
            if !format.is_empty() {
                put(at, &0xe279_2acau32.to_be_bytes());
                put(at + 4, &(format.len() as u32).to_be_bytes());
                put(at + 8, format.as_bytes());
                at += 8 + format.len().next_multiple_of(8);
            }
            at += 8;
            put(8, &(at as u64).to_be_bytes());
            put(16, &(name.len() as u32).to_be_bytes());
            put(at, name.as_bytes());
        }
        put(cluster, &(2 * cluster as u64).to_be_bytes());
        put(3 * cluster, &((4 * cluster as u64) | 1 << 63).to_be_bytes());
        for (n, kind) in self.kinds.iter().enumerate() {
            let mut bytes = content[n * cluster..content.len().min((n + 1) * cluster)].to_vec();
            bytes.resize(cluster, 0);
            let at = file.len() as u64;
            let entry = match kind {
                Unallocated => 0,
                Zero => 1,
                Data => {
                    file.extend(&bytes);
                    at | 1 << 63
                }
                Compressed => {
                    let packed = self.compress(&bytes);
                    file.extend(&packed);
                    file.resize(file.len().next_multiple_of(cluster), 0);
                    let sectors = (packed.len() as u64 - 1) / 512;
                    at | 1 << 62 | sectors << (62 - (self.cluster_bits - 8))
                }
            };
            let l2 = 4 * cluster + n * 8;
            file[l2..l2 + 8].copy_from_slice(&entry.to_be_bytes());
        }
        for n in 0..file.len() / cluster {
            file[2 * cluster + n * 2 + 1] = 1;
        }
        file
    }

    /// What the disk reads as, over `below`.
    fn model(&self, content: &[u8], below: &[u8]) -> Vec<u8> {
        let cluster = 1usize << self.cluster_bits;
        let mut model = content.to_vec();
        for (n, kind) in self.kinds.iter().enumerate() {
            for at in n * cluster..model.len().min((n + 1) * cluster) {
                match kind {
                    Unallocated => model[at] = below.get(at).copied().unwrap_or(0),
                    Zero => model[at] = 0,
                    Data | Compressed => {}
                }
            }
        }
        model
    }
}

fn content(seed: u8) -> Vec<u8> {
    pattern(seed, 0, SIZE)
}

fn read_only(path: &Path) -> Result<Arc<dyn Disk>, DiskError> {
    open_disk(path, &OpenOptions::read_only())
}

/// Options for images that may name others.
fn following(options: OpenOptions) -> OpenOptions {
    OpenOptions {
        follow: true,
        ..options
    }
}

fn read_chain(path: &Path) -> Result<Arc<dyn Disk>, DiskError> {
    open_disk(path, &following(OpenOptions::read_only()))
}

fn image(kinds: &[Kind]) -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let (builder, content) = (Builder::new(kinds), content(1));
    fs::write(&path, builder.build(&content)).unwrap();
    let model = builder.model(&content, &[]);
    (dir, path, model)
}

/// A chain: compressed and other clusters over qcow2 over raw that is shorter than both.
fn chain() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let raw = pattern(9, 0, SIZE - 5 * CLUSTER as u64 - 700);
    fs::write(dir.path().join("raw.img"), &raw).unwrap();
    let middle =
        Builder::new(&[Compressed, Unallocated, Unallocated, Data, Zero]).backed("raw.img", "raw");
    fs::write(dir.path().join("middle.qcow2"), middle.build(&content(2))).unwrap();
    let top = Builder::new(&[Unallocated, Unallocated, Unallocated, Compressed])
        .backed("middle.qcow2", "qcow2");
    let path = dir.path().join("top.qcow2");
    fs::write(&path, top.build(&content(3))).unwrap();
    let model = top.model(&content(3), &middle.model(&content(2), &raw));
    (dir, path, model)
}

#[test]
fn all_kinds_of_clusters_are_read() {
    let (_dir, path, model) = image(&[Data, Compressed, Zero, Compressed, Unallocated]);
    let disk = read_only(&path).unwrap();
    assert_eq!(disk.len(), SIZE);
    assert!(contents(&*disk) == model);
    for (offset, len) in [
        (0, 1),
        (65535, 2),
        (100_000, 300_000),
        (SIZE - 1, 1),
        (65536, 512),
    ] {
        let mut buf = vec![0xaa; len as usize];
        disk.read_at(&mut buf, offset).unwrap();
        assert!(buf == model[offset as usize..][..len as usize]);
    }
    assert!(disk.read_at(&mut [0; 2], SIZE - 1).is_err());
    assert_eq!(
        disk.write_at(&[0], 0).unwrap_err().kind(),
        io::ErrorKind::ReadOnlyFilesystem
    );
}

#[test]
fn zstd_is_read_and_refused_for_writing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let builder = Builder {
        zstd: true,
        ..Builder::new(&[Compressed, Data, Compressed])
    };
    fs::write(&path, builder.build(&content(1))).unwrap();
    assert!(contents(&*read_only(&path).unwrap()) == content(1));
    let error = open_disk(&path, &OpenOptions::writable(Format::Qcow2))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("zstd") && error.contains("compression_type=zlib"),
        "{error}"
    );
}

#[test]
fn chains_are_read_and_locked() {
    let (dir, path, model) = chain();
    let disk = read_chain(&path).unwrap();
    assert!(contents(&*disk) == model);
    for (name, format) in [("raw.img", Format::Raw), ("middle.qcow2", Format::Qcow2)] {
        let error = open_disk(&dir.path().join(name), &OpenOptions::writable(format))
            .err()
            .unwrap();
        assert!(matches!(error, DiskError::InUse { .. }), "{error}");
    }
    drop(disk);
    fs::remove_file(dir.path().join("raw.img")).unwrap();
    assert!(
        read_chain(&path)
            .err()
            .unwrap()
            .to_string()
            .contains("raw.img")
    );
}

#[test]
fn threads_read_the_same() {
    let (_dir, path, model) = chain();
    let disk = read_chain(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(contents(&*disk) == model));
        }
    });
}

#[test]
fn images_that_cannot_be_used_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let good = Builder::new(&[Data, Compressed])
        .backed("none", "raw")
        .build(&content(1));
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, image).unwrap();
        read_chain(&path).err().unwrap().to_string()
    };
    for (at, bytes, needle) in [
        (7, &[4][..], "version 4"),
        (23, &[30], "clusters of 2^30"),
        (23, &[8], "clusters of 2^8"),
        (32, &[0, 0, 0, 2], "encrypted"),
        (79, &[2], "corrupt"),
        (79, &[4], "another file"),
        (79, &[8], "unknown method"),
        (79, &[16], "extended L2"),
        (72, &[1], "unknown features"),
        (99, &[7], "refcounts"),
        (100, &[0, 0, 0, 8], "8 bytes"),
        (100, &[0xff, 0xff, 0xff, 0xf8], "header claims to have"),
        (24, &[0; 8], "disk of 0 bytes"),
        (24, &[0xff; 8], "header claims a disk"),
        (28, &[0xf0; 4], "L1 table claims"),
        (36, &[0xff; 4], "L1 table claims"),
        (36, &[0; 4], "L1 table claims"),
        (36, &[0, 0x3f, 0, 0], "outside the file"),
        (40, &[0, 0, 0, 0, 0, 0, 0, 8], "outside the file"),
        (40, &[0xff; 8], "outside the file"),
        (54, &[1], "refcount table"),
        (116, &[0xff; 4], "extensions"),
        (16, &[0, 0, 4, 0], "backing file"),
        (8, &[0xff; 8], "backing file"),
        (120, b"vmdk", "rebase -u"),
        (136, b"n:/x", "is not a local path"),
        (0, b"QFI\xfb", "none"),
    ] {
        let error = with(at, bytes);
        assert!(error.contains(needle), "{at} {bytes:?}: {error}");
    }
    let loops = Builder::new(&[Data])
        .backed("image", "qcow2")
        .build(&content(1));
    fs::write(&path, loops).unwrap();
    assert!(matches!(
        read_chain(&path).err().unwrap(),
        DiskError::Cycle { .. }
    ));
}

/// QEMU opens it for reading too, and repairs it before it writes.
#[test]
fn an_image_that_was_not_closed_is_read_and_not_written() {
    let (_dir, path, model) = image(&[Data, Compressed]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[79] |= 1;
    fs::write(&path, bytes).unwrap();
    assert!(contents(&*read_only(&path).unwrap()) == model);
    let error = open_disk(&path, &OpenOptions::writable(Format::Qcow2));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("qemu-img check -r all"), "{error}");
}

#[test]
fn an_image_that_names_a_file_is_refused_and_the_file_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, pattern(9, 0, SIZE)).unwrap();
    let path = dir.path().join("evil");
    let absolute = secret.to_str().unwrap().to_owned();
    for (name, format) in [
        (absolute.as_str(), "raw"),
        ("secret", "raw"),
        ("../secret", "qcow2"),
        ("missing", ""),
        ("/dev/sda", "host_device"),
        (
            "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
            "raw",
        ),
        ("nbd://10.0.0.1/x", "raw"),
        ("esc\u{1b}[2J", "raw"),
    ] {
        for version in [2, 3] {
            let image = Builder::new(&[Unallocated])
                .backed(name, format)
                .version(version);
            fs::write(&path, image.build(&content(1))).unwrap();
            let layer = LayerOptions {
                base: Some(Base::new(&path, Some(Format::Qcow2))),
                ..LayerOptions::default()
            };
            for error in [
                read_only(&path).err().unwrap(),
                open_disk(&path, &OpenOptions::writable(Format::Qcow2))
                    .err()
                    .unwrap(),
                create_layer(&dir.path().join("layer"), &layer).unwrap_err(),
            ] {
                let DiskError::NamesFile { named, .. } = &error else {
                    panic!("{name} in version {version}: {error}")
                };
                assert_eq!(named, name);
                let text = error.to_string();
                assert!(
                    !text.contains('\u{1b}') && text.contains("qemu-img convert"),
                    "{text}"
                );
            }
        }
    }
}

/// qcow2 has another way to name a file. Nothing opens it, even where a chain is allowed.
#[test]
fn an_external_data_file_is_always_refused() {
    let (_dir, path, _) = image(&[Data]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[79] |= 4;
    bytes[112..132].copy_from_slice(b"DATA\0\0\0\x0b/etc/shadow\0");
    fs::write(&path, bytes).unwrap();
    let error = read_chain(&path).err().unwrap().to_string();
    assert!(error.contains("its data is in another file"), "{error}");
}

#[test]
fn version_2_says_the_format_of_its_backing_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let raw = pattern(9, 0, SIZE);
    fs::write(dir.path().join("raw.img"), &raw).unwrap();
    let old = Builder::new(&[Unallocated, Data])
        .backed("raw.img", "raw")
        .version(2);
    fs::write(&path, old.build(&content(1))).unwrap();
    let model = old.model(&content(1), &raw);
    assert!(contents(&*read_chain(&path).unwrap()) == model);
    // QEMU before extensions: the name follows the header at once.
    let mut bytes = old.build(&content(1));
    bytes[72..112].fill(0);
    bytes[72..79].copy_from_slice(b"raw.img");
    bytes[8..16].copy_from_slice(&72u64.to_be_bytes());
    fs::write(&path, bytes).unwrap();
    let error = read_chain(&path).err().unwrap().to_string();
    assert!(error.contains("rebase -u"), "{error}");
}

#[test]
fn a_truncated_image_is_an_error_and_not_zeroes() {
    let (_dir, path, model) = image(&[Data]);
    let len = fs::metadata(&path).unwrap().len();
    let cut = |by: u64| {
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(len - by)
    };
    // Within the last cluster, which is more than the disk has: harmless.
    cut(3 * 512).unwrap();
    assert!(contents(&*read_only(&path).unwrap()) == model);
    cut(2 * CLUSTER as u64).unwrap();
    let disk = read_only(&path).unwrap();
    disk.read_at(&mut vec![0; CLUSTER], 0).unwrap();
    let error = disk.read_at(&mut vec![0; SIZE as usize], 0).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
}

#[test]
fn a_discard_gives_blocks_back_and_hides_the_backing_image() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("raw.img"), pattern(9, 0, SIZE)).unwrap();
    let path = dir.path().join("top.qcow2");
    let top = Builder::new(&[Unallocated, Compressed]).backed("raw.img", "raw");
    fs::write(&path, top.build(&content(3))).unwrap();
    let blocks = || fs::metadata(&path).unwrap().blocks() * 512;
    let before = blocks();
    let disk = open_disk(&path, &following(OpenOptions::writable(Format::Qcow2))).unwrap();
    disk.write_at(&pattern(7, 0, 15 * CLUSTER as u64), 0)
        .unwrap();
    disk.flush().unwrap();
    assert!(blocks() >= before + 10 * CLUSTER as u64);
    disk.discard(0, SIZE).unwrap();
    disk.flush().unwrap();
    assert!(
        blocks() <= before + 2 * CLUSTER as u64,
        "{before} {}",
        blocks()
    );
    assert!(contents(&*disk).iter().all(|b| *b == 0));
    drop(disk);
    assert!(
        contents(&*read_chain(&path).unwrap())
            .iter()
            .all(|b| *b == 0)
    );
}

/// Says that the calling test is skipped, and why. Where `FLEETBOX_REQUIRE` is set it fails instead.
fn skip(why: &str) {
    let is_on = |value: String| {
        !matches!(
            value.trim().to_ascii_lowercase().as_str(),
            "" | "0" | "false"
        )
    };
    assert!(
        !std::env::var("FLEETBOX_REQUIRE").is_ok_and(is_on),
        "FLEETBOX_REQUIRE is set, and this test cannot run: {why}"
    );
    eprintln!("skipped: {why}");
}

/// QEMU's own tool is the judge of what we read and write, where there is one.
#[test]
fn qemu_img_agrees() {
    let qemu_img = |args: &[&str], dir: &Path| {
        let output = Command::new("qemu-img")
            .args(args)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let version = Command::new("qemu-img")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if version.is_err() {
        return skip("qemu-img is missing");
    }
    let (dir, path, mut model) = chain();
    let dir = dir.path();
    qemu_img(&["check", "top.qcow2"], dir);
    qemu_img(&["convert", "-O", "raw", "top.qcow2", "out.raw"], dir);
    assert!(fs::read(dir.join("out.raw")).unwrap() == model);
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=4k",
        "cluster_size=2M",
    ] {
        qemu_img(
            &[
                "convert",
                "-c",
                "-O",
                "qcow2",
                "-o",
                options,
                "out.raw",
                "new.qcow2",
            ],
            dir,
        );
        assert!(
            contents(&*read_only(&dir.join("new.qcow2")).unwrap()) == model,
            "{options}"
        );
    }
    let disk = open_disk(&path, &following(OpenOptions::writable(Format::Qcow2))).unwrap();
    disk.write_at(&[5; 100_000], 70_000).unwrap();
    disk.discard(300_000, 400_000).unwrap();
    disk.write_zeroes(800_000, 100_000, false).unwrap();
    drop(disk);
    model[70_000..170_000].fill(5);
    model[300_000..700_000].fill(0);
    model[800_000..900_000].fill(0);
    qemu_img(&["check", "top.qcow2"], dir);
    qemu_img(&["convert", "-O", "raw", "top.qcow2", "out.raw"], dir);
    assert!(fs::read(dir.join("out.raw")).unwrap() == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..Default::default() })]

    #[test]
    fn a_layer_over_a_chain_behaves_like_bytes(ops in proptest::collection::vec(op(SIZE), 1..30)) {
        let (dir, base, mut model) = chain();
        let layer = dir.path().join("vm.layer");
        let options = LayerOptions {
            base: Some(Base::new(&base, None)),
            follow: true,
            durable: false,
            ..LayerOptions::default()
        };
        create_layer(&layer, &options).unwrap();
        let before = fs::read(&base).unwrap();
        compare(&mut model, &ops, || {
            open_disk(&layer, &OpenOptions::writable(Format::Layer)).unwrap()
        });
        prop_assert!(fs::read(&base).unwrap() == before);
    }

    #[test]
    fn written_images_behave_like_bytes(ops in proptest::collection::vec(op(SIZE), 1..30)) {
        let (_dir, path, mut model) = chain();
        compare(&mut model, &ops, || {
            open_disk(&path, &following(OpenOptions::writable(Format::Qcow2))).unwrap()
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..Default::default() })]

    #[test]
    fn damaged_images_are_errors_at_worst(
        damage in proptest::collection::vec((0..112usize, 0..320usize, any::<u8>()), 1..4),
        place in 0..5usize,
        cut: Option<prop::sample::Index>,
        write: bool,
        zstd: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let small = Builder {
            cluster_bits: 9,
            size: 20 * 512,
            backing: None,
            kinds: [Data, Compressed, Zero, Unallocated].repeat(5),
            zstd,
            version: 3,
        };
        let mut image = small.build(&pattern(0, 0, small.size));
        for (header, table, value) in damage {
            // The header most of all; the tables' clusters come after it.
            let at = if place == 0 { header } else { place * 512 + table % 160 };
            image[at] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        fs::write(&path, image).unwrap();
        let options = OpenOptions { read_only: !write, ..OpenOptions::writable(Format::Qcow2) };
        if let Ok(disk) = open_disk(&path, &options) {
            prop_assert!(disk.len() <= crate::block::disk::MAX_SIZE);
            let n = disk.len().min(1 << 16);
            let mut buf = vec![0; n as usize];
            for offset in [0, (disk.len() - n) / 2, disk.len() - n] {
                let _ = disk.read_at(&mut buf, offset);
                if write {
                    let _ = disk.write_at(&buf[..n.min(3000) as usize], offset);
                    let _ = disk.discard(offset, n);
                    let _ = disk.flush();
                }
            }
        }
    }
}
