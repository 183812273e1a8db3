//! What cases share: a state directory, the images and the server they come from, and VMs that several cases use.

use std::fs::{self, File};
use std::future::Future;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::time::Duration;

use fleetbox::budget::QUEUE_VARIABLE;
use fleetbox::images::CATALOGUE_VARIABLE;
use fleetbox::{Fleet, Output, Size, Vm, VmBuilder, VmState};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use xtask::serve::Server;

use crate::cases::debian;
use crate::host;
use crate::report::{Must, uses};

/// How long the tiny image may take to answer by SSH; it takes a minute in a busy emulated host.
const TINY_BOOT: Duration = Duration::from_secs(240);
/// The same for Debian's.
const DEBIAN_BOOT: Duration = Duration::from_secs(1200);
/// How long one command in a guest may take.
const COMMAND: Duration = Duration::from_secs(240);

/// A VM that several cases use; it is started by the first of them.
type Slot = Mutex<Shared>;

#[derive(Debug, Default)]
enum Shared {
    #[default]
    Absent,
    Running(Arc<Vm>),
    /// It did not start; the case that tried has said why.
    Failed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Suite {
    dir: TempDir,
    images: PathBuf,
    keep: bool,
    runtime: Runtime,
    server: Server,
    catalogue: Mutex<Vec<(String, String, String)>>,
    shared: Slot,
    debian: Slot,
    kept: Mutex<Option<Vm>>,
    sums: [OnceLock<String>; 3],
}

impl Suite {
    /// Makes the state directory and starts the server. Called while this process has one thread.
    pub(crate) fn new(images: &Path, keep: bool) -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("fleetbox-e2e-")
            .tempdir()
            .map_err(|e| format!("cannot create a directory: {e}"))?;
        for (name, path) in [
            ("FLEETBOX_HOME", dir.path().join("home")),
            // What else runs on this host is none of the cases' business.
            (QUEUE_VARIABLE, dir.path().join("memory")),
            (CATALOGUE_VARIABLE, catalogue_in(dir.path())),
        ] {
            // SAFETY: no other thread runs yet that could read the environment.
            unsafe { std::env::set_var(name, path) };
        }
        let www = dir.path().join("www");
        fs::create_dir(&www).map_err(|e| format!("cannot create a directory: {e}"))?;
        let server = Server::start(&www, 0).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start threads: {e}"))?;
        let suite = Self {
            dir,
            images: images.to_owned(),
            keep,
            runtime,
            server,
            catalogue: Mutex::default(),
            shared: Slot::default(),
            debian: Slot::default(),
            kept: Mutex::default(),
            sums: Default::default(),
        };
        suite.write_catalogue(&[]);
        Ok(suite)
    }

    /// A directory for files of cases.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The state directory.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The directory of a VM.
    pub(crate) fn vm_dir(&self, name: &str) -> PathBuf {
        self.home().join("clusters").join(name).join(name)
    }

    /// The server that images come from.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// A file of the server.
    pub(crate) fn served(&self, file: &str) -> PathBuf {
        self.dir.path().join("www").join(file)
    }

    /// Adds an image to the catalogue: `file` of the server under `alias`.
    pub(crate) fn add_to_catalogue(&self, alias: &str, file: &str, sha256: &str) {
        let mut catalogue = self
            .catalogue
            .lock()
            .expect("no case panics while it holds this");
        catalogue.retain(|(known, ..)| known != alias);
        catalogue.push((alias.to_owned(), self.server.url(file), sha256.to_owned()));
        self.write_catalogue(&catalogue);
    }

    fn write_catalogue(&self, entries: &[(String, String, String)]) {
        let images: serde_json::Map<_, _> = entries
            .iter()
            .map(|(alias, url, sha256)| {
                (
                    alias.clone(),
                    json!({"amd64": {"url": url, "sha256": sha256}}),
                )
            })
            .collect();
        let path = catalogue_in(self.dir.path());
        let new = path.with_extension("new");
        fs::write(&new, json!({"format": 1, "images": images}).to_string())
            .must("cannot write the catalogue");
        fs::rename(&new, &path).must("cannot write the catalogue");
    }

