//! What single commands do to the choice, as in GRUB.

use super::testing::{UUID, boot, boot_with, cmdline, problem};
use super::{BootError, Choice};

/// The words after the kernel of what `config` boots, which has its entry at the end.
fn words(config: &str, words: &str) -> String {
    let config = format!("{config}\nmenuentry entry {{ linux /k {words}; }}\n");
    let cmdline = cmdline(&config);
    let rest = cmdline.strip_prefix("BOOT_IMAGE=/k").unwrap();
    rest.trim_start().to_string()
}

/// Whether GRUB takes `condition` for true.
fn holds(condition: &str) -> bool {
    let config = format!("if {condition}; then set r=yes; else set r=no; fi");
    words(&config, "$r") == "yes"
}

/// The construct and the text of the error that `config`, with an entry, ends with.
fn refused(config: &str) -> (String, String) {
    let (_, construct, text) = problem(&format!("{config}\nmenuentry entry {{ linux /k; }}\n"));
    (construct, text)
}

#[test]
fn search_takes_options_as_grub_does() {
    let uuid = UUID;
    for search in [
        "search --no-floppy --set dev --label cloudimg-rootfs",
        "search --no-floppy --set=dev --label cloudimg-rootfs",
        &format!("search --fs-uuid {uuid} --set dev --no-floppy"),
        &format!("search --fs-uuid {uuid} --set dev"),
        "search -n -l -s dev cloudimg-rootfs",
        "search -nls dev cloudimg-rootfs",
        &format!("search -u {uuid} -s dev"),
        &format!("search --no-floppy --fs-uuid --set=dev --hint-bios hd0,gpt1 {uuid}"),
        &format!("search --fs-uuid --set=dev --hint-bios=hd0,msdos1 --hint-efi hd0,gpt15 {uuid}"),
        &format!("search --fs-uuid --set=dev --hint='hd0,gpt1' -h hd7 {uuid}"),
        &format!("search --hint-arm=hd0,gpt15 --set=dev -u {uuid}"),
        "search --set=dev --file -- /boot/vmlinuz-6.1.0-18-cloud-amd64",
        "search --label cloudimg-rootfs --set; set dev=$root",
        "search --label --set cloudimg-rootfs; set dev=$root",
        "search -s -l cloudimg-rootfs; set dev=$root",
        &format!("search.fs_uuid {uuid} dev hd0,gpt1"),
        &format!("search.fs_uuid {uuid} dev"),
        "search.fs_label cloudimg-rootfs dev hd7,gpt1 hd0,gpt1",
        "search.file /k dev",
    ] {
        let config = format!("set dev=unset\nset root=hd0,gpt15\n{search}\nset root=hd0,gpt1");
        assert_eq!(words(&config, "$dev"), "hd0,gpt1", "{search}");
    }
    // These set nothing, and say why.
    for (search, why) in [
        ("search --fs-uuid=1-2 --set=dev", "takes no value"),
        ("search cloudimg-rootfs --set=dev", "what to search by"),
        ("search --label --set=", "no partition with the label"),
        (
            "search --label none --set=dev",
            "no partition with the label `none`",
        ),
        (
            "search --hint --label cloudimg-rootfs --set=dev",
            "`--hint`",
        ),
        (
            "search --file --set=dev /boot",
            "no partition with the file `/boot`",
        ),
    ] {
        let (_, construct, text) =
            problem(&format!("{search}\nmenuentry e {{ linux ($dev)/none; }}"));
        assert_eq!(construct, search);
        assert!(text.contains(why), "{search}: {text}");
    }
    // Of several partitions the last is found first, unless a hint says otherwise.
    let both = |search: &str| {
        let config = format!("{search}\nmenuentry e {{ linux ($dev)/both; }}");
        boot(&config).unwrap().kernel.device
    };
    assert_eq!(both("search --set=dev --file /both"), 2);
    assert_eq!(both("search --set=dev --file /both --hint hd0,gpt1"), 0);
    assert_eq!(
        both("search --set=dev --file /both --hint-efi hd0,gpt1,"),
        0
    );
    assert_eq!(
        both("search --set=dev --file /both --hint-bios hd0,gpt1"),
        2
    );
}

