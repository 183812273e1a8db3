//! GRUB's commands.

use super::{Entry, Flow, Interpreter, MAX_ENTRIES, MAX_PROBLEMS};
use crate::boot::error::BootError;
use crate::boot::grub::syntax::Block;
use crate::boot::grub::{environment, expression};

/// Commands without an effect here: all modules are present, and there is no screen or keyboard.
const NOTHING_TO_DO: &[&str] = &[
    "authenticate",
    "background_color",
    "background_image",
    "badram",
    "cat",
    "clear",
    "cls",
    "cmosclean",
    "cutmem",
    "date",
    "distrust",
    "echo",
    "gettext",
    "hashsum",
    "insmod",
    "keymap",
    "list_trusted",
    "loadfont",
    "ls",
    "lsfonts",
    "lsmmap",
    "lsmod",
    "lspci",
    "nativedisk",
    "password",
    "password_pbkdf2",
    "pause",
    "play",
    "rmmod",
    "serial",
    "sleep",
    "terminal",
    "terminal_input",
    "terminal_output",
    "tpm",
    "trust",
    "videoinfo",
    "videotest",
    "verify_detached",
];

/// Commands that fail here.
const ALWAYS_FALSE: &[&str] = &["cmostest", "false", "keystatus"];

/// Commands that start something unsupported, or are part of that.
const CANNOT: &[(&str, &str)] = &[
    (
        "chainloader",
        "it starts another boot loader, which needs firmware",
    ),
    (
        "blscfg",
        "Boot Loader Specification entries are not supported",
    ),
    ("multiboot", "multiboot kernels are not supported"),
    ("multiboot2", "multiboot kernels are not supported"),
    ("module", "multiboot kernels are not supported"),
    ("module2", "multiboot kernels are not supported"),
    ("xen_hypervisor", "Xen is not supported"),
    ("kfreebsd", "only Linux is supported"),
    ("knetbsd", "only Linux is supported"),
    ("kopenbsd", "only Linux is supported"),
    ("ntldr", "only Linux is supported"),
    (
        "fwsetup",
        "it enters the firmware's settings, but there is no firmware",
    ),
    (
        "halt",
        "it powers the machine off before a kernel is loaded",
    ),
    (
        "reboot",
        "it restarts the machine before a kernel is loaded",
    ),
    (
        "exit",
        "it leaves GRUB for the firmware, but there is no firmware",
    ),
    ("loopback", "images in files are not supported"),
    ("cryptomount", "encrypted partitions are not supported"),
    (
        "devicetree",
        "device trees are not supported on this architecture",
    ),
    ("acpi", "replacing ACPI tables is not supported"),
];

