use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::header::{self, Header, Layout};
use super::info::{Base, BaseInfo, LayerOptions};
use crate::block::disk::MAX_SIZE;
use crate::block::model_test::{apply, compare, contents, op, pattern, perform};
use crate::block::{
    DiskError, FileIdentity, Format, OpenOptions, create_layer, create_raw, layer_info, open_disk,
};

const SIZE: u64 = 3 << 20;
/// Larger than the base, and ends within a block.
const GROWN: u64 = SIZE + (1 << 20) + 512 * 5;

fn writable() -> OpenOptions {
    OpenOptions::writable(Format::Layer)
}

fn readable() -> OpenOptions {
    OpenOptions {
        read_only: true,
        ..writable()
    }
}

/// A raw base with a pattern, ending within a block, and a layer over it.
fn fixture(base_size: u64, size: Option<u64>) -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    let bytes = pattern(0x5c, 0, base_size);
    fs::write(&base, &bytes).unwrap();
    let layer = dir.path().join("vm.layer");
    layer_over(&layer, &base, Format::Raw, size);
    (dir, layer, bytes)
}

fn layer_over(layer: &Path, base: &Path, format: Format, size: Option<u64>) {
    let base = Some(Base::new(base, Some(format)));
    create_layer(
        layer,
        &LayerOptions {
            base,
            size,
            ..LayerOptions::default()
        },
    )
    .unwrap();
}

fn blocks_of(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Pretends that the host has booted since.
fn forget_boot(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[7; 16], header::BOOT_ID).unwrap();
}

#[test]
fn a_layer_is_created_small_and_quickly_and_reads_as_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    create_raw(&base, 40 << 30).unwrap();
    let layer = dir.path().join("vm.layer");
    let started = std::time::Instant::now();
    layer_over(&layer, &base, Format::Raw, Some(1 << 40));
    let disk = open_disk(&layer, &writable()).unwrap();
    assert!(
        started.elapsed().as_millis() < 2000,
        "{:?}",
        started.elapsed()
    );
    assert!(blocks_of(&layer) <= 64 << 10);
    assert_eq!(disk.len(), 1 << 40);
    disk.write_at(&[1; 100], (1 << 40) - 100).unwrap();
    disk.discard(1 << 20, 1 << 39).unwrap();
    let mut buf = [9; 200];
    disk.read_at(&mut buf, (1 << 40) - 200).unwrap();
    assert_eq!((&buf[..100], &buf[100..]), (&[0; 100][..], &[1; 100][..]));
}

#[test]
fn the_base_is_never_written() {
    let (dir, layer, bytes) = fixture(SIZE, None);
    let disk = open_disk(&layer, &writable()).unwrap();
    assert!(contents(&*disk) == bytes);
    disk.write_at(&[1; 9000], 700).unwrap();
    disk.discard(0, SIZE).unwrap();
    disk.write_zeroes(0, SIZE, false).unwrap();
    disk.flush().unwrap();
    assert!(fs::read(dir.path().join("base.raw")).unwrap() == bytes);
    assert!(contents(&*disk).iter().all(|b| *b == 0));
}

#[test]
fn a_discard_gives_blocks_back_and_hides_the_base_for_good() {
    let (_dir, layer, mut model) = fixture(SIZE, Some(GROWN));
    model.resize(GROWN as usize, 0);
    let disk = open_disk(&layer, &writable()).unwrap();
    let empty = blocks_of(&layer);
    disk.write_at(&pattern(3, 0, 2 << 20), 0).unwrap();
    disk.flush().unwrap();
    assert!(blocks_of(&layer) >= empty + (2 << 20));
    disk.discard(0, GROWN).unwrap();
    disk.flush().unwrap();
    assert!(
        blocks_of(&layer) <= empty + (64 << 10),
        "{} {empty}",
        blocks_of(&layer)
    );
    assert!(contents(&*disk).iter().all(|b| *b == 0));
    drop(disk);
    let disk = open_disk(&layer, &writable()).unwrap();
    assert!(contents(&*disk).iter().all(|b| *b == 0));
    // Zeroes that keep their blocks.
    disk.write_zeroes(0, 1 << 20, false).unwrap();
    disk.flush().unwrap();
    assert!(blocks_of(&layer) >= empty + (1 << 20));
}