#[test]
fn other_commands_take_options_as_grub_does() {
    for (config, shown, expected) in [
        ("probe -u --set u ($root)", "$u", UUID),
        ("probe -us u hd0,gpt1", "$u", UUID),
        ("probe --set=f --fs ($root)", "$f", "ext2"),
        ("probe --partmap ($root) --set p", "$p", "gpt"),
        ("probe -l hd0,gpt1 -s l", "$l", "cloudimg-rootfs"),
        ("load_env --file /env b", "$a$b", "2"),
        ("load_env -f /env -s a b", "$a$b", "12"),
        ("load_env a -f /env", "$a$b", "1"),
        ("load_env --skip-sig --file=/env", "$a$b", "12"),
        ("regexp -s v 'x(.)' xy", "$v", "y"),
        ("regexp --set 1:v --set=2:w -- '(.)-(.)' a-b", "$v$w", "ab"),
        ("tr -s v -U abc", "$v", "ABC"),
        ("tr --set=v ab xy cab", "$v", "cxy"),
        ("set v=ABC; tr --downcase --set v", "$v", "abc"),
        ("set n=7; increment n; increment n; decrement n", "$n", "8"),
        ("set n=-1; decrement n", "$n", "-2"),
    ] {
        let env = "# GRUB Environment Block\na=1\nb=2\n#####";
        let config = format!("{config}\nmenuentry e {{ linux /k {shown}; }}");
        let choice = boot_with(&config, &[("/env", env)]).unwrap();
        assert_eq!(
            choice.cmdline,
            format!("BOOT_IMAGE=/k {expected}"),
            "{config}"
        );
    }
    let saved = |command: &str| -> Vec<String> {
        let config = format!("set a=1; set b=2\n{command}\nmenuentry e {{ linux /k; }}");
        boot(&config)
            .unwrap()
            .saved
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    };
    assert_eq!(
        saved("save_env -f /env a; save_env b --file=/env"),
        ["a", "b"]
    );
    assert_eq!(saved("save_env --file (hd0,gpt1)/env a b"), ["a", "b"]);
}

#[test]
fn entries_take_options_as_grub_does() {
    let chosen = |entry: &str| -> Choice {
        let config = format!(
            "set default=wanted\nmenuentry no {{ linux /j; }}\n{entry} {{ linux /k $1 $2; }}"
        );
        boot(&config).unwrap_or_else(|error| panic!("{entry}: {error}"))
    };
    for (entry, shown) in [
        ("menuentry t --id wanted", "t"),
        ("menuentry --id=wanted --class a --class=b t more", "t more"),
        ("menuentry t --unrestricted --users --id wanted", "t"),
        ("menuentry t --users '' --hotkey x --id wanted", "t"),
        // Not options of GRUB's: arguments.
        ("menuentry t -k --id wanted", "t -k"),
        ("menuentry wanted --frob", "wanted --frob"),
        ("menuentry wanted -- --id", "wanted --id"),
    ] {
        assert!(
            chosen(entry)
                .cmdline
                .starts_with(&format!("BOOT_IMAGE=/k {shown}")),
            "{entry}"
        );
    }
    assert_eq!(
        cmdline("menuentry t --source 'linux /k from source'"),
        "BOOT_IMAGE=/k from source"
    );
}

#[test]
fn what_decides_is_known() {
    for condition in [
        "cpuid -l",
        "cpuid",
        "cpuid --pae",
        "regexp '^6\\.(1[0-9]|[2-9])' 6.12.3-cloud-amd64",
        "! regexp '^6\\.(1[0-9]|[2-9])' 6.1.0",
        "[ /time-2 -nt /time-1 ]",
        "[ /time-1 -ot /time-2 ]",
        "[ /k -nt /none ]",
        "! [ /none -nt /k ]",
        "[ vmlinuz-6.11 -pgt vmlinuz-6.9 ]",
        "[ $none ]",
        "! [ \"\" ]",
        "[ ! $none ]",
        "[ -z $none ]",
        "test -e (hd0,gpt1) -a -d (hd0,gpt1)/ -a -d /boot/ -a -f k",
        "[ 010 -eq 8 ]",
        "[ \"x$none\" = x ]",
        "test -z \"$none\"",
        "source /none",
        "! smbios --type 1 --get-string 5 --set product",
        "! loadfont /none.pf2",
        "loadfont /k",
        "! keystatus --shift",
        "terminal_output gfxterm",
        "! fwsetup --is-supported",
        "time true",
        "eval 'false; true'",
    ] {
        assert!(holds(condition), "{condition}");
    }
    assert_eq!(
        words(
            "set v=6.1.0-cloud\nregexp --set=1:major --set=2:rest '^([0-9]+)\\.(.*)' $v",
            "$major $rest"
        ),
        "6 1.0-cloud"
    );
    assert_eq!(
        words("set x=old\nregexp --set=2:x '(a)(b)?' a", "-$x-"),
        "--"
    );
    assert_eq!(words("set x=old\nregexp --set=1:x '(b)' a", "$x"), "old");
    assert_eq!(words("set p=kept\nsmbios -t 1 --set p", "$p"), "kept");
}

