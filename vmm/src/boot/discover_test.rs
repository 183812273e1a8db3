//! Whole disks.

use super::testing::{self, ESP_AT, MemoryDisk, ROOT_AT, cloud_disk};
use super::{BootError, BootPlan, Limits, discover};

const UUID: &str = "8e0c5f11-6d0c-4a52-b0d2-3f6ac2a8f3a0";

fn config() -> String {
    format!(
        "set default=0\nmenuentry 'Debian' --id d {{\n search --no-floppy --fs-uuid --set=root {UUID}\n \
         linux /boot/vmlinuz root=PARTUUID=1234 ro\n initrd /boot/ucode /boot/initrd.img\n}}\n"
    )
}

fn stub() -> String {
    format!(
        "search.fs_uuid {UUID} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    )
}

/// Recognisable bytes.
fn content(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 3) as u8 ^ seed).collect()
}

fn root(options: &[&str]) -> Vec<u8> {
    let mut all = vec!["-U", UUID];
    all.extend_from_slice(options);
    testing::ext4(
        16 << 20,
        &all,
        &[
            ("/boot/grub/grub.cfg", config().as_bytes()),
            ("/boot/vmlinuz", b"->vmlinuz-6.1"),
            ("/boot/vmlinuz-6.1", &content(3_000_001, 1)),
            ("/boot/initrd.img", b"->/boot/../boot/./images/initrd.img"),
            ("/boot/images/initrd.img", &content(2_000_000, 2)),
            ("/boot/ucode", &content(10_001, 3)),
        ],
    )
}

fn esp() -> Vec<u8> {
    testing::fat(
        8192 * 512,
        &[],
        &[
            ("/EFI/BOOT/BOOTX64.EFI", b"MZ"),
            ("/EFI/debian/grub.cfg", stub().as_bytes()),
            ("/EFI/a name that is long/readme", b"text"),
        ],
    )
}

fn plan(disk: Vec<u8>) -> Result<BootPlan, BootError> {
    discover(MemoryDisk::disk(disk), &Limits::default())
}

fn check(plan: &BootPlan) {
    assert_eq!(
        plan.cmdline,
        "BOOT_IMAGE=/boot/vmlinuz root=PARTUUID=1234 ro"
    );
    assert_eq!(plan.kernel, content(3_000_001, 1));
    let mut initrd = content(10_001, 3);
    initrd.extend([0; 3]);
    initrd.extend(content(2_000_000, 2));
    assert!(plan.initrd.as_ref() == Some(&initrd));
}

#[test]
fn a_cloud_image_boots() {
    let found = plan(cloud_disk(&esp(), &root(&[]))).unwrap();
    check(&found);
    assert_eq!(found.source.config, "(hd0,gpt1)/boot/grub/grub.cfg");
    assert_eq!(found.source.kernel, "(hd0,gpt1)/boot/vmlinuz");
    assert_eq!(found.source.entry, ["Debian"]);
    let text = found.describe();
    assert!(
        text.contains("Debian") && text.contains("root=PARTUUID=1234"),
        "{text}"
    );
}

#[test]
fn file_system_variants() {
    for options in [
        &["-b", "1024"][..],
        &["-b", "4096", "-O", "^metadata_csum,^64bit"],
        &["-O", "^has_journal"],
        &["-O", "metadata_csum_seed"],
        &["-I", "128", "-O", "^metadata_csum"],
    ] {
        check(
            &plan(cloud_disk(&esp(), &root(options))).unwrap_or_else(|e| panic!("{options:?} {e}")),
        );
    }
    for options in [
        &["-F", "12"][..],
        &["-F", "16", "-s", "1"],
        &["-F", "32", "-s", "1"],
    ] {
        // FAT32 needs more clusters than fit the small partition: a volume of its own.
        let size = if options[1] == "32" {
            40 << 20
        } else {
            8192 * 512
        };
        let files: [(&str, &[u8]); 2] = [
            (
                "/boot/grub/grub.cfg",
                b"menuentry a { linux /Image.Long.Name a; }",
            ),
            ("/Image.Long.Name", b"kernel"),
        ];
        let found = plan(testing::fat(size, options, &files)).unwrap();
        assert_eq!(found.kernel, b"kernel");
        assert_eq!(found.source.config, "(hd0)/boot/grub/grub.cfg");
    }
}