#[test]
fn ranges_beyond_the_end_and_writes_to_read_only_disks_fail() {
    let (_dir, layer, bytes) = fixture(SIZE, None);
    let disk = open_disk(&layer, &writable()).unwrap();
    for (offset, len) in [
        (SIZE, 1),
        (SIZE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, u64::MAX),
    ] {
        assert!(disk.discard(offset, len).is_err());
        assert!(disk.write_zeroes(offset, len, false).is_err());
        assert!(
            disk.read_at(&mut vec![0; len.min(4) as usize], offset)
                .is_err()
        );
        assert!(
            disk.write_at(&vec![0; len.min(4) as usize], offset)
                .is_err()
        );
    }
    disk.read_at(&mut [], SIZE).unwrap();
    disk.write_at(&[], SIZE).unwrap();
    disk.discard(SIZE, 0).unwrap();
    drop(disk);
    let disk = open_disk(&layer, &readable()).unwrap();
    let read_only = io::ErrorKind::ReadOnlyFilesystem;
    assert!(disk.read_only());
    assert_eq!(disk.write_at(&[0], 0).unwrap_err().kind(), read_only);
    assert_eq!(disk.discard(0, 1).unwrap_err().kind(), read_only);
    assert_eq!(disk.write_zeroes(0, 1, true).unwrap_err().kind(), read_only);
    disk.flush().unwrap();
    assert!(contents(&*disk) == bytes);
}

#[test]
fn two_writers_are_refused_and_readers_share() {
    let (dir, layer, _) = fixture(SIZE, None);
    let base = dir.path().join("base.raw");
    let disk = open_disk(&layer, &writable()).unwrap();
    let error = open_disk(&layer, &writable()).err().unwrap();
    assert!(matches!(&error, DiskError::InUse { path, writer: true } if *path == layer));
    assert!(error.to_string().contains("vm.layer") && error.to_string().contains("stop the VM"));
    assert!(open_disk(&layer, &readable()).is_err());
    assert_eq!(layer_info(&layer).unwrap().own, 0);
    // The base is shared by layers and by readers, and nobody can write to it.
    let second = dir.path().join("second.layer");
    layer_over(&second, &base, Format::Raw, None);
    let other = open_disk(&second, &writable()).unwrap();
    open_disk(&base, &OpenOptions::read_only()).unwrap();
    assert!(open_disk(&base, &OpenOptions::writable(Format::Raw)).is_err());
    drop((disk, other));
    open_disk(&base, &OpenOptions::writable(Format::Raw)).unwrap();
}