#[test]
fn what_would_decide_and_is_not_known_is_an_error() {
    for (config, construct) in [
        ("if frobnicate -l; then set a=b; fi", "frobnicate -l"),
        ("if ! frobnicate; then set a=b; fi", "frobnicate"),
        ("if true; frobnicate; then set a=b; fi", "frobnicate"),
        (
            "if false; then true; elif frobnicate; then true; fi",
            "frobnicate",
        ),
        ("while frobnicate; do true; done", "frobnicate"),
        ("until frobnicate; do true; done", "frobnicate"),
        (
            "function f { frobnicate; }\nif f; then set a=b; fi",
            "frobnicate",
        ),
        (
            "function f { frobnicate; return; }\nif f; then set a=b; fi",
            "frobnicate",
        ),
        ("frobnicate\nif [ $? = 0 ]; then set a=b; fi", "frobnicate"),
        (
            "frobnicate --set=v x\nif [ -n \"$v\" ]; then true; fi",
            "frobnicate --set=v x",
        ),
        ("frobnicate --set v x\nset w=$v", "frobnicate --set v x"),
        (
            "frobnicate -s default\nexport default",
            "frobnicate -s default",
        ),
        ("getenv -s 1:v x\ntest $v", "getenv -s 1:v x"),
        (
            "if file --is-x86_64-efi /k; then true; fi",
            "file --is-x86_64-efi /k",
        ),
        ("if cmp /k /i; then true; fi", "cmp /k /i"),
        ("if md5sum --check /k; then true; fi", "md5sum --check /k"),
        ("if insmod zfs; then true; fi", "insmod zfs"),
        ("if regexp '(a)\\1' aa; then true; fi", "regexp (a)\\1 aa"),
        ("regexp --set=1:v '(a)\\1' aa\nset w=$v", "regexp (a)\\1 aa"),
        ("if [ /k -nt /i ]; then true; fi", "[ /k -nt /i ]"),
        ("probe --driver --set=d ($root)\nset w=$d", "probe ($root)"),
    ] {
        let (found, text) = refused(config);
        assert_eq!(
            found,
            construct.replace("($root)", "(hd0,gpt1)"),
            "{config}"
        );
        assert!(
            text.starts_with("what boots depends on it"),
            "{config}: {text}"
        );
    }
    // Set again, or asked of another command, it does not matter any more.
    assert_eq!(
        words(
            "frobnicate --set=v x\nset v=1\nif [ $v = 1 ]; then true; fi",
            "$v"
        ),
        "1"
    );
    assert_eq!(
        words("frobnicate\ntrue\nif [ $? = 0 ]; then set a=b; fi", "$a"),
        "b"
    );
    // A module that is a file.
    let config = "if insmod ext2 /k; then a=1; fi\nmenuentry e { linux /k $a; }";
    let files = [("/boot/grub/x86_64-efi/ext2.mod", "m")];
    assert_eq!(
        boot_with(config, &files).unwrap().cmdline,
        "BOOT_IMAGE=/k 1"
    );
}

#[test]
fn harmless_commands_are_ignored() {
    for command in [
        "terminfo -g 80x25 console",
        "md5sum /k",
        "list_env",
        "hexdump /k",
        "frobnicate --now",
        "devicetree /none.dtb",
        "verify_detached /k /none",
        "ls (hd0,gpt1)/",
        "cat /none",
        "play 480 440 1",
        "efi-load-env x",
        "insmod none",
        "break",
        "continue 3",
        "time frobnicate",
        "password_pbkdf2 root grub.pbkdf2.sha512.10000.AA",
    ] {
        assert_eq!(
            cmdline(&format!(
                "{command}\nmenuentry e {{ {command}; linux /k x; {command}; }}"
            )),
            "BOOT_IMAGE=/k x",
            "{command}"
        );
    }
}

#[test]
fn functions_have_names_that_other_grubs_know_as_commands() {
    assert_eq!(words("function tpm { set t=$1; }\ntpm 1", "$t"), "1");
    assert_eq!(
        words("function bli { return 3; }\nbli\nset s=$?", "$s"),
        "3"
    );
    // But not those of GRUB's language.
    assert_eq!(words("function set { a=function; }\nset a=b", "$a"), "b");
}

