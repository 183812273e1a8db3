//! GRUB's commands: what each of them means for the boot.
//!
//! A command that is not in the table may decide what boots, or not. It is ignored, as GRUB ignores
//! it, until something asks for its result.

use super::arguments::{Arguments, Opt, Style, Takes};
use super::{Flow, Interpreter, commands, conditions, files, load, menu, search};
use crate::boot::error::BootError;
use crate::boot::grub::syntax::Block;

/// A command that is being run.
pub(super) struct Call<'a> {
    pub(super) name: &'a str,
    pub(super) arguments: Arguments<'a>,
    pub(super) block: Option<&'a Block>,
}

/// What a command comes to.
pub(super) enum Outcome {
    Done,
    /// A condition does not hold. GRUB prints nothing.
    False,
    /// GRUB prints this, and goes on.
    Failed(String),
    /// The result cannot be told, and why.
    Undecided(String),
    /// What runs next. The status has been set.
    Flow(Flow),
}

impl From<bool> for Outcome {
    fn from(holds: bool) -> Self {
        if holds { Self::Done } else { Self::False }
    }
}

impl From<Result<(), String>> for Outcome {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Done)
    }
}

pub(super) type Run = fn(&mut Interpreter<'_>, &Call<'_>) -> Result<Outcome, BootError>;

/// What a command does to what boots.
#[derive(Clone, Copy)]
pub(super) enum Effect {
    /// It runs another part of the configuration, or ends one.
    Controls(Run),
    /// Its result is a condition.
    Decides(Run),
    /// It sets variables or makes menu entries.
    Sets(Run),
    /// It loads the files of a kernel, or starts it.
    Loads(Run),
    /// Nothing, and it succeeds: it is for a screen, a keyboard, or modules, which are all present.
    Harmless,
    /// Nothing, but whether it succeeds depends on more than is known here.
    Unknowable,
    /// It starts something unsupported, or is part of that.
    Refused(&'static str),
}

pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) effect: Effect,
    pub(super) style: Style,
    pub(super) options: &'static [Opt],
}

/// The command `name`.
pub(super) fn find(name: &str) -> Option<&'static Spec> {
    COMMANDS.iter().find(|spec| spec.name == name)
}

const fn plain(name: &'static str, effect: Effect) -> Spec {
    Spec {
        name,
        effect,
        style: Style::Plain,
        options: &[],
    }
}

const fn with(name: &'static str, effect: Effect, options: &'static [Opt]) -> Spec {
    Spec {
        name,
        effect,
        style: Style::Options,
        options,
    }
}

const fn keeping(name: &'static str, effect: Effect, options: &'static [Opt]) -> Spec {
    Spec {
        name,
        effect,
        style: Style::KeepsUnknown,
        options,
    }
}

const fn flag(long: &'static str, short: char) -> Opt {
    Opt::new(long, Some(short), Takes::Nothing)
}

const fn long_flag(long: &'static str) -> Opt {
    Opt::new(long, None, Takes::Nothing)
}

const fn value(long: &'static str, short: char) -> Opt {
    Opt::new(long, Some(short), Takes::Value)
}

const fn long_value(long: &'static str) -> Opt {
    Opt::new(long, None, Takes::Value)
}

const MENUENTRY: &[Opt] = &[
    long_value("class"),
    Opt::new("users", None, Takes::Optional),
    long_value("hotkey"),
    long_value("source"),
    long_value("id"),
    long_flag("unrestricted"),
];

const SEARCH: &[Opt] = &[
    flag("file", 'f'),
    flag("label", 'l'),
    flag("fs-uuid", 'u'),
    Opt::new("set", Some('s'), Takes::Optional),
    flag("no-floppy", 'n'),
    long_flag("efidisk-only"),
    long_flag("cryptodisk-only"),
    flag("root-dev-only", 'r'),
    value("hint", 'h'),
    long_value("hint-ieee1275"),
    long_value("hint-bios"),
    long_value("hint-baremetal"),
    long_value("hint-efi"),
    long_value("hint-arc"),
];

const PROBE: &[Opt] = &[
    value("set", 's'),
    flag("driver", 'd'),
    flag("partmap", 'p'),
    flag("fs", 'f'),
    flag("fs-uuid", 'u'),
    flag("label", 'l'),
    long_flag("part-uuid"),
];

