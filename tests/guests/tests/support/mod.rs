//! Running a payload and looking at what it said.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fleetbox_devices::block::{Disk, OpenOptions, open_disk};
use fleetbox_vmm::hypervisor::Hypervisor;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::machine::{
    BootSource, DiskConfig, Error, Exit, Handle, LinkFormat, Machine, MachineConfig, NicConfig,
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send as send_to};

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn hypervisor() -> Arc<dyn Hypervisor> {
    Arc::new(KvmHypervisor::open().expect("a usable KVM"))
}

fn payload_path(name: &str) -> PathBuf {
    let directory = std::env::var_os("FLEETBOX_GUESTS").expect(
        "FLEETBOX_GUESTS names the directory of the payloads: run `cargo xtask test guests`",
    );
    PathBuf::from(directory).join(name)
}

#[derive(Clone, Default)]
struct Console(Arc<(Mutex<String>, Condvar)>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (text, changed) = &*self.0;
        text.lock()
            .unwrap()
            .push_str(&String::from_utf8_lossy(bytes));
        changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A payload to be run.
pub(crate) struct Guest {
    pub(crate) config: MachineConfig,
}

impl Guest {
    pub(crate) fn payload(name: &str, cmdline: &str) -> Self {
        Self {
            config: MachineConfig {
                memory: 64 << 20,
                boot: BootSource::Kernel {
                    kernel: payload_path(name),
                    initrd: None,
                    cmdline: cmdline.into(),
                },
                ..Default::default()
            },
        }
    }

    pub(crate) fn case(cmdline: &str) -> Self {
        Self::payload("suite", cmdline)
    }

    pub(crate) fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.config.disks.push(DiskConfig {
            disk,
            serial: "guest-disk".into(),
        });
        self
    }

    pub(crate) fn nic(&mut self, mac: [u8; 6], link: OwnedFd) {
        self.config.nics.push(NicConfig {
            mac,
            link,
            format: LinkFormat::Frames,
        });
    }

    pub(crate) fn start(mut self) -> Running {
        let console = Console::default();
        self.config.serial = Some(Box::new(console.clone()));
        Running {
            machine: Machine::start(&hypervisor(), self.config).expect("the machine starts"),
            console,
        }
    }

    pub(crate) fn run(self) -> Outcome {
        self.start().finish()
    }
}

pub(crate) struct Running {
    machine: Machine,
    console: Console,
}

impl Running {
    pub(crate) fn handle(&self) -> Handle {
        self.machine.handle()
    }

    pub(crate) fn wait_for(&self, text: &str) {
        let (console, changed) = &*self.console.0;
        let deadline = Instant::now() + LIMIT;
        let mut console = console.lock().unwrap();
        while !console.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {text:?} in: {console}");
            console = changed.wait_timeout(console, left).unwrap().0;
        }
    }

    /// Waits for the end; a machine that does not end is killed, and its exit tells.
    pub(crate) fn finish(self) -> Outcome {
        let handle = self.machine.handle();
        let (done, finished) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if finished.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                handle.kill();
            }
        });
        let exit = self.machine.wait();
        drop(done);
        watchdog.join().unwrap();
        let console = self.console.0.0.lock().unwrap().clone();
        Outcome { exit, console }
    }
}

pub(crate) struct Outcome {
    pub(crate) exit: Result<Exit, Error>,
    pub(crate) console: String,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn passed(&self) {
        let passed = self
            .console
            .lines()
            .next_back()
            .is_some_and(|l| l.starts_with("PASSED"));
        assert!(
            passed && matches!(self.exit, Ok(Exit::PowerOff)),
            "{:?}\n{}",
            self.exit,
            self.console
        );
    }
}

/// A raw disk in a file.
pub(crate) fn disk_of(size: u64) -> (Arc<dyn Disk>, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let options = OpenOptions {
        read_only: false,
        ..OpenOptions::read_only()
    };
    (open_disk(file.path(), &options).unwrap(), file)
}

/// A disk whose second half fails.
pub(crate) fn failing_disk(size: u64) -> Arc<dyn Disk> {
    struct Failing {
        disk: Arc<dyn Disk>,
        _file: tempfile::NamedTempFile,
    }

    impl Failing {
        fn check(&self, offset: u64) -> io::Result<()> {
            if offset >= self.disk.len() / 2 {
                return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
            }
            Ok(())
        }
    }

    impl Disk for Failing {
        fn len(&self) -> u64 {
            self.disk.len()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.check(offset)?;
            self.disk.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.check(offset)?;
            self.disk.write_at(buf, offset)
        }
        fn flush(&self) -> io::Result<()> {
            self.disk.flush()
        }
        fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
            self.check(offset)?;
            self.disk.discard(offset, len)
        }
        fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
            self.check(offset)?;
            self.disk.write_zeroes(offset, len, unmap)
        }
    }

    let (disk, file) = disk_of(size);
    Arc::new(Failing { disk, _file: file })
}

/// The two ends of a network interface's link.
pub(crate) struct Link {
    pub(crate) guest: OwnedFd,
    pub(crate) host: OwnedFd,
}

pub(crate) fn link() -> Link {
    let (guest, host) = nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let limit = nix::sys::time::TimeVal::new(LIMIT.as_secs() as i64, 0);
    nix::sys::socket::setsockopt(&host, nix::sys::socket::sockopt::ReceiveTimeout, &limit).unwrap();
    Link { guest, host }
}

pub(crate) fn receive(link: BorrowedFd<'_>, buffer: &mut [u8]) -> usize {
    recv(link.as_raw_fd(), buffer, MsgFlags::empty()).expect("a frame")
}

pub(crate) fn send(link: BorrowedFd<'_>, frame: &[u8]) {
    assert_eq!(
        send_to(link.as_raw_fd(), frame, MsgFlags::empty()),
        Ok(frame.len())
    );
}
