//! Replayed journals, compared with what `e2fsck` makes of the same file system.

use std::path::Path;
use std::process::Command;

use super::crc::crc32c;
use super::ext4::Ext4Volume;
use super::fs::{FsError, Volume};
use super::testing::{self, MemoryDisk};

const FILES: [&str; 3] = ["/boot/kernel", "/boot/initrd", "/boot/config"];

/// A file system of blocks of `block_size` bytes, and a block of each of [`FILES`].
struct Fixture {
    dir: tempfile::TempDir,
    block_size: usize,
    blocks: Vec<u64>,
}

impl Fixture {
    fn new(block_size: usize, options: &[&str]) -> Self {
        let size = block_size.to_string();
        let mut all = vec!["-b", &size, "-J", "size=4"];
        all.extend_from_slice(options);
        let content = |seed: u8| {
            (0..20_000u32)
                .map(|i| (i / 7) as u8 ^ seed)
                .collect::<Vec<u8>>()
        };
        let contents = [content(1), content(2), content(3)];
        let files: Vec<(&str, &[u8])> = FILES
            .iter()
            .zip(&contents)
            .map(|(path, data)| (*path, data.as_slice()))
            .collect();
        let image = testing::ext4(32 << 20, &all, &files);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), image).unwrap();
        let mut fixture = Self {
            dir,
            block_size,
            blocks: Vec::new(),
        };
        fixture.blocks = FILES
            .iter()
            .map(|path| {
                fixture
                    .debugfs(&format!("bmap {path} 0"))
                    .trim()
                    .parse()
                    .unwrap()
            })
            .collect();
        fixture
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("image")).unwrap()
    }

    fn debugfs(&self, request: &str) -> String {
        debugfs(&self.dir.path().join("image"), request)
    }

    /// Runs journal commands; `{0}` stands for the first file's block, and `a`, `b`, `c` and
    /// `magic` for files to write, one block of that letter.
    fn journal(&self, commands: &[&str]) {
        for letter in ["a", "b", "c"] {
            let data = letter.repeat(2 * self.block_size);
            std::fs::write(self.dir.path().join(letter), data).unwrap();
        }
        let mut magic = 0xC03B_3998u32.to_be_bytes().to_vec();
        magic.resize(self.block_size, 7);
        std::fs::write(self.dir.path().join("magic"), magic).unwrap();
        let mut script = commands.join("\n") + "\n";
        for (i, block) in self.blocks.iter().enumerate() {
            script = script.replace(&format!("{{{i}}}"), &block.to_string());
        }
        std::fs::write(self.dir.path().join("script"), script).unwrap();
        let mut command = Command::new("debugfs");
        command
            .args(["-w", "-f", "script", "image"])
            .current_dir(self.dir.path());
        testing::tool("e2fsprogs", &mut command, "");
        assert!(self.debugfs("stats -h").contains("needs_recovery"));
    }

    /// Moves the log within the journal so that it wraps after its first two blocks.
    fn wrap(&self) {
        let mut image = self.image();
        let list = self.debugfs("blocks <8>");
        let blocks: Vec<usize> = list
            .split_whitespace()
            .map(|block| block.parse().unwrap())
            .collect();
        let old = image.clone();
        let span = blocks.len() - 1;
        let at = |index: usize| blocks[index] * self.block_size;
        let moved = |index: usize| (index - 1 + span - 2) % span + 1;
        for index in 1..=span {
            let (from, to) = (at(index), at(moved(index)));
            image[to..to + self.block_size].copy_from_slice(&old[from..from + self.block_size]);
        }
        let superblock = &mut image[at(0)..at(0) + 1024];
        let start = u32::from_be_bytes(superblock[0x1C..0x20].try_into().unwrap());
        assert_eq!(start, 1);
        superblock[0x1C..0x20].copy_from_slice(&(moved(1) as u32).to_be_bytes());
        if superblock[0x50] != 0 {
            superblock[0xFC..0x100].fill(0);
            let checksum = crc32c(!0, superblock);
            superblock[0xFC..0x100].copy_from_slice(&checksum.to_be_bytes());
        }
        std::fs::write(self.dir.path().join("image"), image).unwrap();
    }

    /// Bytes of the journal's block `index` are changed by `change`.
    fn damage(&self, index: usize, change: impl FnOnce(&mut [u8])) {
        let mut image = self.image();
        let list = self.debugfs("blocks <8>");
        let block: usize = list.split_whitespace().nth(index).unwrap().parse().unwrap();
        let at = block * self.block_size;
        change(&mut image[at..at + self.block_size]);
        std::fs::write(self.dir.path().join("image"), image).unwrap();
    }

    /// Our reading of the files.
    fn ours(&self) -> Result<Vec<Vec<u8>>, FsError> {
        let window = testing::window(MemoryDisk::arc(self.image()));
        let volume = Ext4Volume::open(window)?;
        FILES
            .iter()
            .map(|path| volume.read(path, 1 << 20))
            .collect()
    }

    /// The files after a recovery by e2fsck, of a copy.
    fn theirs(&self) -> Vec<Vec<u8>> {
        let copy = self.dir.path().join("copy");
        std::fs::copy(self.dir.path().join("image"), &copy).unwrap();
        // 1: it has corrected something.
        let status = Command::new("e2fsck")
            .arg("-fy")
            .arg(&copy)
            .env("PATH", path())
            .output();
        assert!(status.unwrap().status.code().unwrap() <= 1);
        FILES
            .iter()
            .map(|path| {
                let out = self.dir.path().join("out");
                debugfs(&copy, &format!("dump {path} {}", out.display()));
                std::fs::read(out).unwrap()
            })
            .collect()
    }

    /// Both agree; returns the files' first letters.
    fn agree(&self) -> String {
        let ours = self.ours().unwrap();
        assert!(ours == self.theirs());
        letters(&ours)
    }
}

