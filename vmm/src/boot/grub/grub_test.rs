//! Configurations as distributions write them, and worse.

use super::testing::{UUID, boot, boot_with, cmdline, problem, volume};
use super::{BootError, Devices, Limits, Location, run};
use crate::boot::content::Content;

/// What grub-mkconfig writes on Debian 12, at greater length than the cloud images'.
fn debian() -> String {
    let entry = |indent: &str, title: &str, id: &str, version: &str, extra: &str| {
        format!(
            "menuentry '{title}' --class debian --class gnu-linux --class gnu --class os \
             $menuentry_id_option '{id}' {{\n\
             \tload_video\n\
             \tinsmod gzio\n\
             \tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi\n\
             \tinsmod part_gpt\n\
             \tinsmod ext2\n\
             \tif [ x$feature_platform_search_hint = xy ]; then\n\
             \t  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 \
             --hint-efi=hd0,gpt1 --hint-baremetal=ahci0,gpt1  {UUID}\n\
             \telse\n\
             \t  search --no-floppy --fs-uuid --set=root {UUID}\n\
             \tfi\n\
             \techo\t'Loading Linux {version} ...'\n\
             \tlinux\t/boot/vmlinuz-{version} root=PARTUUID=3c2d ro {extra} consoleblank=0\n\
             \techo\t'Loading initial ramdisk ...'\n\
             \tinitrd\t/boot/initrd.img-{version}\n\
             }}\n"
        )
        .lines()
        .map(|line| format!("{indent}{line}\n"))
        .collect::<String>()
    };
    let new = "6.1.0-18-cloud-amd64";
    let old = "6.1.0-17-cloud-amd64";
    let mut text = String::from(
        r#"#
# made by a tool: do not edit
#

### first part ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
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

if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
  save_env saved_entry
  set prev_saved_entry=
  save_env prev_saved_entry
  set boot_once=true
fi

function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
    insmod vga
  fi
}

serial --unit=0 --speed=115200
if loadfont unicode ; then
  set gfxmode=auto
  load_video
  insmod gfxterm
fi
terminal_input serial console
terminal_output serial gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=menu
    set timeout=5
  # for older ones
  else
    set timeout=5
  fi
fi
insmod png
if background_image /usr/share/desktop-base/grub.png; then
  set color_normal=white/black
else
  set menu_color_normal=cyan/blue
fi

function gfxmode {
	set gfxpayload="${1}"
}
set linux_gfx_mode=
export linux_gfx_mode
"#,
    );
    text += &entry("", "Debian GNU/Linux", "simple", new, "console=ttyS0");
    text += "submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'advanced' {\n";
    text += &entry(
        "\t",
        "Debian GNU/Linux, with Linux 18",
        "18-adv",
        new,
        "console=ttyS0",
    );
    text += &entry(
        "\t",
        "Debian GNU/Linux, with Linux 18 (recovery)",
        "18-rec",
        new,
        "single",
    );
    text += &entry(
        "\t",
        "Debian GNU/Linux, with Linux 17",
        "17-adv",
        old,
        "console=ttyS0",
    );
    text += r#"}

insmod part_gpt
if [ "$grub_platform" = "efi" ]; then
	fwsetup --is-supported
	if [ "$?" = 0 ]; then
		menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
			fwsetup
		}
	fi
fi
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;
    text
}

fn environment(variables: &str) -> String {
    format!(
        "{:#<1024}",
        format!("# GRUB Environment Block\n{variables}")
    )
}

#[test]
fn debian_boots_its_newest_kernel() {
    let choice = boot(&debian()).unwrap();
    assert_eq!(
        choice.cmdline,
        "BOOT_IMAGE=/boot/vmlinuz-6.1.0-18-cloud-amd64 root=PARTUUID=3c2d ro console=ttyS0 \
         consoleblank=0"
    );
    assert_eq!(choice.titles, ["Debian GNU/Linux"]);
    assert_eq!(choice.config, "(hd0,gpt1)/boot/grub/grub.cfg");
    let initrd = "/boot/initrd.img-6.1.0-18-cloud-amd64".to_string();
    assert_eq!(
        choice.initrds,
        [Location {
            device: 0,
            path: initrd
        }]
    );
}

