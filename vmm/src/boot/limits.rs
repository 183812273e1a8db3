//! Limits on the work that a disk can cause.

use std::time::Duration;

/// Limits on how much of a disk is read and interpreted.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum bytes of a kernel.
    pub kernel: u64,
    /// Maximum bytes of all initrds together.
    pub initrd: u64,
    /// Maximum bytes of one configuration file or environment block.
    pub config: u64,
    /// Maximum number of commands that a configuration runs.
    pub steps: u64,
    /// Maximum bytes read from the disk in total.
    pub bytes: u64,
    /// Maximum number of reads from the disk in total.
    pub reads: u64,
    /// Maximum number of entries looked at in total: of partition tables, directories, extent
    /// trees, journals and menus, and pieces of scripts.
    pub entries: u64,
    /// Maximum bytes of configuration files that are parsed in total. A file counts each time.
    pub parsed: u64,
    /// Maximum bytes of memory at a time, besides the kernel and the initrds: what is cached,
    /// directories, the journal's index, scripts and variables.
    pub memory: u64,
    /// Maximum time for all of it.
    pub time: Duration,
}

impl Default for Limits {
    /// A kernel of 256 MiB, initrds of 1 GiB, configuration files of 1 MiB each and 16 MiB together,
    /// 100,000 commands, 4 GiB and 8 million reads, 4 million entries, 128 MiB of memory, one
    /// minute.
    fn default() -> Self {
        Self {
            kernel: 256 << 20,
            initrd: 1 << 30,
            config: 1 << 20,
            steps: 100_000,
            bytes: 4 << 30,
            reads: 8_000_000,
            entries: 4_000_000,
            parsed: 16 << 20,
            memory: 128 << 20,
            time: Duration::from_secs(60),
        }
    }
}