#[test]
fn loops_and_functions_end_as_in_grub() {
    for (config, shown, expected) in [
        ("break\nset a=1", "$a", "1"),
        ("return 1\nset a=1", "$a", "1"),
        (
            "for x in 1 2; do for y in a b; do break 9; done; done; set a=$x$y",
            "$a",
            "1a",
        ),
        (
            "for x in 1 2; do for y in a b; do continue 2; done; set bad=1; done",
            "$x$y$bad",
            "2a",
        ),
        (
            "function f { break; set in=1; }\nfor x in 1 2; do f; done",
            "$x$in",
            "21",
        ),
        ("for x in 1 2; do break 0; break x; done", "$x", "2"),
        (
            "function f { shift 9; echo; set n=$#; shift 2; set m=$1; }\nf a b c",
            "$n$m",
            "3c",
        ),
        ("function f { setparams x y; set a=$2$#; }\nf 1", "$a", "y2"),
        ("function f { return 4; }\nf\nset a=$?", "$a", "4"),
        (
            "function f { false; return; }\nif f; then a=1; else a=2; fi",
            "$a",
            "2",
        ),
        (
            "function f { for i in \"$@\"; do set n=\"$n[$i]\"; done; }\nf 'a b' c",
            "$n",
            "[a b][c]",
        ),
        (
            "function f { for i in $*; do set n=$n[$i]; done; }\nf 'a b' c",
            "\"$n\"",
            "[a][b][c]",
        ),
        ("function f { set n=\"$0-$1\"; }\nf x", "$n", "-x"),
        ("set v=' b '\nset a=a${v}c", "$a", "abc"),
        ("eval \"set a=1; set b=2\"", "$a$b", "12"),
        ("for x in 1 2; do eval break; done", "$x", "1"),
        ("set a=1 \\\n # comment \\\nset b=2", "$a$b", "12"),
        ("set a='it'\\''s' ; set b=a\\ b", "\"$b\"", "\"a b\""),
        (
            "function f {\n  set a=$1\n}\nfor f in f; do $f 5; done",
            "$a",
            "5",
        ),
    ] {
        assert_eq!(words(config, shown), expected, "{config}");
    }
    // What a file sets of its own place is gone after it.
    let files = [(
        "/x/a.cfg",
        "set seen=$config_directory\nset file=$config_file",
    )];
    let config = "source /x/a.cfg\nmenuentry e { linux /k $seen $file; }\nset after=$config_directory\n\
                  menuentry f { linux /k $after; }\n";
    let booted = |config: &str| boot_with(config, &files).unwrap().cmdline;
    assert_eq!(
        booted(config),
        "BOOT_IMAGE=/k (hd0,gpt1)/x (hd0,gpt1)/x/a.cfg"
    );
    assert_eq!(
        booted(&format!("set default=1\n{config}")),
        "BOOT_IMAGE=/k (hd0,gpt1)/boot/grub"
    );
}

#[test]
fn wildcards_are_expanded() {
    let files = [
        ("/boot/conf.d/10-a.cfg", "set a=${a}1"),
        ("/boot/conf.d/20-b.cfg", "set a=${a}2"),
        ("/boot/conf.d/readme", "frobnicate"),
        ("/boot/one/vmlinuz", "k"),
        ("/boot/two/other", "k"),
        ("/star*", "x"),
    ];
    let booted = |config: &str| {
        let choice = boot_with(config, &files);
        choice.map(|choice| choice.cmdline.replace("BOOT_IMAGE=", ""))
    };
    let entry = "menuentry e { linux /k $a; }";
    for (config, expected) in [
        ("for f in /boot/conf.d/*.cfg; do source $f; done", "/k 12"),
        (
            "for f in $prefix/../conf.d/none* ; do set a=$f; done",
            "/k (hd0,gpt1)/boot/grub/../conf.d/none*",
        ),
        (
            "for f in /boot/*/vmlinuz; do set a=$f; done",
            "/k /boot/one/vmlinuz",
        ),
        (
            "for f in (hd0,gpt1)/boot/t?o/*; do set a=$f; done",
            "/k (hd0,gpt1)/boot/two/other",
        ),
        ("for d in (hd0,*1); do set a=$d; done", "/k (hd0,gpt1)"),
        ("for d in (*)/k; do set a=$a$d; done", "/k (hd0,gpt1)/k"),
        (
            "set p=/boot/conf.d/1*; set a=$p",
            "/k /boot/conf.d/10-a.cfg",
        ),
        ("set a='/boot/conf.d/1*'", "/k /boot/conf.d/10-a.cfg"),
        ("if [ -f /boot/conf.d/2* ]; then a=1; fi", "/k 1"),
        ("for f in /star\\*; do set a=$f; done", "/k /star*"),
        ("for f in boot/*; do set a=$f; done", "/k boot/*"),
    ] {
        assert_eq!(
            booted(&format!("{config}\n{entry}")).unwrap(),
            expected,
            "{config}"
        );
    }
    assert_eq!(
        booted("set a=/boot/conf.d/1*\nmenuentry e { linux /k \"$a\" '/boot/*' /boot/o\\*; }")
            .unwrap(),
        "/k /boot/conf.d/1* /boot/* /boot/o*"
    );
    assert_eq!(
        booted("menuentry e { linux /boot/one/vm* root=/dev/* ; }").unwrap(),
        "/boot/one/vmlinuz root=/dev/*"
    );
    // Many and long ones come to an end.
    let deep = format!("for f in {}; do true; done", "/*".repeat(20_000));
    let _ = booted(&format!("{deep}\n{entry}"));
}