#[test]
fn the_environment_block_decides() {
    let booted = |variables: &str| {
        boot_with(
            &debian(),
            &[("/boot/grub/grubenv", &environment(variables))],
        )
        .unwrap()
    };
    let old = booted("saved_entry=advanced>17-adv\n");
    assert_eq!(old.kernel.path, "/boot/vmlinuz-6.1.0-17-cloud-amd64");
    assert_eq!(
        old.titles,
        [
            "Advanced options for Debian GNU/Linux",
            "Debian GNU/Linux, with Linux 17"
        ]
    );
    assert_eq!(booted("saved_entry=1>2\n").kernel, old.kernel);
    assert!(booted("saved_entry=1\n").cmdline.contains("18-cloud"));
    assert!(booted("saved_entry=no such\n").cmdline.contains("18-cloud"));
    // One boot only: the request to forget it is noted.
    let once = booted("saved_entry=0\nnext_entry=advanced>18-rec\n");
    assert!(once.cmdline.contains("single"));
    assert_eq!(
        once.saved,
        [("next_entry".to_string(), Some(String::new()))]
    );
}

#[test]
fn custom_configuration_is_included() {
    let custom = "menuentry mine { linux /k mine; }\nset default=mine\n";
    let choice = boot_with(&debian(), &[("/boot/grub/custom.cfg", custom)]).unwrap();
    assert_eq!(choice.cmdline, "BOOT_IMAGE=/k mine");
    assert_eq!(choice.config, "(hd0,gpt1)/boot/grub/custom.cfg");
}

/// What Ubuntu's variant adds.
const UBUNTU: &str = r#"
set default="0"
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
fi
export menuentry_id_option
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function load_video { insmod all_video
}
function gfxmode {
	set gfxpayload="${1}"
	if [ "${1}" = "keep" ]; then
		set vt_handoff=vt.handoff=7
	else
		set vt_handoff=
	fi
}
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then
      set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      if [ ${match} = 0 ]; then
        set linux_gfx_mode=keep
      else
        set linux_gfx_mode=text
      fi
    else
      set linux_gfx_mode=text
    fi
  else
    set linux_gfx_mode=keep
  fi
else
  set linux_gfx_mode=text