#[test]
fn a_base_that_changed_is_refused() {
    let (dir, layer, bytes) = fixture(SIZE, None);
    let base = dir.path().join("base.raw");
    let times = fs::metadata(&base).unwrap().modified().unwrap();
    let set_time = |path: &Path| {
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(times)
            .unwrap();
    };
    let refused = |options: &OpenOptions| match open_disk(&layer, options).err() {
        Some(DiskError::BaseChanged { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    fs::write(&base, &bytes).unwrap();
    assert!(refused(&writable()).contains("modified"));
    set_time(&base);
    open_disk(&layer, &writable()).unwrap();
    let copy = dir.path().join("copy.raw");
    fs::write(&copy, &bytes).unwrap();
    set_time(&copy);
    let elsewhere = OpenOptions {
        base: Some(copy.clone()),
        ..writable()
    };
    assert!(refused(&elsewhere).contains("another file"));
    fs::write(&base, &bytes[512..]).unwrap();
    assert!(refused(&writable()).contains("length"));
    fs::remove_file(&base).unwrap();
    assert!(matches!(
        open_disk(&layer, &writable()).err(),
        Some(DiskError::Io { .. })
    ));
    // With a digest the content counts, not the file.
    fs::write(&base, &bytes).unwrap();
    let layer = dir.path().join("digest.layer");
    let known = Base {
        digest: Some("sha256:1".into()),
        ..Base::new(&base, None)
    };
    create_layer(
        &layer,
        &LayerOptions {
            base: Some(known),
            ..Default::default()
        },
    )
    .unwrap();
    let options = OpenOptions {
        base_digest: Some("sha256:1".into()),
        ..elsewhere
    };
    assert!(contents(&*open_disk(&layer, &options).unwrap()) == bytes);
    let options = OpenOptions {
        base_digest: Some("sha256:2".into()),
        ..options
    };
    assert!(
        open_disk(&layer, &options)
            .err()
            .unwrap()
            .to_string()
            .contains("digest")
    );
}

#[test]
fn bad_sizes_and_existing_files_are_refused_and_leave_nothing() {
    let (dir, layer, _) = fixture(SIZE, None);
    let base = Some(Base::new(&dir.path().join("base.raw"), None));
    let at = dir.path().join("new.layer");
    for size in [0, 511, SIZE - 512, SIZE + 1, MAX_SIZE + 512, u64::MAX] {
        let options = LayerOptions {
            base: base.clone(),
            size: Some(size),
            ..LayerOptions::default()
        };
        let error = create_layer(&at, &options).err().unwrap();
        let expected = match size {
            size if size == SIZE - 512 => {
                matches!(
                    error,
                    DiskError::TooSmall {
                        base_size: SIZE,
                        ..
                    }
                )
            }
            _ => matches!(error, DiskError::BadSize { .. }),
        };
        assert!(expected, "{error}");
    }
    let options = LayerOptions {
        base,
        ..Default::default()
    };
    let error = create_layer(&layer, &options).err().unwrap();
    assert!(error.to_string().contains("exists"), "{error}");
    assert!(create_layer(&dir.path().join("no/dir"), &options).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn after_a_crash_of_the_host_what_was_flushed_is_there_and_the_rest_is_the_base() {
    let (_dir, layer, mut model) = fixture(SIZE, None);
    let disk = open_disk(&layer, &writable()).unwrap();
    disk.write_at(&[1; 4096], 0).unwrap();
    disk.discard(8192, 4096).unwrap();
    disk.flush().unwrap();
    disk.write_at(&[2; 4096], 1 << 20).unwrap();
    drop(disk);
    forget_boot(&layer);
    model[..4096].fill(1);
    model[8192..12288].fill(0);
    assert!(contents(&*open_disk(&layer, &readable()).unwrap()) == model);
    let disk = open_disk(&layer, &writable()).unwrap();
    assert!(contents(&*disk) == model);
    // What lies in the file from the lost write does not come back.
    disk.write_at(&[3; 512], (1 << 20) + 512).unwrap();
    model[(1 << 20) + 512..][..512].fill(3);
    drop(disk);
    assert!(contents(&*open_disk(&layer, &writable()).unwrap()) == model);
}

#[test]
fn a_disk_that_is_not_durable_survives_without_flushes() {
    let (_dir, layer, mut model) = fixture(SIZE, None);
    let options = OpenOptions {
        durable: false,
        ..writable()
    };
    let disk = open_disk(&layer, &options).unwrap();
    disk.write_at(&[1; 777], 12345).unwrap();
    disk.flush().unwrap();
    drop(disk);
    model[12345..][..777].fill(1);
    assert!(contents(&*open_disk(&layer, &options).unwrap()) == model);
}

#[test]
fn info_tells_what_was_created() {
    let (dir, layer, _) = fixture(SIZE, Some(GROWN));
    let info = layer_info(&layer).unwrap();
    let base = info.base.clone().unwrap();
    assert_eq!((info.size, info.own), (GROWN, 0));
    assert_eq!(
        base.base.path,
        fs::canonicalize(dir.path().join("base.raw")).unwrap()
    );
    assert_eq!((base.base.format, base.size), (Some(Format::Raw), SIZE));
    let disk = open_disk(&layer, &writable()).unwrap();
    disk.write_at(&[1; 10], 5000).unwrap();
    assert_eq!(layer_info(&layer).unwrap().own, 4096);
}

/// Its header names a file of the host, and the checksum is no protection: it has no key.
#[test]
fn a_layer_that_was_given_as_an_image_does_not_open_its_base() {
    let (dir, layer, bytes) = fixture(SIZE, None);
    let over = |base: &Path, format| {
        let base = Some(Base::new(base, format));
        let options = LayerOptions {
            base,
            ..LayerOptions::default()
        };
        create_layer(&dir.path().join("over.layer"), &options)
    };
    let detected = OpenOptions {
        read_only: false,
        ..OpenOptions::read_only()
    };
    for error in [
        open_disk(&layer, &OpenOptions::read_only()).err().unwrap(),
        open_disk(&layer, &detected).err().unwrap(),
        over(&layer, None).unwrap_err(),
    ] {
        let DiskError::NamesFile { named, .. } = &error else {
            panic!("{error}")
        };
        assert!(named.ends_with("base.raw"), "{error}");
    }
    let follow = OpenOptions {
        follow: true,
        ..OpenOptions::read_only()
    };
    assert!(contents(&*open_disk(&layer, &follow).unwrap()) == bytes);
    over(&layer, Some(Format::Layer)).unwrap();
    // It names nothing.
    let alone = dir.path().join("alone.layer");
    let options = LayerOptions {
        size: Some(SIZE),
        ..LayerOptions::default()
    };
    create_layer(&alone, &options).unwrap();
    open_disk(&alone, &OpenOptions::read_only()).unwrap();
}

#[test]
fn a_cycle_and_a_long_chain_are_refused() {
    let (dir, first, _) = fixture(SIZE, None);
    let mut below = first.clone();
    for n in 0..14 {
        let path = dir.path().join(format!("{n}.layer"));
        layer_over(&path, &below, Format::Layer, None);
        below = path;
    }
    // Sixteen files.
    let top = open_disk(&below, &writable()).unwrap();
    assert_eq!(top.len(), SIZE);
    drop(top);
    let base = Some(Base::new(&below, Some(Format::Layer)));
    let path = dir.path().join("too-long.layer");
    create_layer(
        &path,
        &LayerOptions {
            base,
            ..Default::default()
        },
    )
    .unwrap();
    let error = open_disk(&path, &writable()).err().unwrap();
    assert!(matches!(error, DiskError::ChainTooLong { .. }), "{error}");
    let second = dir.path().join("0.layer");
    let looped = OpenOptions {
        base: Some(second.clone()),
        ..writable()
    };
    let error = open_disk(&second, &looped).err().unwrap();
    assert!(matches!(error, DiskError::Cycle { .. }), "{error}");
}

#[test]
fn threads_that_share_blocks_lose_nothing() {
    let (_dir, layer, mut model) = fixture(SIZE, None);
    let disk = open_disk(&layer, &writable()).unwrap();
    // Each thread has every fourth sector, so all blocks are written by two or more.
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let disk = Arc::clone(&disk);
            scope.spawn(move || {
                for sector in (thread..SIZE / 512).step_by(4) {
                    match sector % 7 {
                        0 => disk.discard(sector * 512, 512).unwrap(),
                        1 => {}
                        _ => disk
                            .write_at(&[thread as u8 + 1; 512], sector * 512)
                            .unwrap(),
                    }
                    if sector % 512 == 0 {
                        disk.flush().unwrap();
                    }
                }
            });
        }
    });
    for (sector, bytes) in model.chunks_mut(512).enumerate() {
        match sector % 7 {
            0 => bytes.fill(0),
            1 => {}
            _ => bytes.fill(sector as u8 % 4 + 1),
        }
    }
    assert!(contents(&*disk) == model);
    drop(disk);
    assert!(contents(&*open_disk(&layer, &writable()).unwrap()) == model);
}

/// Run in a child process, which is killed: tells each operation before and after doing it.
#[test]
fn child_that_writes() {
    use std::io::Write;
    let Some(path) = std::env::var_os("FLEETBOX_TEST_LAYER") else {
        return;
    };
    let disk = open_disk(Path::new(&path), &writable()).unwrap();
    let mut out = io::stdout().lock();
    for n in 0u64.. {
        writeln!(out, "begin {n}").unwrap();
        out.flush().unwrap();
        perform(&*disk, &child_op(n));
        writeln!(out, "end {n}").unwrap();
        out.flush().unwrap();
    }
}

/// The `n`th operation of the child, the same in every process.
fn child_op(n: u64) -> crate::block::model_test::Op {
    use crate::block::model_test::Op;
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    random(2);
    let offset = random(GROWN / 512) * 512;
    let len = ((random(64) + 1) * 512).min(GROWN - offset);
    match random(8) {
        0 | 1 => Op::Discard { offset, len },
        2 => Op::WriteZeroes {
            offset,
            len,
            unmap: false,
        },
        3 if n.is_multiple_of(16) => Op::Flush,
        _ => Op::Write {
            offset,
            len,
            seed: n as u8,
        },
    }
}

#[test]
fn a_kill_in_the_middle_of_writes_keeps_all_that_was_completed() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    for round in 0..6u64 {
        let (_dir, layer, mut model) = fixture(SIZE, Some(GROWN));
        model.resize(GROWN as usize, 0);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "block::layer::layer_test::child_that_writes",
                "--nocapture",
            ])
            .env("FLEETBOX_TEST_LAYER", &layer)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut begun, mut ended) = (0, 0);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(n) = line.split("begin ").nth(1) {
                begun = n.parse::<u64>().unwrap() + 1;
            } else if let Some(n) = line.strip_prefix("end ") {
                ended = n.parse::<u64>().unwrap() + 1;
            }
            if ended == 120 + round * 57 {
                // What it still writes is read to the end of its pipe.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(ended >= 120 && begun - ended <= 1, "{begun} {ended}");
        (0..ended).for_each(|n| apply(&mut model, &child_op(n)));
        let before = model.clone();
        (ended..begun).for_each(|n| apply(&mut model, &child_op(n)));
        let after = model;
        // The operation that was cut off may be done in part.
        let is = contents(&*open_disk(&layer, &writable()).unwrap());
        for ((is, before), after) in is
            .chunks(512)
            .zip(before.chunks(512))
            .zip(after.chunks(512))
        {
            assert!(is == before || is == after);
        }
    }
}

