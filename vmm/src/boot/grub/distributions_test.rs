//! Configurations as distributions' tools write them, shortened.

use super::testing::{UUID, boot_with, volume};
use super::{BootError, Choice, Devices, Limits, Location, run};
use crate::boot::content::Content;

/// Runs the stub `config` on an EFI system partition that holds `esp`, beside a root file system
/// that holds `root`.
fn start(config: &str, esp: &[(&str, &str)], root: &[(&str, &str)]) -> Result<Choice, BootError> {
    let kernels = [
        ("/boot/vmlinuz", "k"),
        ("/boot/initrd", "i"),
        ("/vmlinuz", "k"),
    ];
    let root: Vec<(&str, &str)> = root.iter().chain(&kernels).copied().collect();
    let devices = Devices::of(vec![
        ("hd0,gpt1", Content::Unknown),
        ("hd0,gpt2", volume("AAAA-BBBB", esp)),
        ("hd0,gpt3", volume(UUID, &root)),
    ]);
    let config = Location {
        device: 1,
        path: config.into(),
    };
    run(&devices, &config, &Limits::default())
}

fn booted(choice: Result<Choice, BootError>) -> String {
    choice.unwrap_or_else(|error| panic!("{error}")).cmdline
}

const ENTRY: &str =
    "menuentry 'Linux' { linux ($root)/boot/vmlinuz ok; initrd ($root)/boot/initrd; }";

#[test]
fn stubs_lead_to_the_configuration() {
    let at = |path: &'static str| [(path, ENTRY)];
    let expected = "BOOT_IMAGE=(hd0,gpt3)/boot/vmlinuz ok";
    // Debian and Ubuntu.
    for stub in [
        format!("search.fs_uuid {UUID} root hd0,gpt3 \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"),
        format!("search.fs_uuid {UUID} root \r\nset prefix=($root)/boot/grub\r\nnormal\r\n"),
        // Alpine, Arch.
        "search --label --set=root cloudimg-rootfs\nset prefix=($root)/boot/grub\nsource $prefix/grub.cfg\n".into(),
        format!("search --no-floppy --fs-uuid --set=dev {UUID}\nset prefix=($dev)/boot/grub\n\
                 export $prefix\nset root=$dev\nconfigfile $prefix/grub.cfg\n"),
        // openSUSE.
        format!("set btrfs_relative_path=\"yes\"\nsearch --fs-uuid --set=root {UUID}\n\
                 set prefix=(${{root}})/boot/grub\nsource \"${{prefix}}/grub.cfg\"\n"),
    ] {
        let files = [("/EFI/x/grub.cfg", stub.as_str())];
        let root = at("/boot/grub/grub.cfg");
        assert_eq!(booted(start("/EFI/x/grub.cfg", &files, &root)), expected, "{stub}");
    }
}

/// The static stub of bootupd, which CoreOS and image-mode Fedora have.
const BOOTUPD: &str = r#"
if [ -e (md/md-boot) ]; then
  # The search command might pick a RAID component rather than the RAID,
  # since the /boot RAID currently uses superblock 1.0.  See the comment in
  # the main grub.cfg.
  set prefix=md/md-boot
else
  if [ -f ${config_directory}/bootuuid.cfg ]; then
    source ${config_directory}/bootuuid.cfg
  fi
  if [ -n "${BOOT_UUID}" ]; then
    search --fs-uuid "${BOOT_UUID}" --set prefix --no-floppy
  else
    search --label boot --set prefix --no-floppy
  fi
fi
if [ -d ($prefix)/grub2 ]; then
  set prefix=($prefix)/grub2
  configfile $prefix/grub.cfg
else
  set prefix=($prefix)/boot/grub2
  configfile $prefix/grub.cfg
fi
boot
"#;

