//! The arguments of the command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs a guest on the fleetbox VMM, in the foreground.
///
/// Log messages go to standard error. FLEETBOX_LOG=debug shows more.
#[derive(Debug, Parser)]
#[command(name = "fleetbox-vmm", version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a guest until it powers off.
    ///
    /// The exit status is 0 after the guest's power-off, 1 after any failure, 130 when the escape
    /// key (Ctrl-]) ended the guest. SIGTERM presses the power button; a second one kills the guest
    /// (exit status 143).
    Run(Box<RunOptions>),
    /// Print in one sentence whether this host can run a stock kernel (exit status 0) or not (1).
    Probe,
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// Boot this kernel: a bzImage or an uncompressed ELF image. With --image, the image is its first disk.
    #[arg(long, value_name = "FILE", group = "boot")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel command line for --kernel. Without it, it is empty, or with --image, the one in the image's boot loader
    /// configuration.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    pub(crate) cmdline: Option<String>,
    /// Add this to the kernel's command line, whether it is the image's or that of --cmdline.
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "firmware",
        allow_hyphen_values = true
    )]
    pub(crate) append: Option<String>,
    /// Boot this disk image according to its boot loader configuration. It becomes the first disk.
    /// Writes are discarded at the end unless --persist is given.
    #[arg(long, value_name = "DISK")]
    pub(crate) image: Option<PathBuf>,
    /// Write to the image itself instead of discarding writes at the end.
    #[arg(long, requires = "image")]
    pub(crate) persist: bool,
    /// Boot this firmware, an ELF image with a PVH note.
    #[arg(long, value_name = "FILE", group = "boot")]
    pub(crate) firmware: Option<PathBuf>,
    /// Attach a disk (raw or qcow2). With :ro the guest cannot write to it.
    #[arg(long = "disk", value_name = "PATH[:ro]")]
    pub(crate) disks: Vec<DiskArgument>,
    /// Open the files that images name: the backing file of a qcow2 image, the base of a layer. The
    /// guest can read them, so use this only for images that you trust.
    #[arg(long)]
    pub(crate) backing_files: bool,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u8,
    /// Memory, such as 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) memory: MemorySize,
    /// Network: none, or a gateway in user space with DHCP, DNS and NAT.
    #[arg(long, value_name = "MODE", default_value = "none")]
    pub(crate) net: NetMode,
    /// Serial console: this terminal (the guest reads its input), or a file for the guest's output (the guest has no
    /// input).
    #[arg(long, value_name = "stdio|FILE", default_value = "stdio")]
    pub(crate) serial: SerialArgument,
    /// Write the machine's events as JSON lines to a file, or to standard error with "-".
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetMode {
    User,
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArgument {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
}

impl FromStr for DiskArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.is_empty() {
            return Err("the path is empty".into());
        }
        Ok(Self {
            path: path.into(),
            read_only,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SerialArgument {
    Stdio,
    File(PathBuf),
}

impl FromStr for SerialArgument {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stdio" => Self::Stdio,
            path => Self::File(path.into()),
        })
    }
}

/// A size in bytes, written with K, M, G or T for powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemorySize(pub(crate) u64);

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            unit => return Err(format!("unknown unit {unit:?}: use K, M, G or T")),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a size such as 512M or 2G"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_units() {
        let size = |text: &str| text.parse::<MemorySize>().map(|s| s.0);
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "M", "-1M", "1.5G", "1X", "99999999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_disk_may_be_read_only() {
        let disk: DiskArgument = "a:b.img:ro".parse().unwrap();
        assert_eq!((disk.path, disk.read_only), ("a:b.img".into(), true));
        let disk: DiskArgument = "a.img".parse().unwrap();
        assert_eq!((disk.path, disk.read_only), ("a.img".into(), false));
        assert!(":ro".parse::<DiskArgument>().is_err());
    }

    #[test]
    fn an_image_goes_with_a_kernel_or_a_firmware_of_ones_own() {
        let parse = |line: &str| {
            let words = std::iter::once("fleetbox-vmm").chain(line.split(' '));
            Arguments::try_parse_from(words).map(|arguments| match arguments.command {
                Command::Run(options) => options,
                Command::Probe => panic!("{line}"),
            })
        };
        let options = parse("run --kernel k --image d --append -- --persist").unwrap();
        assert_eq!(options.append.as_deref(), Some("--"));
        assert_eq!(options.cmdline, None);
        parse("run --firmware f --image d").unwrap();
        parse("run --image d --append console=ttyS0").unwrap();
        for wrong in [
            "run --kernel k --firmware f",
            "run --firmware f --append x",
            "run --cmdline x --image d",
            "run --initrd i --image d",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