impl Interpreter<'_> {
    /// Runs the command, function or assignment `name`.
    pub(super) fn call(
        &mut self,
        name: &str,
        words: Vec<String>,
        block: Option<&Block>,
    ) -> Result<Flow, BootError> {
        if let Some(flow) = self.control(name, &words)? {
            return Ok(flow);
        }
        let outcome = match self.builtin(name, &words, block)? {
            Some(outcome) => outcome,
            None => {
                if let Some((_, why)) = CANNOT.iter().find(|(cannot, _)| *cannot == name) {
                    return Err(self.error(construct(name, &words), *why));
                }
                if let Some(function) = self.functions.get(name).cloned() {
                    self.status = 0;
                    return self.invoke(&function, words);
                }
                self.other(name, &words)?
            }
        };
        self.conclude(name, &words, outcome);
        Ok(Flow::Next)
    }

    /// Sets the status from `outcome`. Its error is one that GRUB prints before it continues.
    fn conclude(&mut self, name: &str, words: &[String], outcome: Result<(), String>) {
        self.status = i32::from(outcome.is_err());
        if let Err(problem) = outcome {
            self.note(&construct(name, words), &problem);
        }
    }

    /// Runs a command that controls the flow or is a condition; `None` for others.
    fn control(&mut self, name: &str, words: &[String]) -> Result<Option<Flow>, BootError> {
        let number = |word: &String| word.parse::<u32>().ok();
        let count = words.first().and_then(number).filter(|n| *n > 0);
        let count = count.unwrap_or(1);
        let (status, flow) = match name {
            "[" | "test" => (i32::from(!self.test(words)), Flow::Next),
            // Asked whether there are settings to enter, the firmware that is not there says no.
            "fwsetup" if words.first().is_some_and(|word| word == "--is-supported") => {
                (1, Flow::Next)
            }
            name if ALWAYS_FALSE.contains(&name) => (1, Flow::Next),
            "break" => (0, Flow::Break(count)),
            "continue" => (0, Flow::Continue(count)),
            "return" => {
                let status = words.first().and_then(|n| n.parse().ok());
                (status.unwrap_or(self.status), Flow::Return)
            }
            "boot" if self.loaded.is_some() => (0, Flow::Boot),
            "source" | "." => return self.include(words).map(Some),
            "configfile" => return self.configfile(words).map(Some),
            "normal" if !words.is_empty() => return self.configfile(words).map(Some),
            _ => return Ok(None),
        };
        self.status = status;
        Ok(Some(flow))
    }

    /// Runs a command that changes variables, menus or the loaded files; `None` for others.
    fn builtin(
        &mut self,
        name: &str,
        words: &[String],
        block: Option<&Block>,
    ) -> Result<Option<Result<(), String>>, BootError> {
        let done = Ok(Some(Ok(())));
        match name {
            "set" => return self.assign_all(words).map(Some),
            "unset" => words.iter().for_each(|name| self.env.unset(name)),
            "export" => words.iter().try_for_each(|name| self.export(name))?,
            "true" | "normal" => {}
            "menuentry" | "submenu" => {
                return Ok(Some(match block {
                    Some(block) => self.add_entry(words, block, name == "submenu"),
                    None => Err("it has no `{ ... }`".into()),
                }));
            }
            "linux" | "linux16" | "linuxefi" => return Ok(Some(self.linux(words))),
            // Without its initrd a kernel would start and then find no root: unlike GRUB, stop.
            "initrd" | "initrd16" | "initrdefi" => {
                let loaded = self.initrd(words);
                loaded.map_err(|problem| self.error(construct(name, words), problem))?;
            }
            "boot" => return Ok(Some(Err("no kernel is loaded".into()))),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return self.search(name, words).map(Some);
            }
            "probe" => return self.probe(words).map(Some),
            "load_env" => return self.load_env(words).map(Some),
            "save_env" => self.save_env(words),
            "shift" => {
                let by = words.first().and_then(|n| n.parse().ok());
                let by = by.filter(|n| *n > 0).unwrap_or(1_usize);
                self.parameters.drain(..by.min(self.parameters.len()));
            }
            "setparams" => self.parameters = words.to_vec(),
            // No graphics card is on any list.
            "hwmatch" => self.set("match", "0")?,
            // Nothing is typed.
            "read" => {
                if let Some(name) = words.first() {
                    self.set(name, "")?;
                }
            }
            _ => return Ok(None),
        }
        done
    }

    /// Runs an assignment or a command without an effect, or refuses an unknown command.
    fn other(&mut self, name: &str, words: &[String]) -> Result<Result<(), String>, BootError> {
        if NOTHING_TO_DO.contains(&name) {
            return Ok(Ok(()));
        }
        if let Some((name, value)) = name.split_once('=') {
            return self.set(name, value).map(Ok);
        }
        let problem = format!("unknown command `{name}`");
        if self.in_entry && self.conditions == 0 {
            return Err(self.error(construct(name, words), problem));
        }
        Ok(Err(problem))
    }

    fn save_env(&mut self, words: &[String]) {
        for name in words.iter().filter(|word| !word.starts_with('-')) {
            let value = self.env.get(name).map(str::to_string);
            self.saved.retain(|(have, _)| have != name);
            if self.saved.len() < MAX_PROBLEMS {
                self.saved.push((name.clone(), value));
            }
        }
    }

    fn assign_all(&mut self, words: &[String]) -> Result<Result<(), String>, BootError> {
        match words.first().map(|word| word.split_once('=')) {
            Some(Some((name, value))) => self.set(name, value).map(Ok),
            Some(None) => Ok(Err("a `=` is missing".into())),
            None => Ok(Ok(())),
        }
    }

    fn test(&self, words: &[String]) -> bool {
        let words = match words.split_last() {
            Some((last, rest)) if last == "]" => rest,
            _ => words,
        };
        let root = self.root();
        let devices = self.devices;
        expression::evaluate(words, &mut |path| {
            let location = devices.locate(path, &root).ok()?;
            devices.kind(&location).ok().flatten()
        })
    }

    fn add_entry(&mut self, words: &[String], block: &Block, submenu: bool) -> Result<(), String> {
        let mut arguments = Vec::new();
        let mut id = None;
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--" => arguments.extend(words.by_ref().cloned()),
                "--id" => id = words.next().cloned(),
                "--class" | "--users" | "--hotkey" | "--source" | "-c" | "-u" | "-k" => {
                    words.next();
                }
                "--unrestricted" | "-r" => {}
                option if option.starts_with("--") => match option.split_once('=') {
                    Some(("--id", value)) => id = Some(value.to_string()),
                    Some(("--class" | "--users" | "--hotkey" | "--source", _)) => {}
                    _ => return Err(format!("unknown option `{option}`")),
                },
                _ => arguments.push(word.clone()),
            }
        }
        let title = arguments.first().cloned().ok_or("it has no title")?;
        let entry = Entry {
            id: id.unwrap_or_else(|| title.clone()),
            title,
            arguments,
            body: block.clone(),
            submenu,
            file: self.current.clone(),
            line: self.line,
        };
        match self.menus.last_mut() {
            Some(menu) if menu.len() < MAX_ENTRIES => menu.push(entry),
            _ => return Err("too many menu entries".into()),
        }
        Ok(())
    }

    fn load_env(&mut self, words: &[String]) -> Result<Result<(), String>, BootError> {
        let mut file = None;
        let mut only = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => file = words.next().cloned(),
                "-s" | "--skip-sig" => {}
                word => match word.strip_prefix("--file=") {
                    Some(path) => file = Some(path.to_string()),
                    None => only.push(word.to_string()),
                },
            }
        }
        let prefix = self.env.get("prefix").unwrap_or_default();
        let path = file.unwrap_or_else(|| format!("{prefix}/grubenv"));
        let read = self.locate(&path).and_then(|location| {
            let read = self.devices.read(&location, self.limits.config);
            read.map_err(|error| format!("{}: {error}", self.devices.display(&location)))
        });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(problem) => return Ok(Err(problem)),
        };
        let Some(variables) = environment::read_block(&bytes) else {
            return Ok(Err(format!("{path} is not an environment block")));
        };
        for (name, value) in variables {
            if only.is_empty() || only.contains(&name) {
                self.set(&name, &value)?;
            }
        }
        Ok(Ok(()))
    }

    fn include(&mut self, words: &[String]) -> Result<Flow, BootError> {
        self.status = 0;
        match words.first() {
            Some(path) => match self.file(path)? {
                Flow::Boot => Ok(Flow::Boot),
                _ => Ok(Flow::Next),
            },
            None => Ok(Flow::Next),
        }
    }

    /// Runs another file in a separate context, and then its menu.
    fn configfile(&mut self, words: &[String]) -> Result<Flow, BootError> {
        let Some(path) = words.first() else {
            return Ok(Flow::Next);
        };
        self.env.open();
        self.menus.push(Vec::new());
        let outer = std::mem::replace(&mut self.in_entry, false);
        let conditions = std::mem::replace(&mut self.conditions, 0);
        self.status = 0;
        let booted = self.file(path)? == Flow::Boot || self.menu()?;
        (self.in_entry, self.conditions) = (outer, conditions);
        self.menus.pop();
        self.env.close();
        Ok(if booted { Flow::Boot } else { Flow::Next })
    }
}

/// The command as text, for errors.
fn construct(name: &str, words: &[String]) -> String {
    let text = std::iter::once(name).chain(words.iter().map(String::as_str));
    let text = text.collect::<Vec<_>>().join(" ");
    text.chars().take(200).collect()
}