fi
export linux_gfx_mode
menuentry 'Ubuntu' --class ubuntu --class os $menuentry_id_option 'gnulinux-simple' {
	recordfail
	load_video
	gfxmode $linux_gfx_mode
	insmod gzio
	if [ "${grub_platform}" = xen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --label cloudimg-rootfs --set root
	search --no-floppy --set=root -l cloudimg-rootfs
	linux	/k root=LABEL=cloudimg-rootfs ro  quiet splash $vt_handoff
	initrd	/i /j
}
if [ "$grub_platform" = "efi" ]; then
	insmod bli
fi
"#;

#[test]
fn ubuntu_hands_the_screen_over() {
    let choice = boot(UBUNTU).unwrap();
    let expected = "BOOT_IMAGE=/k root=LABEL=cloudimg-rootfs ro quiet splash vt.handoff=7";
    assert_eq!(choice.cmdline, expected);
    assert_eq!(choice.initrds.len(), 2);
    // A variable that is not exported does not reach a submenu's entry; an empty one vanishes.
    let nested = format!("set default='m>0'\nset a=1\nsubmenu m {{ {UBUNTU} }}\n");
    assert_eq!(cmdline(&nested.replace("set default=\"0\"", "")), expected);
    let text = UBUNTU.replace("set default", "set recordfail=1; set default");
    assert_eq!(cmdline(&text), expected.replace(" vt.handoff=7", ""));
}

#[test]
fn a_stub_leads_to_the_configuration() {
    let stub = format!(
        "search.fs_uuid {UUID} root hd0,gpt1 \nset prefix=($root)'/boot/grub'\n\
         configfile $prefix/grub.cfg\n"
    );
    let run_stub = |stub: &str, root: Content| {
        let devices = Devices::of(vec![
            ("hd0,gpt1", root),
            (
                "hd0,gpt15",
                volume("AAAA-BBBB", &[("/EFI/debian/grub.cfg", stub)]),
            ),
        ]);
        run(
            &devices,
            &Location {
                device: 1,
                path: "/EFI/debian/grub.cfg".into(),
            },
            &Limits::default(),
        )
    };
    let config = "menuentry a { linux ($root)/k prefix=$prefix $cmdpath; initrd /i; }";
    let root = || {
        volume(
            UUID,
            &[("/boot/grub/grub.cfg", config), ("/k", "k"), ("/i", "i")],
        )
    };
    let choice = run_stub(&stub, root()).unwrap();
    assert_eq!(
        choice.cmdline,
        "BOOT_IMAGE=(hd0,gpt1)/k prefix=(hd0,gpt1)/boot/grub (hd0,gpt15)/EFI/BOOT"
    );
    assert_eq!(choice.config, "(hd0,gpt1)/boot/grub/grub.cfg");
    // The hint is only a hint.
    assert!(run_stub(&stub.replace("hd0,gpt1", "hd7,gpt7"), root()).is_ok());
    // The root file system is of another kind.
    let btrfs = Content::Unreadable {
        what: "btrfs",
        why: "this file system is not supported".into(),
    };
    let error = run_stub(&stub, btrfs).unwrap_err().to_string();
    assert!(
        error.starts_with("(hd0,gpt15)/EFI/debian/grub.cfg:1: `search.fs_uuid"),
        "{error}"
    );
    assert!(
        error.contains(UUID) && error.contains("(hd0,gpt1) holds btrfs"),
        "{error}"
    );
}

#[test]
fn words_and_loops() {
    assert_eq!(
        cmdline("set a='x  y'\nmenuentry a { linux /k $a \"$a\" ''\"\" a$a\"b\" $none; }"),
        "BOOT_IMAGE=/k x y \"x  y\"  ax yb"
    );
    assert_eq!(
        cmdline(
            "for x in 1 2 3 4; do\n if [ $x = 2 ]; then continue; fi\n\
             if test $x -gt 3; then break; fi\n set all=\"$all$x\"\ndone\n\
             while [ x$n != xaaa ]; do set n=a$n; done\nuntil [ x$m = xbb ]; do m=b$m; done\n\
             function f { set got=\"$1-$#-$*\"; shift; set rest=$1; return 3; set got=; }\n\
             f one two three\nset status=$?\n\
             menuentry 'title' more { linux /k $all $n $m $got $rest $status $2; boot; }\n"
        ),
        "BOOT_IMAGE=/k 13 aaa bb one-3-one two three two 3 more"
    );
    assert_eq!(
        cmdline(
            "if ! true; then a=1; elif false; then a=2; else a=3; fi\nmenuentry a { linux /k $a; }"
        ),
        "BOOT_IMAGE=/k 3"
    );
    assert_eq!(
        cmdline("probe --set=u -u ($root)\nset root='(hd0,1)'\nmenuentry a { linux /k $u $root; }"),
        format!("BOOT_IMAGE=/k {UUID} hd0,1")
    );
}

#[test]
fn fallbacks() {
    let menu = "menuentry a { linux /none; initrd /i; }\nmenuentry b { true; }\n\
                menuentry c { linux /k c; }\n";
    assert_eq!(
        cmdline(&format!("set fallback=\"1 2\"\n{menu}")),
        "BOOT_IMAGE=/k c"
    );
    let (line, construct, text) = problem(menu);
    assert_eq!((line, construct.as_str()), (1, "linux /none"));
    assert!(text.contains("(hd0,gpt1)/none: not found"), "{text}");
    // Not a reason to fall back: the guest's GRUB would have understood it.
    let text = format!("set fallback=1\nmenuentry x {{ chainloader +1; }}\n{menu}");
    assert_eq!(problem(&text).0, 2);
}

#[test]
fn what_is_not_understood_is_named() {
    let inside = |command: &str| problem(&format!("set a=b\n\nmenuentry 'x' {{\n {command}\n}}\n"));
    for command in [
        "chainloader /EFI/x.efi",
        "frobnicate now",
        "multiboot /xen",
        "fwsetup",
        "reboot",
        "loopback loop /x.iso",
        "legacy_configfile /menu.lst",
    ] {
        let (line, construct, _) = inside(command);
        assert_eq!(line, 4, "{command}");
        assert!(command.starts_with(&construct), "{command}: {construct}");
    }
    let (line, construct, text) = inside("linux /k; initrd /i /none");
    assert_eq!((line, construct.as_str()), (4, "initrd /i /none"));
    assert!(text.contains("(hd0,gpt1)/none: not found"));
    assert_eq!(inside("linux /boot").1, "linux /boot");
    assert_eq!(inside("linux /k; initrd newc:a:/i").1, "initrd newc:a:/i");
    assert_eq!(inside("true").2.as_str(), "it loads no kernel");
    assert_eq!(problem("a\nblscfg\n").1, "blscfg");
    assert_eq!(problem("if a; then\nb\n").0, 1);
    assert!(matches!(boot(""), Err(BootError::File { .. })));
}

#[test]
fn hostile_scripts_end() {
    for text in [
        "while true; do true; done",
        "function f { f; }\nf",
        "source /boot/grub/grub.cfg",
        "configfile /boot/grub/grub.cfg",
        "set a=aaaaaaaaaaaaaaaa\nwhile true; do set a=$a$a; done",
        "submenu a { submenu a { configfile /boot/grub/grub.cfg; } }",
        "for i in 1 2 3; do while true; do break 0; continue 99; done; done; until false; do f; done",
    ] {
        let error = boot(text).unwrap_err();
        assert!(!error.to_string().is_empty(), "{text}");
    }
    let long = format!(
        "set a={}\nset b=\"{}\"\n",
        "x".repeat(1000),
        "$a".repeat(10_000)
    );
    assert!(problem(&long).2.contains("too many bytes"));
    // Each within its bounds, but many of them.
    let x = format!("set x={}\n", "x".repeat(10_000));
    for text in [
        "while true; do menuentry \"$x$x$x$x\" { linux /k; }; done",
        "while true; do [ $x$x$x$x ]; done",
        "function f { f \"$@\" \"$@\"; }\nf \"\" \"\"",
        "set i=1\nwhile true; do set i=1$i; export \"$i-$x$x$x$x\"; done",
    ] {
        let (_, _, problem) = problem(&format!("{x}{text}"));
        assert!(
            problem.contains("too many bytes") || problem.contains("too many variables"),
            "{text}: {problem}"
        );
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever is cut out of, put into or changed in a configuration, there is an answer.
        #[test]
        fn damaged_configurations_have_an_answer(
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<u8>()), 1..20)
        ) {
            let mut text = debian().into_bytes();
            for (at, kind, byte) in edits {
                let at = at.index(text.len());
                match kind {
                    0 => text[at] = byte,
                    1 => text.insert(at, b"\"'\\${}();\n"[usize::from(byte) % 10]),
                    _ => drop(text.drain(at..(at + usize::from(byte)).min(text.len() - 1).max(at))),
                }
            }
            let _ = boot(&String::from_utf8_lossy(&text));
        }

        #[test]
        fn any_text_has_an_answer(text in "[a-z {}\\[\\];\n$'\"\\\\=#!|>()0-9]{0,200}") {
            let _ = boot(&text);
        }
    }
}