    /// An image file as it was built.
    pub(crate) fn image_file(&self, file: &str) -> PathBuf {
        let path = self.images.join(file);
        assert!(
            path.is_file(),
            "there is no {}: build it with `cargo xtask image`",
            path.display()
        );
        path
    }

    /// The alias of an image that the server has and the catalogue knows.
    fn served_image(&self, slot: usize, alias: &str, file: &str) -> String {
        self.sums[slot].get_or_init(|| {
            let path = self.image_file(file);
            let sum = match fs::read_to_string(self.images.join(format!("{file}.sha256"))) {
                Ok(text) => text
                    .split_ascii_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                Err(_) => sha256_of(&path),
            };
            symlink(
                fs::canonicalize(&path).must("cannot find an image"),
                self.served(file),
            )
            .must("cannot serve an image");
            self.add_to_catalogue(alias, file, &sum);
            sum
        });
        alias.to_owned()
    }

    /// The tiny image, from the server.
    pub(crate) fn tiny(&self) -> String {
        self.served_image(0, "tiny", "tiny.raw")
    }

    /// The tiny image as qcow2, from the server.
    pub(crate) fn tiny_qcow2(&self) -> String {
        self.served_image(1, "tiny-qcow2", "tiny.qcow2")
    }

    /// Debian's image, from the server.
    pub(crate) fn debian_image(&self) -> String {
        self.served_image(2, "debian-12", "debian-12.raw")
    }

    /// Runs asynchronous work on this thread.
    pub(crate) fn block<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Runs asynchronous work on another thread.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// Keeps a named VM running for the next case that starts it.
    pub(crate) fn keep(&self, vm: Vm) {
        *self
            .kept
            .lock()
            .expect("no case panics while it holds this") = Some(vm);
    }

    /// Lets go of the VM that was kept running.
    pub(crate) fn unkeep(&self) {
        *self
            .kept
            .lock()
            .expect("no case panics while it holds this") = None;
    }

    /// A small VM of the tiny image.
    pub(crate) fn small(&self, builder: VmBuilder) -> VmBuilder {
        builder
            .image(self.tiny())
            .cpus(1)
            .memory(Size::mib(256))
            .disk(Size::gib(2))
            .boot_timeout(TINY_BOOT)
    }

    /// Starts a named VM of the tiny image, or finds it.
    pub(crate) fn start(&self, name: &str) -> Vm {
        uses(name);
        self.block(self.small(Vm::builder(name)).start())
            .must("cannot start the VM")
    }

    /// A running VM of the tiny image that cases share. They leave it as it was.
    pub(crate) fn shared(&self) -> Arc<Vm> {
        self.in_slot(&self.shared, || self.block(self.small(Vm::test()).start()))
    }

    /// Takes the shared VM from the cases that follow.
    pub(crate) fn take_shared(&self) -> Arc<Vm> {
        let vm = self.shared();
        *self
            .shared
            .try_lock()
            .expect("cases of a lane run one after another") = Shared::Absent;
        vm
    }

    /// A running VM of Debian's image that cases share.
    pub(crate) fn debian(&self) -> Arc<Vm> {
        let image = self.debian_image();
        uses("debian");
        self.in_slot(&self.debian, || {
            let builder = debian::describe(self, Vm::builder("debian"))
                .image(image)
                .cpus(1)
                .memory(Size::gib(1))
                .disk(Size::gib(8));
            self.block(builder.boot_timeout(DEBIAN_BOOT).start())
        })
    }

    /// Takes Debian's VM from the cases that follow; its disk stays.
    pub(crate) fn take_debian(&self) -> Arc<Vm> {
        let vm = self.debian();
        *self
            .debian
            .try_lock()
            .expect("cases of a lane run one after another") = Shared::Absent;
        vm
    }

    /// Whether a VM runs.
    fn runs(&self, name: &str) -> bool {
        let vms = self.block(Fleet::new().list()).must("cannot list the VMs");
        vms.iter()
            .any(|vm| vm.name == name && vm.state == VmState::Running)
    }

