//! A host for each test: directories, VMs that never ran, and the command.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fleetbox::Size;
use fleetbox::names::Name;
use fleetbox::store::{ImageRecord, Lock, MacAddr, Store, VmRecord, now};

/// A state directory, a home directory and the command.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// The path of an image, which no machine could boot.
    pub(crate) fn image(&self) -> String {
        let image = self.dir.path().join("disk.raw");
        fs::write(&image, vec![0; 1 << 20]).expect("an image");
        image.into_os_string().into_string().expect("UTF-8")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.state()).expect("a state directory")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_fleetbox")), args)
    }

    /// Like [`command`](Self::command), with a copy of the program.
    pub(crate) fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("FLEETBOX_HOME", self.state())
            .env("HOME", self.dir.path())
            .env_remove("FLEETBOX_CATALOGUE")
            .stdin(std::process::Stdio::null());
        command
    }

    /// What the command prints on a terminal with so many columns.
    pub(crate) fn on_terminal(&self, columns: u16, args: &[&str]) -> String {
        let size = nix::pty::Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = nix::pty::openpty(&size, None).expect("a terminal");
        let mut command = self.command(args);
        command.stderr(std::process::Stdio::null());
        let mut child = command.stdout(pair.slave).spawn().expect("it starts");
        // Else this process has the other end of the terminal, too, and there is no end to read.
        drop(command);
        let mut text = Vec::new();
        // Reading a terminal ends with an error.
        let _ = std::io::Read::read_to_end(&mut fs::File::from(pair.master), &mut text);
        child.wait().expect("its end");
        String::from_utf8(text).expect("text").replace("\r\n", "\n")
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the command starts")
    }

    /// Runs the command, which must exit with `status`, and returns its standard output.
    #[track_caller]
    pub(crate) fn ends(&self, status: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A VM that never ran.
    pub(crate) fn vm(&self, cluster: &str, name: &str, image: &Path) {
        let name: Name = name.parse().expect("a name");
        let cluster: Name = cluster.parse().expect("a name");
        let draft = self.store().create_vm(&cluster, &name).expect("a draft");
        let record = VmRecord {
            name: name.clone(),
            cluster,
            image: ImageRecord {
                reference: "tiny".to_owned(),
                path: image.to_owned(),
                sha256: None,
            },
            cpus: 2,
            memory: Size::gib(2),
            disk: Size::gib(20),
            mac: MacAddr::random(),
            ip: Ipv4Addr::new(10, 187, 41, 2),
            created: now(),
            instance_id: "x".to_owned(),
            ssh_user: "fleetbox".to_owned(),
            ssh_key: "ssh-ed25519 AAAA".to_owned(),
            host_key: format!("ssh-ed25519 AAAA{name}"),
            fixtures: Vec::new(),
            config: fleetbox::seed::GuestConfig::default(),
            extra_disks: Vec::new(),
            network: fleetbox::Network::User,
        };
        let (vm, lock) = draft.commit(&record).expect("a VM");
        drop(lock);
        // A process that another test has just forked may still hold it until it executes.
        drop(Lock::acquire(&vm.paths().lock()).expect("a lock"));
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let vms = self.store().vms().expect("VMs");
        vms.iter().map(|vm| vm.name().to_string()).collect()
    }

    /// `CLUSTER/NAME` of all VMs.
    pub(crate) fn full_names(&self) -> Vec<String> {
        let vms = self.store().vms().expect("VMs");
        vms.iter()
            .map(|vm| format!("{}/{}", vm.cluster(), vm.name()))
            .collect()
    }
}