/// What each file's first block was replaced by.
fn letters(files: &[Vec<u8>]) -> String {
    let first = |data: &Vec<u8>| {
        if data[1] == data[464] {
            char::from(data[1])
        } else {
            '-'
        }
    };
    files.iter().map(first).collect()
}

fn path() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}

fn debugfs(image: &Path, request: &str) -> String {
    let output = Command::new("debugfs")
        .arg("-R")
        .arg(request)
        .arg(image)
        .env("PATH", path())
        .output();
    let output = output.expect("`debugfs` is needed by this test: install e2fsprogs");
    String::from_utf8(output.stdout).unwrap()
}

/// The log that most tests have: four transactions, one block revoked and written again, one only
/// revoked.
const LOG: [&str; 6] = [
    "jw -b {0},{1} a",
    "jw -b {2} c",
    "jw -r {0},{2}",
    "jw -b {0} b",
    "jw -b {1} c",
    "jc",
];

#[test]
fn journals_of_every_kind_are_replayed() {
    for (block_size, open, options) in [
        (4096, "jo -c", &[][..]),
        (1024, "jo -c", &[]),
        (4096, "jo", &["-O", "^metadata_csum"]),
        (1024, "jo", &["-O", "^metadata_csum,^64bit"]),
        (4096, "jo -c -v 2", &[]),
    ] {
        let fixture = Fixture::new(block_size, options);
        let before = fixture.ours().unwrap();
        fixture.journal(&[&[open][..], &LOG].concat());
        assert_eq!(fixture.agree(), "bc-", "{block_size} {open}");
        assert!(fixture.ours().unwrap()[2] == before[2]);
        fixture.wrap();
        assert_eq!(fixture.agree(), "bc-", "{block_size} {open}, wrapped");
    }
}

#[test]
fn blocks_that_look_like_the_journals_are_restored() {
    let fixture = Fixture::new(4096, &[]);
    fixture.journal(&["jo -c", "jw -b {1} magic", "jc"]);
    fixture.agree();
    let ours = fixture.ours().unwrap();
    assert_eq!(ours[1][..8], [0xC0, 0x3B, 0x39, 0x98, 7, 7, 7, 7]);
}

#[test]
fn a_transaction_that_is_not_whole_does_not_count() {
    // Blocks 1 to 3: descriptor, data, commit; then the same again.
    let fixture = || {
        let fixture = Fixture::new(4096, &[]);
        fixture.journal(&["jo -c", "jw -b {0} a", "jw -b {0} b", "jc"]);
        assert_eq!(fixture.agree(), "b--");
        fixture
    };
    let torn = fixture();
    torn.damage(6, |commit| commit.fill(0));
    assert_eq!(torn.agree(), "a--");
    let flipped = fixture();
    flipped.damage(6, |commit| commit[200] ^= 1);
    assert_eq!(flipped.agree(), "a--");
    let descriptor = fixture();
    descriptor.damage(4, |descriptor| descriptor[200] ^= 1);
    // Here e2fsck gives up on the journal; what came before is whole all the same.
    assert_eq!(letters(&descriptor.ours().unwrap()), "a--");
}

#[test]
fn damage_is_an_error_and_not_a_kernel() {
    let fixture = Fixture::new(4096, &[]);
    fixture.journal(&["jo -c", "jw -b {0} a", "jc"]);
    fixture.damage(2, |data| data[100] ^= 1);
    let error = fixture.ours().unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
    fixture.damage(0, |superblock| superblock[0x1F] ^= 1);
    assert!(fixture.ours().is_err());
}

#[test]
fn any_damage_to_a_journal_has_an_answer() {
    use proptest::prelude::*;
    // Without checksums, so that the damage gets further.
    let fixture = Fixture::new(1024, &["-O", "^metadata_csum"]);
    fixture.journal(&[&["jo"][..], &LOG].concat());
    let image = fixture.image();
    let list = fixture.debugfs("blocks <8>");
    let blocks: Vec<usize> = list
        .split_whitespace()
        .take(20)
        .map(|b| b.parse().unwrap())
        .collect();
    let change = (0..blocks.len(), 0..1024usize, any::<u8>());
    // Most of what matters is at the beginning of a block.
    let near = (0..blocks.len(), 0..64usize, any::<u8>());
    let changes = prop::collection::vec(prop_oneof![change, near], 1..8);
    proptest!(ProptestConfig::with_cases(100), |(changes in changes)| {
        let mut image = image.clone();
        for (block, offset, value) in changes {
            image[blocks[block] * 1024 + offset] = value;
        }
        if let Ok(volume) = Ext4Volume::open(testing::window(MemoryDisk::arc(image))) {
            for path in FILES {
                let _ = volume.read(path, 1 << 20);
            }
        }
    });
}