    fn in_slot(&self, slot: &Slot, start: impl FnOnce() -> fleetbox::Result<Vm>) -> Arc<Vm> {
        let mut slot = match slot.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(slot)) => slot.into_inner(),
            Err(TryLockError::WouldBlock) => {
                panic!("an earlier case still tries to start the shared VM")
            }
        };
        let vm = match &*slot {
            Shared::Running(vm) if self.runs(vm.name()) => Arc::clone(vm),
            Shared::Failed => panic!("the shared VM did not start in an earlier case"),
            // One that failed has made the case fail that used it; the next ones get another.
            Shared::Absent | Shared::Running(_) => {
                *slot = Shared::Failed;
                let vm = Arc::new(start().must("cannot start the shared VM"));
                *slot = Shared::Running(Arc::clone(&vm));
                vm
            }
        };
        uses(vm.name());
        vm
    }

    /// Runs a command in a guest, whatever its status.
    #[track_caller]
    pub(crate) fn output(&self, vm: &Vm, command: &str) -> Output {
        let output = self.block(async { tokio::time::timeout(COMMAND, vm.ssh(command)).await });
        match output {
            Ok(output) => output.must(&format!("`{command}` in {}", vm.name())),
            Err(_) => panic!(
                "`{command}` in {} did not end within {} s",
                vm.name(),
                COMMAND.as_secs()
            ),
        }
    }

    /// Runs a command in a guest that has to succeed, and returns what it wrote.
    #[track_caller]
    pub(crate) fn sh(&self, vm: &Vm, command: &str) -> String {
        let output = self.output(vm, command);
        assert!(
            output.success(),
            "`{command}` in {} ended with {:?}; it wrote {:?} and {:?}",
            vm.name(),
            output.status,
            output.stdout_text(),
            output.stderr_text()
        );
        output.stdout_text().trim().to_owned()
    }

    /// Restarts a guest by its own `reboot`, and returns when it answers again.
    pub(crate) fn reboot(&self, vm: &Vm, deadline: Duration) {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.sh(vm, BOOT_ID);
        self.block(async {
            // The connection may end before the answer comes.
            let _ = tokio::time::timeout(Duration::from_secs(20), vm.ssh("sudo reboot")).await;
        });
        let why = host::within(deadline, || {
            let asked = self.block(async {
                vm.wait_ready(deadline).await?;
                Ok::<_, fleetbox::Error>(
                    tokio::time::timeout(Duration::from_secs(30), vm.ssh(BOOT_ID)).await,
                )
            });
            match asked {
                Ok(Ok(Ok(now))) if now.success() && now.stdout_text().trim() != before => Ok(()),
                Ok(Ok(Ok(_))) => Err("it has not gone down yet".to_owned()),
                Ok(Ok(Err(error))) => Err(error.to_string()),
                Ok(Err(_)) => Err("its answer takes too long".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
        why.must(&format!("{} did not come back from its reboot", vm.name()));
    }

    /// The `fleetbox` command.
    pub(crate) fn fleetbox(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(host::program("fleetbox"));
        command.args(arguments);
        command
    }

    /// Ends the VMs that cases have left, and the server.
    pub(crate) fn end(&self) {
        self.unkeep();
        for slot in [&self.shared, &self.debian] {
            if let Ok(mut slot) = slot.try_lock() {
                *slot = Shared::Absent;
            }
        }
        if self.keep {
            println!("the state directory is {}", self.home().display());
            return;
        }
        let vms = self
            .block(Fleet::at(self.home()).list())
            .unwrap_or_default();
        for vm in vms {
            if let Err(error) = self.block(Fleet::at(self.home()).remove(&vm.name)) {
                eprintln!("fleetbox-e2e: {error}");
            }
        }
        // This value may be shared with the thread of a case that was given up, so that no drop removes it.
        if let Err(error) = fs::remove_dir_all(self.dir.path()) {
            eprintln!(
                "fleetbox-e2e: cannot remove {}: {error}",
                self.dir.path().display()
            );
        }
    }
}

fn catalogue_in(dir: &Path) -> PathBuf {
    dir.join("catalogue.json")
}

/// The SHA-256 sum of a file.
pub(crate) fn sha256_of(path: &Path) -> String {
    let mut file = File::open(path).must("cannot open a file");
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).must("cannot read a file") {
            0 => return hex(context.finish().as_ref()),
            n => context.update(&buffer[..n]),
        }
    }
}

/// The SHA-256 sum of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