#[test]
fn a_full_host_is_an_error_and_harms_nothing() {
    // Run in a child process, because the limit is the whole process's.
    if let Some(path) = std::env::var_os("FLEETBOX_TEST_FULL") {
        let disk = open_disk(Path::new(&path), &writable()).unwrap();
        let model = contents(&*disk);
        let data = Layout::new(SIZE).data;
        // SAFETY: SIG_IGN is a valid disposition, and no handler code runs.
        unsafe {
            nix::sys::signal::signal(
                nix::sys::signal::SIGXFSZ,
                nix::sys::signal::SigHandler::SigIgn,
            )
        }
        .unwrap();
        let limit = data + (1 << 20) + 1000;
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, limit, limit)
            .unwrap();
        // Across the limit (a short write, then an error), beyond it, and one that fits.
        assert!(disk.write_at(&[1; 8192], 1 << 20).is_err());
        assert!(disk.write_at(&[1; 100], 2 << 20).is_err());
        assert!(contents(&*disk) == model);
        disk.write_at(&[2; 4096], 4096).unwrap();
        disk.flush().unwrap();
        return;
    }
    let (_dir, layer, mut model) = fixture(SIZE, None);
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "block::layer::layer_test::a_full_host_is_an_error_and_harms_nothing",
        ])
        .env("FLEETBOX_TEST_FULL", &layer)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    model[4096..8192].fill(2);
    assert!(contents(&*open_disk(&layer, &writable()).unwrap()) == model);
}