#[test]
fn bootupd() {
    let uuid = format!("set BOOT_UUID=\"{UUID}\"\n");
    let esp = [
        ("/EFI/fedora/grub.cfg", BOOTUPD),
        ("/EFI/fedora/bootuuid.cfg", uuid.as_str()),
    ];
    let config = "set pager=1\n\
        # petitboot doesn't support -e and doesn't support an empty path part\n\
        if [ -d (md/md-boot)/grub2 ]; then\n set prefix=md/md-boot\nelse\n\
        if [ -f ${config_directory}/bootuuid.cfg ]; then\n source ${config_directory}/bootuuid.cfg\n fi\n\
        fi\nset prefix=($prefix)/grub2\n\
        if [ \"${default}\" = \"\" ]; then\n default=0\nfi\n\
        function load_video {\n if [ x$feature_all_video_module = xy ]; then\n insmod all_video\n fi\n}\n\
        serial --speed=115200\nterminal_input serial console\nterminal_output serial console\n\
        menuentry 'ostree:0' --class fedora {\n load_video\n search --set=root --fs-uuid UUID\n\
        linux /vmlinuz ostree=1\n}\n";
    let config = config.replace("UUID", UUID);
    let expected = "BOOT_IMAGE=/vmlinuz ostree=1";
    for path in ["/grub2/grub.cfg", "/boot/grub2/grub.cfg"] {
        let root = [(path, config.as_str())];
        assert_eq!(booted(start("/EFI/fedora/grub.cfg", &esp, &root)), expected);
    }
    // Without the UUID, by the label, which is another one here.
    let error = start("/EFI/fedora/grub.cfg", &esp[..1], &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("grub.cfg:14") && error.contains("label `boot`"),
        "{error}"
    );
}

/// What Fedora writes before `blscfg`.
const FEDORA: &str = r#"
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
terminal_output console
if [ x$feature_timeout_style = xy ] ; then
  set timeout_style=menu
  set timeout=5
else
  set timeout=5
fi
if [ -f ${prefix}/user.cfg ]; then
  source ${prefix}/user.cfg
  if [ -n "${GRUB2_PASSWORD}" ]; then
    set superusers="root"
    export superusers
    password_pbkdf2 root ${GRUB2_PASSWORD}
  fi
fi
insmod increment
if [ -n "${boot_counter}" -a "${boot_success}" = "0" ]; then
  if  [ "${boot_counter}" = "0" -o "${boot_counter}" = "-1" ]; then
    set default=1
    set boot_counter=-1
  else
    decrement boot_counter
  fi
  save_env boot_counter
fi
set boot_success=0
save_env boot_success
if [ "${boot_indeterminate}" ]; then increment boot_indeterminate; fi
set kernelopts="root=UUID=x ro"
"#;

#[test]
fn fedora() {
    let bls = format!(
        "{FEDORA}insmod part_gpt\ninsmod ext2\nsearch --no-floppy --fs-uuid --set=root {UUID}\ninsmod blscfg\nblscfg\n"
    );
    let files = [("/EFI/fedora/grub.cfg", bls.as_str())];
    let error = start("/EFI/fedora/grub.cfg", &files, &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`blscfg`") && error.contains("Boot Loader Specification"),
        "{error}"
    );

    let entries = "menuentry new $menuentry_id_option new { linux /boot/vmlinuz new $kernelopts; }\n\
        menuentry old $menuentry_id_option old { linux /boot/vmlinuz old $kernelopts; }\n";
    let boot = |variables: &str| {
        let env = format!("# GRUB Environment Block\n{variables}#####");
        let config = format!("{FEDORA}{entries}");
        boot_with(
            &config,
            &[("/boot/grub/grubenv", &env), ("/boot/vmlinuz", "k")],
        )
        .unwrap()
    };
    assert_eq!(
        boot("saved_entry=old\n").cmdline,
        "BOOT_IMAGE=/boot/vmlinuz old root=UUID=x ro"
    );
    let counted = boot("saved_entry=new\nboot_success=0\nboot_counter=2\nboot_indeterminate=1\n");
    assert!(counted.cmdline.contains("new"));
    let saved = |name: &str| {
        let value = counted.saved.iter().find(|(have, _)| have == name);
        value.and_then(|(_, value)| value.clone())
    };
    assert_eq!(saved("boot_counter").as_deref(), Some("1"));
    assert!(
        boot("boot_success=0\nboot_counter=0\n")
            .cmdline
            .contains("old")
    );
    assert!(
        boot("boot_success=1\nboot_counter=0\n")
            .cmdline
            .contains("new")
    );
}

