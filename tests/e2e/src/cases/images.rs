//! Downloads, and images that are not what they should be.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fleetbox::{Error, Fleet, Vm, images::ImageRef};

use crate::host;
use crate::report::Must;
use crate::suite::{Suite, sha256, sha256_of};

/// Bytes that differ from file to file and do not repeat.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

/// The connection breaks on the way: the rest is asked for, not all of it, and the whole is verified.
pub(crate) fn download_is_resumed(suite: &Suite) {
    let content = noise(8 << 20, 1);
    fs::write(suite.served("resumed.img"), &content).must("cannot write a file");
    suite.add_to_catalogue("resumed", "resumed.img", &sha256(&content));
    suite.server().cut_next(3 << 20);
    let output = host::run(
        suite.fleetbox(&["images", "pull", "resumed"]),
        Duration::from_secs(60),
    );
    assert!(output.status.success(), "{}", host::both(&output));
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(Path::new(&path).starts_with(suite.home()), "{path}");
    assert_eq!(sha256_of(Path::new(&path)), sha256(&content));
    let requests: Vec<_> = suite
        .server()
        .requests()
        .into_iter()
        .filter(|r| r.path == "/resumed.img")
        .collect();
    let ranges: Vec<_> = requests.iter().filter_map(|r| r.range.as_deref()).collect();
    assert!(
        ranges.iter().any(|range| *range != "bytes=0-")
            && requests.last().is_some_and(|r| r.status == 206),
        "the download was not continued: {requests:?}"
    );
    // Downloaded once, it is not asked for again.
    let before = suite.server().requests().len();
    let again = host::run(
        suite.fleetbox(&["images", "pull", "resumed"]),
        Duration::from_secs(60),
    );
    assert!(again.status.success(), "{}", host::both(&again));
    assert_eq!(
        suite.server().requests().len(),
        before,
        "a downloaded image was asked for again"
    );
}

/// Nothing is left of a download with another content than promised, and both sums are named.
pub(crate) fn wrong_checksum(suite: &Suite) {
    let content = noise(4 << 20, 2);
    let promised = sha256(b"another content");
    fs::write(suite.served("wrong.img"), &content).must("cannot write a file");
    suite.add_to_catalogue("wrong", "wrong.img", &promised);
    let output = host::run(
        suite.fleetbox(&["images", "pull", "wrong"]),
        Duration::from_secs(60),
    );
    assert_eq!(output.status.code(), Some(1), "{}", host::both(&output));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains(&promised) && error.contains(&sha256(&content)),
        "not both sums: {error}"
    );
    let left: Vec<_> = fs::read_dir(suite.home().join("images"))
        .must("cannot list the images")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("wrong"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// A copy of the tiny image's file; holes stay holes.
fn copy_of_tiny(suite: &Suite, name: &str) -> std::path::PathBuf {
    let target = suite.dir().join(name);
    let mut command = Command::new("cp");
    command
        .arg("--sparse=always")
        .arg(suite.image_file("tiny.raw"))
        .arg(&target);
    let output = host::run(command, Duration::from_secs(60));
    assert!(output.status.success(), "{}", host::both(&output));
    target
}

/// Starts a VM that cannot boot, and returns why.
fn refused_boot(suite: &Suite, name: &str, image: &Path) -> String {
    crate::report::uses(name);
    let image = image
        .to_str()
        .expect("the suite's paths are UTF-8")
        .to_owned();
    assert!(image.parse::<ImageRef>().is_ok());
    let began = Instant::now();
    let started = suite.block(suite.small(Vm::builder(name)).image(image).start());
    let error = match started {
        Ok(_) => panic!("a VM with a damaged disk started"),
        Err(error) => error.to_string(),
    };
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "it took {:?} to find out: {error}",
        began.elapsed()
    );
    // The start made the VM, whose machine never ran, so nothing is left of it.
    let left = suite.block(Fleet::at(suite.home()).remove(name));
    assert!(matches!(left, Err(Error::NoVm { .. })), "{left:?}");
    error
}

/// Disks that cannot be read end in an error that says what is damaged.
pub(crate) fn damaged(suite: &Suite) {
    let path = copy_of_tiny(suite, "no-gpt.raw");
    let disk = File::options()
        .write(true)
        .open(&path)
        .must("cannot open the copy");
    let size = disk.metadata().must("cannot look at the copy").len();
    let noise = noise(512, 3);
    // The header of the table, and that of its backup.
    for at in [512, size - 512] {
        disk.write_all_at(&noise, at).must("cannot damage the copy");
    }
    let error = refused_boot(suite, "no-gpt", &path);
    assert!(
        error.contains("GPT") || error.contains("partition table"),
        "{error}"
    );

    let path = copy_of_tiny(suite, "no-ext4.raw");
    let disk = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .must("cannot open the copy");
    let partitions = partitions(&disk);
    assert!(!partitions.is_empty(), "the tiny image has no partitions");
    let mut damaged = 0;
    for start in partitions {
        let mut magic = [0; 2];
        // The superblock of ext4 is at byte 1024, and its magic number at byte 56 of that.
        disk.read_exact_at(&mut magic, start + 1024 + 56)
            .must("cannot read the copy");
        if magic == [0x53, 0xef] {
            disk.write_all_at(&noise, start + 1024)
                .must("cannot damage the copy");
            damaged += 1;
        }
    }
    assert!(damaged > 0, "the tiny image has no ext4 file system");
    let error = refused_boot(suite, "no-ext4", &path);
    // What the ESP's configuration looks for.
    assert!(
        error.contains("no partition with the file system UUID"),
        "{error}"
    );
}

/// Where partitions begin, in bytes: the entries of a GPT (UEFI 2.10, section 5.3.3).
fn partitions(disk: &File) -> Vec<u64> {
    let mut entries = vec![0; 128 * 128];
    disk.read_exact_at(&mut entries, 1024)
        .must("cannot read the copy");
    entries
        .chunks_exact(128)
        .filter(|entry| entry[..16] != [0; 16])
        .filter_map(|entry| Some(u64::from_le_bytes(entry[32..40].try_into().ok()?) * 512))
        .collect()
}