fn header() -> Header {
    Header {
        size: GROWN,
        base: Some(BaseInfo {
            base: Base {
                path: "/some/where/base.qcow2".into(),
                format: Some(Format::Qcow2),
                digest: Some("sha512:abc".into()),
            },
            size: SIZE,
            identity: FileIdentity {
                len: 77,
                mtime: -5,
                mtime_nanos: 6,
                inode: u64::MAX,
            },
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn behaves_like_bytes_over_a_raw_base(ops in proptest::collection::vec(op(GROWN), 1..40)) {
        let (_dir, layer, mut model) = fixture(SIZE - 512, Some(GROWN));
        model.resize(GROWN as usize, 0);
        compare(&mut model, &ops, || open_disk(&layer, &writable()).unwrap());
    }

    #[test]
    fn stacked_layers_behave_like_bytes(
        below in proptest::collection::vec(op(SIZE), 1..20),
        ops in proptest::collection::vec(op(GROWN), 1..30),
    ) {
        let (dir, first, mut model) = fixture(SIZE, None);
        compare(&mut model, &below, || open_disk(&first, &writable()).unwrap());
        let (frozen, base) = (model.clone(), first.clone());
        let second = dir.path().join("second.layer");
        layer_over(&second, &base, Format::Layer, Some(GROWN));
        model.resize(GROWN as usize, 0);
        compare(&mut model, &ops, || open_disk(&second, &writable()).unwrap());
        prop_assert!(contents(&*open_disk(&first, &readable()).unwrap()) == frozen);
    }

    #[test]
    fn damaged_headers_are_refused(at in 0..header::LEN, value: u8, cut in any::<prop::sample::Index>()) {
        let header = header();
        let end = Layout::new(header.size).end;
        let mut bytes: [u8; header::LEN] = header.encode().unwrap().try_into().unwrap();
        prop_assert_eq!(Header::decode(&bytes, Path::new("x"), end).unwrap(), header.clone());
        let short = cut.index(end as usize) as u64;
        prop_assert!(Header::decode(&bytes, Path::new("x"), short).is_err());
        let was = std::mem::replace(&mut bytes[at], value);
        match Header::decode(&bytes, Path::new("x"), end) {
            Ok(decoded) => {
                prop_assert!(was == value || at >= 4360);
                prop_assert_eq!(decoded, header);
            }
            Err(_) => prop_assert!(was != value),
        }
    }
}