#[test]
fn others() {
    for (distribution, config) in [
        (
            "openSUSE",
            "set btrfs_relative_path=\"y\"\nexport btrfs_relative_path\n\
             if [ -f ${config_directory}/grubenv ]; then\n load_env -f ${config_directory}/grubenv\n\
             elif [ -s $prefix/grubenv ]; then\n set have_grubenv=true\n load_env\nfi\n\
             if [ \"${env_block}\" ] ; then\n set env_block=\"(${root})${env_block}\"\n export env_block\n load_env -f \"${env_block}\"\nfi\n\
             if [ -z \"${boot_once}\" ]; then\n set default=\"${saved_entry}\"\nfi\n\
             if [ \"${extra_cmdline}\" ]; then set c=$extra_cmdline; fi\n\
             if loadfont unicode ; then\n set gfxmode=auto\n terminal_input gfxterm\nfi\n\
             if [ \"${grub_platform}\" = \"efi\" ]; then\n hiddenentry 'Text mode' --hotkey 't' { set textmode=true; terminal_output console; }\nfi\n\
             menuentry 'openSUSE' --class opensuse --class os $menuentry_id_option 'simple' {\n load_video\n set gfxpayload=keep\n insmod gzio\n\
             linux /boot/vmlinuz ${extra_cmdline} ok\n}\n\
             if [ -f  ${config_directory}/custom.cfg ]; then\n source ${config_directory}/custom.cfg\nfi\n",
        ),
        (
            "Arch",
            "insmod part_gpt\ninsmod part_msdos\nif [ -s $prefix/grubenv ]; then load_env; fi\n\
             font=unicode\nif loadfont $font ; then\n set gfxmode=auto\n set locale_dir=$prefix/locale\n set lang=en_US\n insmod gettext\nfi\n\
             terminal_input console\nterminal_output gfxterm\n\
             menuentry 'Arch Linux' --class arch --class gnu-linux $menuentry_id_option 'a' {\n\
             echo 'Loading Linux linux ...'\n linux /boot/vmlinuz root=UUID=x rw  ok\n echo 'initramfs'\n initrd  /boot/ucode.img /boot/initrd\n}\n\
             if [ \"$grub_platform\" = \"efi\" ]; then\n insmod chain\n\
             if [ -f /EFI/tools/shellx64.efi ]; then menuentry Shell { chainloader /EFI/tools/shellx64.efi; }; fi\n\
             menuentry 'UEFI' { fwsetup; }\nfi\n",
        ),
        (
            "Alpine",
            "set timeout=2\nif [ -f /boot/none ]; then a=b; fi\nmenuentry \"Alpine, with Linux virt\" {\n\
             linux /boot/vmlinuz modules=sd-mod,usb-storage,ext4 quiet ok\n initrd /boot/initrd\n}\n",
        ),
        (
            "Amazon Linux 2",
            "insmod serial\nserial --unit=0\nterminal_output serial console\nif [ x = x -a ! -z y ]; then true; fi\n\
             menuentry 'Amazon Linux (5.10) 2' --class os --unrestricted $menuentry_id_option 'a' {\n load_video\n\
             savedefault\n set root='hd0,gpt1'\n if [ x$feature_platform_search_hint = xy ]; then\n\
             search --no-floppy --fs-uuid --set=root  UUID\n else\n search --no-floppy --fs-uuid --set=root UUID\n fi\n\
             linux /boot/vmlinuz root=UUID=x KEYTABLE=us ok\n initrd /boot/initrd\n}\n",
        ),
        (
            "a live medium",
            "if cpuid -l; then set k=vmlinuz; else set k=none; fi\n\
             if regexp --set=1:isopart '^\\((.*)\\)' ($root)/x; then set dev=$isopart; fi\n\
             for f in /boot/live.d/*.conf ; do source $f; done\n\
             play 960 440 1 0 4 440 1\nsubmenu Tools { menuentry memtest { linux16 /boot/none; } }\n\
             set default=1\nmenuentry Live { linux ($dev)/boot/$k ok ; initrd /boot/initrd }\n",
        ),
    ] {
        let config = config.replace("UUID", UUID);
        let files = [
            ("/boot/vmlinuz", "k"),
            ("/boot/initrd", "i"),
            ("/boot/ucode.img", "i"),
        ];
        let choice = boot_with(&config, &files);
        let cmdline = choice
            .unwrap_or_else(|error| panic!("{distribution}: {error}"))
            .cmdline;
        assert!(cmdline.ends_with(" ok"), "{distribution}: {cmdline}");
    }
}
