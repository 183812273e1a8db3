//! The result of reading a disk: what it boots.

use std::fmt::Write as _;

/// The result of reading a disk: what it boots.
#[derive(Clone, Debug)]
pub struct BootPlan {
    /// The kernel file's bytes.
    pub kernel: Vec<u8>,
    /// The initrds' bytes, one after the other. Each starts at a multiple of four bytes.
    pub initrd: Option<Vec<u8>>,
    /// The kernel's command line as GRUB would pass it, including `BOOT_IMAGE=`.
    pub cmdline: String,
    /// Where it comes from.
    pub source: BootOrigin,
    /// Variables that the configuration asked GRUB to save in its environment block, with their
    /// values (`None`: unset). They are not written to the disk.
    pub saved: Vec<(String, Option<String>)>,
}

/// Where a [`BootPlan`] comes from. Files are named as GRUB names them: `(hd0,gpt1)/boot/vmlinuz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootOrigin {
    /// The configuration file.
    pub config: String,
    /// The titles of the submenus and of the menu entry, outermost first.
    pub entry: Vec<String>,
    /// The kernel's file.
    pub kernel: String,
    /// The initrds' files.
    pub initrds: Vec<String>,
}

impl BootPlan {
    /// The plan as some lines of text for users.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(text, "config   {}", self.source.config);
        let _ = writeln!(text, "entry    {}", self.source.entry.join(" > "));
        let _ = writeln!(
            text,
            "kernel   {} ({} bytes)",
            self.source.kernel,
            self.kernel.len()
        );
        let size = self.initrd.as_ref().map_or(0, Vec::len);
        for initrd in &self.source.initrds {
            let _ = writeln!(text, "initrd   {initrd} ({size} bytes in total)");
        }
        let _ = writeln!(text, "cmdline  {}", self.cmdline);
        for (name, value) in &self.saved {
            let value = value.as_deref().unwrap_or("(unset)");
            let _ = writeln!(text, "unsaved  {name}={value}");
        }
        text
    }
}
