//! Whole disks.

use super::loaders::tests::program;
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

/// A file's path and content.
type File<'a> = (&'a str, &'a [u8]);

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
        matches!(error, BootError::NoConfiguration { .. })
            && error.to_string().contains("neither a partition table"),
        "{error}"
    );
    let refused = cloud_disk(&esp(), &root(&["-O", "inline_data", "-I", "256"]));
    let error = plan(refused).unwrap_err().to_string();
    assert!(
        error.contains("(hd0,gpt1)/boot/grub/grub.cfg") && error.contains("inline_data"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_read_is_part_of_the_answer() {
    // The only file system has a feature that is not supported.
    let mut foreign = root(&["-O", "^metadata_csum"]);
    foreign[1024 + 0x61] |= 0x10;
    let empty = testing::fat(8192 * 512, &[], &[]);
    let error = plan(cloud_disk(&empty, &foreign)).unwrap_err();
    assert!(matches!(error, BootError::Unreadable { .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("(hd0,gpt1) holds ext4") && error.contains("dirdata"),
        "{error}"
    );
    // The directory that the configuration is in is damaged.
    let mut damaged = testing::ext4(
        4 << 20,
        &["-b", "1024", "-O", "metadata_csum"],
        &[("/boot/grub/grub.cfg", b"menuentry a { linux /k; }")],
    );
    let name = damaged.windows(8).position(|at| at == b"grub.cfg").unwrap();
    damaged[name] ^= 1;
    let error = plan(damaged).unwrap_err().to_string();
    assert!(
        error.contains("(hd0)/boot/grub/grub.cfg: damaged") && !error.contains("no GRUB"),
        "{error}"
    );
    // A btrfs root, as on some distributions.
    let mut btrfs = vec![0; 1 << 20];
    btrfs[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
    let error = plan(cloud_disk(&empty, &btrfs)).unwrap_err().to_string();
    assert!(error.contains("(hd0,gpt1) holds btrfs"), "{error}");
    // A partition that a truncated image has lost.
    let script = "label: dos\nstart=2048, size=2048, type=83\nstart=4096, size=8192, type=83\n";
    let mut cut = testing::sfdisk(16 << 20, script);
    cut.truncate(4 << 20);
    let error = plan(cut).unwrap_err().to_string();
    assert!(
        error.contains("(hd0,msdos2) reaches beyond the disk's end"),
        "{error}"
    );
}

#[test]
fn other_boot_loaders_are_named() {
    let unified = program(&[b".text\0\0\0", b".linux\0\0"]);
    let cases: [(&[File<'_>], &str); 9] = [
        (
            &[("/EFI/Linux/fedora.efi", &unified)],
            "a unified kernel image ((hd0,gpt15)/EFI/Linux/fedora.efi)",
        ),
        (
            &[("/EFI/BOOT/BOOTX64.EFI", &unified)],
            "a unified kernel image ((hd0,gpt15)/EFI/BOOT/BOOTX64.EFI)",
        ),
        (
            &[("/EFI/systemd/systemd-bootx64.efi", b"MZ")],
            "systemd-boot (",
        ),
        (
            &[("/loader/entries/arch.conf", b"linux /vmlinuz")],
            "Boot Loader Specification entries ((hd0,gpt15)/loader/entries)",
        ),
        (&[("/extlinux/extlinux.conf", b"DEFAULT a")], "extlinux ("),
        (&[("/syslinux.cfg", b"DEFAULT a")], "syslinux ("),
        (
            &[("/boot/grub/menu.lst", b"default 0")],
            "GRUB legacy ((hd0,gpt15)/boot/grub/menu.lst)",
        ),
        (&[("/EFI/Microsoft/Boot/bootmgfw.efi", b"MZ")], "Windows ("),
        (&[("/limine.conf", b"/a")], "Limine ("),
    ];
    let bare = testing::ext4(4 << 20, &["-b", "1024"], &[("/etc/hostname", b"x")]);
    for (files, named) in cases {
        let esp = testing::fat(8192 * 512, &[], files);
        let error = plan(cloud_disk(&esp, &bare)).unwrap_err().to_string();
        assert!(
            error.contains(named) && error.contains("not supported") && error.contains("--kernel"),
            "{error}"
        );
    }
    // On a root partition, too.
    let files: [(&str, &[u8]); 1] = [("/boot/extlinux/extlinux.conf", b"DEFAULT a")];
    let alpine = testing::ext4(4 << 20, &["-b", "1024"], &files);
    let error = plan(alpine).unwrap_err().to_string();
    assert!(
        error.contains("extlinux ((hd0)/boot/extlinux/extlinux.conf)"),
        "{error}"
    );
    // An installation medium.
    let mut medium = vec![0; 1 << 20];
    medium[0x8001..0x8006].copy_from_slice(b"CD001");
    let script = "label: dos\nstart=64, size=512, type=17\n";
    let with_table = {
        let mut disk = testing::sfdisk(1 << 20, script);
        disk[0x8001..0x8006].copy_from_slice(b"CD001");
        disk
    };
    for disk in [medium, with_table] {
        let error = plan(disk).unwrap_err().to_string();
        assert!(error.contains("(hd0) holds ISO 9660"), "{error}");
    }
}

#[test]
fn many_directories_beside_a_large_loader_take_one_pass() {
    // Every directory's name is almost in the loader, again and again.
    let mut loader: Vec<u8> = b"/EFI/distribution-x\0".repeat((7 << 20) / 20);
    loader.extend(b"/EFI/distribution-299\0");
    let names: Vec<String> = (0..300)
        .map(|i| format!("/EFI/distribution-{i}/grub.cfg"))
        .collect();
    let config: &[u8] = b"menuentry a { linux /kernel; }";
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), config)).collect();
    files.push(("/EFI/BOOT/grubx64.efi", &loader));
    files.push(("/kernel", b"kernel"));
    let disk = MemoryDisk::disk(testing::fat(64 << 20, &[], &files));
    let before = std::time::Instant::now();
    let found = discover(disk.clone(), &Limits::default()).unwrap();
    assert!(
        before.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(found.source.config, "(hd0)/EFI/distribution-299/grub.cfg");
    // The time is looked at on the way, and what was not found by then is not called absent.
    let before = std::time::Instant::now();
    let limits = Limits {
        time: std::time::Duration::from_millis(1),
        ..Limits::default()
    };
    let error = discover(disk, &limits).unwrap_err();
    assert!(matches!(error, BootError::Limit { .. }), "{error}");
    assert!(error.to_string().contains("`time`"), "{error}");
    assert!(before.elapsed() < std::time::Duration::from_secs(5));
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