const ENVIRONMENT: &[Opt] = &[value("file", 'f'), flag("skip-sig", 's')];
const REGEXP: &[Opt] = &[value("set", 's')];
const CPUID: &[Opt] = &[flag("long-mode", 'l'), flag("pae", 'p')];
const TR: &[Opt] = &[
    value("set", 's'),
    flag("upcase", 'U'),
    flag("downcase", 'D'),
];
const READ: &[Opt] = &[flag("silent", 's')];
const FWSETUP: &[Opt] = &[long_flag("is-supported")];
const BACKGROUND: &[Opt] = &[value("mode", 'm')];

use Effect::{Controls, Decides, Harmless, Loads, Refused, Sets, Unknowable};

const BLS: &str = "Boot Loader Specification entries are not supported";
const LEAVES: &str = "it leaves GRUB for the firmware, but there is no firmware";
const LINUX_ONLY: &str = "only Linux is supported";
const MULTIBOOT: &str = "multiboot kernels are not supported";
const OTHER_LOADER: &str = "it starts another boot loader, which needs firmware";
const OTHER_SYNTAX: &str = "configurations of other boot loaders are not supported";

static COMMANDS: &[Spec] = &[
    plain(".", Controls(files::source)),
    plain("source", Controls(files::source)),
    plain("configfile", Controls(files::configfile)),
    plain("normal", Controls(files::normal)),
    plain("eval", Controls(files::eval)),
    plain("time", Controls(commands::time)),
    plain("break", Controls(commands::break_loops)),
    plain("continue", Controls(commands::break_loops)),
    plain("return", Controls(commands::return_from)),
    with("fwsetup", Controls(commands::fwsetup), FWSETUP),
    plain("[", Decides(conditions::test)),
    plain("test", Decides(conditions::test)),
    plain("true", Decides(conditions::yes)),
    plain("false", Decides(conditions::no)),
    with("regexp", Decides(conditions::regexp), REGEXP),
    with("cpuid", Decides(conditions::cpuid), CPUID),
    plain("insmod", Decides(conditions::insmod)),
    plain("loadfont", Decides(conditions::loadfont)),
    with(
        "background_image",
        Decides(conditions::background_image),
        BACKGROUND,
    ),
    // No key is pressed, and no button that a firmware would note.
    plain("keystatus", Decides(conditions::no)),
    plain("cmostest", Decides(conditions::no)),
    plain("smbios", Decides(conditions::smbios)),
    plain("set", Sets(commands::set)),
    plain("unset", Sets(commands::unset)),
    plain("export", Sets(commands::export)),
    plain("increment", Sets(commands::count)),
    plain("decrement", Sets(commands::count)),
    with("tr", Sets(commands::tr), TR),
    plain("shift", Sets(commands::shift)),
    plain("setparams", Sets(commands::setparams)),
    plain("hwmatch", Sets(commands::hwmatch)),
    with("read", Sets(commands::read), READ),
    keeping("menuentry", Sets(menu::menuentry), MENUENTRY),
    keeping("submenu", Sets(menu::menuentry), MENUENTRY),
    keeping("search", Sets(search::search), SEARCH),
    plain("search.file", Sets(search::search_short)),
    plain("search.fs_label", Sets(search::search_short)),
    plain("search.fs_uuid", Sets(search::search_short)),
    with("probe", Sets(search::probe), PROBE),
    with("load_env", Sets(files::load_env), ENVIRONMENT),
    with("save_env", Sets(files::save_env), ENVIRONMENT),
    plain("linux", Loads(load::linux)),
    plain("linux16", Loads(load::linux)),
    plain("linuxefi", Loads(load::linux)),
    plain("initrd", Loads(load::initrd)),
    plain("initrd16", Loads(load::initrd)),
    plain("initrdefi", Loads(load::initrd)),
    plain("boot", Loads(load::boot)),
    plain("background_color", Harmless),
    plain("badram", Harmless),
    plain("boottime", Harmless),
    plain("cacheinfo", Harmless),
    plain("clear", Harmless),
    plain("cls", Harmless),
    plain("cmosclean", Harmless),
    plain("cutmem", Harmless),
    plain("date", Harmless),
    plain("distrust", Harmless),
    plain("echo", Harmless),
    plain("gettext", Harmless),
    plain("help", Harmless),
    plain("keymap", Harmless),
    plain("list_trusted", Harmless),
    plain("lsacpi", Harmless),
    plain("lsfonts", Harmless),
    plain("lsmmap", Harmless),
    plain("lsmod", Harmless),
    plain("lspci", Harmless),
    plain("nativedisk", Harmless),
    plain("password", Harmless),
    plain("password_pbkdf2", Harmless),
    plain("pause", Harmless),
    plain("play", Harmless),
    plain("rmmod", Harmless),
    plain("serial", Harmless),
    plain("sleep", Harmless),
    plain("terminal", Harmless),
    plain("terminal_input", Harmless),
    plain("terminal_output", Harmless),
    plain("terminfo", Harmless),
    plain("tpm", Harmless),
    plain("usb", Harmless),
    plain("version", Harmless),
    plain("videoinfo", Harmless),
    plain("videotest", Harmless),
    plain("authenticate", Unknowable),
    plain("bli", Unknowable),
    plain("blocklist", Unknowable),
    plain("cat", Unknowable),
    plain("cmp", Unknowable),
    plain("cmosdump", Unknowable),
    plain("cmosset", Unknowable),
    plain("crc", Unknowable),
    plain("devicetree", Unknowable),
    plain("file", Unknowable),
    plain("gptsync", Unknowable),
    plain("hashsum", Unknowable),
    plain("hdparm", Unknowable),
    plain("hexdump", Unknowable),
    plain("list_env", Unknowable),
    plain("ls", Unknowable),
    plain("md5sum", Unknowable),
    plain("parttool", Unknowable),
    plain("sha1sum", Unknowable),
    plain("sha256sum", Unknowable),
    plain("sha512sum", Unknowable),
    plain("trust", Unknowable),
    plain("verify_detached", Unknowable),
    plain("chainloader", Refused(OTHER_LOADER)),
    plain("pxechainloader", Refused(OTHER_LOADER)),
    plain("appleloader", Refused(OTHER_LOADER)),
    plain("freedos", Refused(LINUX_ONLY)),
    plain("kfreebsd", Refused(LINUX_ONLY)),
    plain("knetbsd", Refused(LINUX_ONLY)),
    plain("kopenbsd", Refused(LINUX_ONLY)),
    plain("ntldr", Refused(LINUX_ONLY)),
    plain("plan9", Refused(LINUX_ONLY)),
    plain("truecrypt", Refused(LINUX_ONLY)),
    plain("xnu_kernel", Refused(LINUX_ONLY)),
    plain("xnu_kernel64", Refused(LINUX_ONLY)),
    plain("blscfg", Refused(BLS)),
    plain("bls_import", Refused(BLS)),
    plain("uki", Refused("unified kernel images are not supported")),
    plain("multiboot", Refused(MULTIBOOT)),
    plain("multiboot2", Refused(MULTIBOOT)),
    plain("module", Refused(MULTIBOOT)),
    plain("module2", Refused(MULTIBOOT)),
    plain("xen_hypervisor", Refused("Xen is not supported")),
    plain("xen_module", Refused("Xen is not supported")),
    plain("legacy_configfile", Refused(OTHER_SYNTAX)),
    plain("legacy_source", Refused(OTHER_SYNTAX)),
    plain("legacy_kernel", Refused(OTHER_SYNTAX)),
    plain("legacy_initrd", Refused(OTHER_SYNTAX)),
    plain("legacy_initrd_nounzip", Refused(OTHER_SYNTAX)),
    plain("syslinux_configfile", Refused(OTHER_SYNTAX)),
    plain("syslinux_source", Refused(OTHER_SYNTAX)),
    plain("extract_entries_configfile", Refused(OTHER_SYNTAX)),
    plain("extract_entries_source", Refused(OTHER_SYNTAX)),
    plain("extract_legacy_entries_configfile", Refused(OTHER_SYNTAX)),
    plain("extract_legacy_entries_source", Refused(OTHER_SYNTAX)),
    plain("extract_syslinux_entries_configfile", Refused(OTHER_SYNTAX)),
    plain("extract_syslinux_entries_source", Refused(OTHER_SYNTAX)),
    plain(
        "halt",
        Refused("it powers the machine off before a kernel is loaded"),
    ),
    plain(
        "reboot",
        Refused("it restarts the machine before a kernel is loaded"),
    ),
    plain("exit", Refused(LEAVES)),
    plain("normal_exit", Refused(LEAVES)),
    plain("loopback", Refused("images in files are not supported")),
    plain(
        "cryptomount",
        Refused("encrypted partitions are not supported"),
    ),
    plain(
        "plainmount",
        Refused("encrypted partitions are not supported"),
    ),
    plain("acpi", Refused("replacing ACPI tables is not supported")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_stands_once() {
        let mut names: Vec<&str> = COMMANDS.iter().map(|spec| spec.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