#[test]
fn defaults_with_white_space_and_submenus() {
    let menu = "menuentry A --id a { linux /k a; }\n\
        submenu 'More > than' --id more {\n\
        menuentry B --id b { linux /k b; }\n menuentry C --id c { linux /k c; }\n\
        submenu deep { menuentry D { linux /k d; }\n menuentry '2 E' { linux /k e; }\n }\n}\n\
        menuentry 'F' --id 'f>g' { linux /k f; }\n";
    for (default, booted) in [
        ("1> 1", "c"),
        ("1>1", "c"),
        (" 1 > 1 ", "c"),
        ("1\t>\t0", "b"),
        ("more> 1", "c"),
        ("more>c", "c"),
        ("more>C", "c"),
        ("More >> than>b", "b"),
        ("1> 2> 1", "e"),
        ("1>deep>2 E", "e"),
        ("more>deep>D", "d"),
        ("0x1>01", "c"),
        ("f>>g", "f"),
        ("2>1", "f"),
        ("", "a"),
        ("7", "a"),
        ("none", "a"),
        ("-1", "a"),
        // A name is taken as it is, with its white space.
        ("more> c", "b"),
        (" more>c", "a"),
        ("1>", "b"),
        ("1>7", "b"),
    ] {
        assert_eq!(
            cmdline(&format!("set default=\"{default}\"\n{menu}")),
            format!("BOOT_IMAGE=/k {booted}"),
            "{default:?}"
        );
    }
    // A fallback is looked for beside the entry that failed.
    let fails = "menuentry x { linux /none; }\n";
    assert_eq!(
        cmdline(&format!(
            "set default=0\nset fallback=\"7 2\"\n{fails}{menu}"
        )),
        "BOOT_IMAGE=/k b"
    );
}

#[test]
fn grub_reboot_boots_its_entry_and_tells_what_is_to_be_forgotten() {
    let config = "if [ -s $prefix/grubenv ]; then load_env; fi\n\
        if [ \"${next_entry}\" ] ; then\n set default=\"${next_entry}\"\n set next_entry=\n\
        save_env next_entry\n set boot_once=true\nelse\n set default=\"${saved_entry}\"\nfi\n\
        menuentry 'new' --id n { linux /k new; }\nmenuentry 'old' --id o { linux /k old; }\n";
    let env = "# GRUB Environment Block\nsaved_entry=n\nnext_entry=o\n#########";
    // Nothing is written, so that it boots at every boot, until the guest itself changes it.
    for _ in 0..2 {
        let choice = boot_with(config, &[("/boot/grub/grubenv", env)]).unwrap();
        assert_eq!(choice.cmdline, "BOOT_IMAGE=/k old");
        assert_eq!(choice.saved, [("next_entry".into(), Some(String::new()))]);
    }
}

#[test]
fn normal_runs_the_configuration_beside_grub() {
    let files = [("/grub2/grub.cfg", "menuentry e { linux /k beside; }")];
    let config = "set prefix=($root)/grub2\nnormal\n";
    assert_eq!(
        boot_with(config, &files).unwrap().cmdline,
        "BOOT_IMAGE=/k beside"
    );
    assert!(matches!(
        boot("normal"),
        Err(BootError::Config { .. } | BootError::Limit { .. })
    ));
}
