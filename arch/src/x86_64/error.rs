//! Why a kernel cannot be loaded.

use std::io;

use vm_memory::GuestMemoryError;

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Neither an ELF file nor a bzImage.
    #[error("the kernel is neither an x86-64 ELF file nor a bzImage (it begins with {magic:02x?})")]
    UnknownFormat {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// The ELF file is damaged or not for this machine.
    #[error("the kernel's ELF file is unusable: {0}")]
    Elf(&'static str),
    /// The bzImage is damaged or too old.
    #[error("the bzImage is unusable: {0}")]
    BzImage(&'static str),
    /// The payload of the bzImage cannot be decompressed.
    #[error("the kernel's {compression} payload is damaged: {reason}")]
    Payload {
        /// Compression format.
        compression: &'static str,
        /// What the decompressor says.
        reason: String,
    },
    /// The compression is left to the guest.
    #[error(
        "unknown compression of the bzImage ({0:02x?}); only the kernel itself can decompress it"
    )]
    UnknownCompression([u8; 4]),
    /// Part of the kernel is where there is no RAM.
    #[error(
        "the kernel needs {start:#x}..{end:#x}, which is not free RAM; give the VM more memory"
    )]
    DoesNotFit {
        /// First address (GPA).
        start: u64,
        /// First address behind it.
        end: u64,
    },
    /// There is no room for the initrd.
    #[error(
        "the initrd of {size} bytes does not fit between the kernel's end {low:#x} and {high:#x}: \
         give the machine more memory"
    )]
    InitrdDoesNotFit {
        /// Size in bytes.
        size: u64,
        /// First usable address (GPA).
        low: u64,
        /// First address behind what is usable.
        high: u64,
    },
    /// The command line is longer than the kernel reads.
    #[error("the command line has {len} bytes, but the kernel accepts at most {max}")]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// The kernel's limit in bytes.
        max: usize,
    },
    /// The command line contains a zero byte.
    #[error("the command line contains a zero byte")]
    CmdlineNul,
    /// A file is unreasonably large.
    #[error("the {what} of {len} bytes is larger than any real one")]
    TooLarge {
        /// The kind of file.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
    },
    /// Reading it failed.
    #[error("reading the kernel or initrd failed: {0}")]
    Io(#[from] io::Error),
    /// Writing guest memory failed.
    #[error("writing guest memory failed: {0}")]
    Memory(#[from] GuestMemoryError),
}