#[test]
fn without_a_stub_the_configuration_is_looked_for() {
    let empty = testing::fat(8192 * 512, &[], &[]);
    check(&plan(cloud_disk(&empty, &root(&[]))).unwrap());
    // No partition table at all, and an MBR.
    check(&plan(root(&[])).unwrap());
    let root = root(&[]);
    let script = format!(
        "label: dos\nstart=2048, size={}, type=83, bootable\n",
        root.len() / 512
    );
    let mut disk = testing::sfdisk(root.len() + (2 << 20), &script);
    disk[2048 * 512..2048 * 512 + root.len()].copy_from_slice(&root);
    let found = plan(disk).unwrap();
    check(&found);
    assert_eq!(found.source.kernel, "(hd0,msdos1)/boot/vmlinuz");
}

#[test]
fn a_disk_without_a_boot_loader_says_what_it_holds() {
    let bare = testing::ext4(4 << 20, &["-b", "1024"], &[("/etc/hostname", b"x")]);
    let error = plan(bare).unwrap_err().to_string();
    assert!(
        error.contains("(hd0) holds ext4") && error.contains("--kernel"),
        "{error}"
    );
    let error = plan(vec![0; 1 << 20]).unwrap_err();
    assert!(
        matches!(error, BootError::NoConfiguration { .. }),
        "{error}"
    );
    let refused = cloud_disk(&esp(), &root(&["-O", "inline_data", "-I", "256"]));
    let error = plan(refused).unwrap_err().to_string();
    assert!(error.contains("(hd0,gpt1) holds ext4"), "{error}");
}

#[test]
fn limits_hold() {
    let disk = MemoryDisk::disk(cloud_disk(&esp(), &root(&[])));
    let with = |limits: Limits| discover(disk.clone(), &limits);
    let error = with(Limits {
        kernel: 1 << 20,
        ..Limits::default()
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("(hd0,gpt1)/boot/vmlinuz: it has 3000001 bytes"),
        "{error}"
    );
    let error = with(Limits {
        initrd: 2_000_000,
        ..Limits::default()
    })
    .unwrap_err()
    .to_string();
    assert!(error.contains("initrd.img"), "{error}");
    assert!(
        with(Limits {
            bytes: 2 << 20,
            ..Limits::default()
        })
        .is_err()
    );
    assert!(
        with(Limits {
            reads: 100,
            ..Limits::default()
        })
        .is_err()
    );
    assert!(
        with(Limits {
            steps: 2,
            ..Limits::default()
        })
        .is_err()
    );
    assert!(
        with(Limits {
            config: 10,
            ..Limits::default()
        })
        .is_err()
    );
    assert!(
        with(Limits {
            time: std::time::Duration::ZERO,
            ..Limits::default()
        })
        .is_err()
    );
}

#[test]
fn damaged_metadata_has_an_answer_in_bounded_time() {
    let intact = cloud_disk(&esp(), &root(&["-b", "1024", "-O", "^metadata_csum"]));
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    // FAT's boot sector, tables and directories; ext4's superblock, descriptors, inodes and roots.
    let places = [
        (0, 40 * 512),
        (ESP_AT, 20_000),
        (ROOT_AT + 1024, 3000),
        (ROOT_AT, 600_000),
    ];
    let started = std::time::Instant::now();
    for round in 0..120 {
        let mut disk = intact.clone();
        let (start, len) = places[round % places.len()];
        for _ in 0..1 + next(200) {
            disk[start + next(len)] ^= 1 << next(8);
        }
        let limits = Limits {
            time: std::time::Duration::from_secs(5),
            ..Limits::default()
        };
        let _ = discover(MemoryDisk::disk(disk), &limits);
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(300));
}
