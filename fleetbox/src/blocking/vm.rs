//! VMs.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Child, Events, VmBuilder, run};
use crate::error::{Error, Result};
use crate::files::{Copied, FileOptions};
use crate::model::names::Reference;
use crate::model::ready::Ready;
use crate::model::timing::Timings;
use crate::progress::Progress;
use crate::ssh::Output;
use crate::ssh::PtyRequest;
use crate::vm::remote::Published;
use crate::vm::stop::Stopped;

/// As [`crate::Vm`], with methods that block.
///
/// ```no_run
/// use fleetbox::blocking::Vm;
///
/// let vm = Vm::builder("web").start()?;
/// vm.write("greeting", "hello")?;
/// assert_eq!(vm.ssh("cat greeting")?.stdout_text(), "hello");
/// let address = vm.forward(80)?;
/// vm.restart()?;
/// vm.stop()?;
/// vm.destroy()?;
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Vm(pub(super) Arc<crate::vm::Vm>);

impl From<crate::vm::Vm> for Vm {
    fn from(vm: crate::vm::Vm) -> Self {
        Self(Arc::new(vm))
    }
}

impl Vm {
    /// As [`crate::Vm::builder`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::builder("web").start()?;
    /// vm.stop()?; // its disk stays, for the next `Vm::builder("web")`
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder(crate::vm::Vm::builder(name))
    }

    /// As [`crate::Vm::test`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().start()?;
    /// drop(vm); // it is gone, with its disk
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn test() -> VmBuilder {
        VmBuilder(crate::vm::Vm::test())
    }

    /// As [`crate::Vm::open`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// println!("{}", Vm::open("web")?.ssh("uptime")?.stdout_text());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_in(None, name)
    }

    /// As [`crate::Vm::open_in`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::open_in(Some("/srv/vms".as_ref()), "web")?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn open_in(home: Option<&Path>, name: &str) -> Result<Self> {
        let (home, name) = (home.map(Path::to_owned), name.to_owned());
        let vm = run(async move { crate::vm::Vm::open_in(home.as_deref(), &name).await })?;
        Ok(Self(Arc::new(vm)))
    }

    /// The same VM for asynchronous code, such as that of [`block_on`](super::block_on).
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::{blocking::block_on, guest};
    ///
    /// let inner = vm.as_async();
    /// for listener in block_on(async move { guest::ports(&inner).await })? {
    ///     println!("{listener:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn as_async(&self) -> Arc<crate::vm::Vm> {
        Arc::clone(&self.0)
    }

    /// As [`crate::Vm::reference`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("fleetbox ssh {}", vm.reference()); // CLUSTER/NAME where it has to be
    /// # Ok(()) }
    /// ```
    pub fn reference(&self) -> Reference {
        self.0.reference()
    }

    /// As [`crate::Vm::name`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert_eq!(vm.ssh("hostname")?.stdout_text().trim(), vm.name());
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// As [`crate::Vm::cluster`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("{} of {}", vm.name(), vm.cluster());
    /// # Ok(()) }
    /// ```
    pub fn cluster(&self) -> &str {
        self.0.cluster()
    }

    /// As [`crate::Vm::ip`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// let address = cluster.vm("node-2")?.ip();
    /// assert!(cluster.vm("node-1")?.ssh(&format!("ping -c 1 {address}"))?.success());
    /// # Ok(()) }
    /// ```
    pub fn ip(&self) -> Ipv4Addr {
        self.0.ip()
    }

    /// As [`crate::Vm::with_progress`].
    ///
    /// ```no_run
    /// use fleetbox::{blocking::Vm, progress};
    ///
    /// let vm = Vm::open("web")?.with_progress(progress::stderr());
    /// vm.restart()?; // says so if it has to wait for memory
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    #[must_use]
    pub fn with_progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(Arc::new(self.0.another().with_progress(progress)))
    }

    /// As [`crate::Vm::image`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("{} was made from {}", vm.name(), vm.image());
    /// # Ok(()) }
    /// ```
    pub fn image(&self) -> &str {
        self.0.image()
    }

    /// As [`crate::Vm::was_running`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// if Vm::builder("web").start()?.was_running() {
    ///     println!("found it running");
    /// }
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn was_running(&self) -> bool {
        self.0.was_running()
    }

    /// As [`crate::Vm::ignored_options`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::builder("web").cpus(4).start()?;
    /// assert!(vm.ignored_options().is_empty(), "it exists, with another number of CPUs");
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn ignored_options(&self) -> &[&'static str] {
        self.0.ignored_options()
    }

    /// As [`crate::Vm::timings`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("booted in {:?}", vm.timings().get(fleetbox::Phase::Boot));
    /// # Ok(()) }
    /// ```
    pub fn timings(&self) -> &Timings {
        self.0.timings()
    }

    /// As [`crate::Vm::ssh`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh("systemctl is-active cron")?;
    /// assert_eq!(out.stdout_text().trim(), "active", "{}", out.stderr_text());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh(&self, command: &str) -> Result<Output> {
        let (vm, command) = (Arc::clone(&self.0), command.to_owned());
        run(async move { vm.ssh(&command).await })
    }

    /// As [`crate::Vm::ssh_spawn`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use std::io::BufRead;
    ///
    /// let mut child = vm.ssh_spawn("sudo tcpdump -c 5 -n -l")?;
    /// if let Some(stdout) = child.stdout.take() {
    ///     for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
    ///         println!("{line}"); // as it comes
    ///     }
    /// }
    /// assert!(child.wait()?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh_spawn(&self, command: &str) -> Result<Child> {
        let (vm, command) = (Arc::clone(&self.0), command.to_owned());
        run(async move { vm.ssh_spawn(&command).await }).map(Child::new)
    }

    /// As [`crate::Vm::ssh_pty`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::ssh::PtyRequest;
    ///
    /// let pty = PtyRequest { term: "xterm".to_owned(), columns: 80, rows: 24 };
    /// let out = vm.ssh_pty(&pty, Some("tty"))?.output(1 << 10)?;
    /// assert!(out.stdout_text().starts_with("/dev/pts/"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh_pty(&self, pty: &PtyRequest, command: Option<&str>) -> Result<Child> {
        let (vm, pty) = (Arc::clone(&self.0), pty.clone());
        let command = command.map(str::to_owned);
        run(async move { vm.ssh_pty(&pty, command.as_deref()).await }).map(Child::new)
    }

    /// As [`crate::Vm::ssh_with_input`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh_with_input("psql shop", b"select count(*) from orders;")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh_with_input(&self, command: &str, stdin: &[u8]) -> Result<Output> {
        let (vm, command, stdin) = (Arc::clone(&self.0), command.to_owned(), stdin.to_vec());
        run(async move { vm.ssh_with_input(&command, &stdin).await })
    }

    /// As [`crate::Vm::connect`], as a stream for blocking reads and writes.
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use std::io::{Read, Write};
    ///
    /// let mut stream = vm.connect(80)?;
    /// # let mut talk = || -> std::io::Result<()> {
    /// stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    /// let mut answer = String::new();
    /// stream.read_to_string(&mut answer)?;
    /// # Ok(()) };
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, port: u16) -> Result<UnixStream> {
        let vm = Arc::clone(&self.0);
        run(async move {
            let stream = vm.connect(port).await?.into_std();
            stream.map_err(Error::io("make a stream a blocking one"))
        })
    }

    /// As [`crate::Vm::publish`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert_eq!(vm.publish(8080, 80)?.to_string(), "127.0.0.1:8080");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn publish(&self, host_port: u16, guest_port: u16) -> Result<SocketAddr> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.publish(host_port, guest_port).await })
    }

    /// As [`crate::Vm::published`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.publish(8080, 80)?;
    /// assert_eq!(vm.published()?.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn published(&self) -> Result<Vec<Published>> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.published().await })
    }

    /// As [`crate::Vm::forward`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let url = format!("http://{}/", vm.forward(80)?); // some port of 127.0.0.1
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, guest_port: u16) -> Result<SocketAddr> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.forward(guest_port).await })
    }

    /// As [`crate::Vm::wait_ready`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl reboot --no-block")?;
    /// vm.wait_ready(std::time::Duration::from_secs(120))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait_ready(timeout).await })
    }

    /// As [`crate::Vm::copy_to`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.copy_to("target/debug/server", "/tmp/")?;
    /// assert!(vm.ssh("/tmp/server --version")?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_to(&self, host: impl AsRef<Path>, guest: &str) -> Result<Copied> {
        self.copy_to_with(host, guest, &FileOptions::new())
    }

    /// As [`crate::Vm::copy_to_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// vm.copy_to_with("etc", "/etc/app", &FileOptions::new().as_root())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_to_with(
        &self,
        host: impl AsRef<Path>,
        guest: &str,
        options: &FileOptions,
    ) -> Result<Copied> {
        let (vm, host) = (Arc::clone(&self.0), host.as_ref().to_owned());
        let (guest, options) = (guest.to_owned(), options.clone());
        run(async move { vm.copy_to_with(host, &guest, &options).await })
    }

    /// As [`crate::Vm::copy_from`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let copied = vm.copy_from("coverage", "target/coverage")?;
    /// println!("{} files", copied.files);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_from(&self, guest: &str, host: impl AsRef<Path>) -> Result<Copied> {
        self.copy_from_with(guest, host, &FileOptions::new())
    }

    /// As [`crate::Vm::copy_from_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// vm.copy_from_with("/var/log", "logs", &FileOptions::new().as_root().limit(100 << 20))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_from_with(
        &self,
        guest: &str,
        host: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<Copied> {
        let (vm, host) = (Arc::clone(&self.0), host.as_ref().to_owned());
        let (guest, options) = (guest.to_owned(), options.clone());
        run(async move { vm.copy_from_with(&guest, host, &options).await })
    }

    /// As [`crate::Vm::write`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.write("app.toml", "port = 80\n")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.write_with(path, bytes, &FileOptions::new())
    }

    /// As [`crate::Vm::write_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// let script = FileOptions::new().as_root().mode(0o755);
    /// vm.write_with("/usr/local/bin/hello", "#!/bin/sh\necho hello\n", &script)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn write_with(
        &self,
        path: &str,
        bytes: impl AsRef<[u8]>,
        options: &FileOptions,
    ) -> Result<()> {
        let (vm, path) = (Arc::clone(&self.0), path.to_owned());
        let (bytes, options) = (bytes.as_ref().to_vec(), options.clone());
        run(async move { vm.write_with(&path, bytes, &options).await })
    }

    /// As [`crate::Vm::read`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert!(vm.read("/etc/os-release")?.starts_with(b"PRETTY_NAME"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.read_with(path, &FileOptions::new())
    }

    /// As [`crate::Vm::read_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// let secret = vm.read_with("/etc/shadow", &FileOptions::new().as_root())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn read_with(&self, path: &str, options: &FileOptions) -> Result<Vec<u8>> {
        let (vm, path, options) = (Arc::clone(&self.0), path.to_owned(), options.clone());
        run(async move { vm.read_with(&path, &options).await })
    }

    /// As [`crate::Vm::console`], as a stream for blocking reads and writes.
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use std::io::BufRead;
    ///
    /// for line in std::io::BufReader::new(vm.console()?).lines().map_while(Result::ok) {
    ///     println!("{line}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn console(&self) -> Result<UnixStream> {
        let vm = Arc::clone(&self.0);
        run(async move {
            let stream = vm.console().await?.into_std();
            stream.map_err(Error::io("make a stream a blocking one"))
        })
    }

    /// As [`crate::Vm::events`], as an iterator that waits for each.
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::Event;
    ///
    /// for event in vm.events()? {
    ///     if let Event::Panic { message } = event?.event {
    ///         println!("the guest's kernel panicked: {message}");
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn events(&self) -> Result<Events> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.events().await }).map(|events| Events(Some(events)))
    }

    /// As [`crate::Vm::wait_for`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::Ready;
    /// use std::time::Duration;
    ///
    /// vm.ssh("sudo systemctl start nginx")?;
    /// vm.wait_for(Ready::Port(80), Duration::from_secs(10))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn wait_for(&self, ready: Ready, timeout: Duration) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait_for(ready, timeout).await })
    }

    /// As [`crate::Vm::console_tail`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("the console says: {:?}", vm.console_tail()?.lines().last());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn console_tail(&self) -> Result<String> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.console_tail().await })
    }

    /// As [`crate::Vm::stop`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert_eq!(vm.stop()?, fleetbox::Stopped::PoweredOff);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self) -> Result<Stopped> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.stop().await })
    }

    /// As [`crate::Vm::stop_within`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.stop_within(std::time::Duration::from_secs(10))?; // it is killed then
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn stop_within(&self, deadline: Duration) -> Result<Stopped> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.stop_within(deadline).await })
    }

    /// As [`crate::Vm::kill`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("echo precious > data && sync")?;
    /// vm.kill()?; // as if the power had failed
    /// vm.start()?;
    /// assert_eq!(vm.read("data")?, b"precious\n");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn kill(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.kill().await })
    }

    /// As [`crate::Vm::start`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.stop()?;
    /// vm.start()?; // the same disk, the same address
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn start(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.start().await })
    }

    /// As [`crate::Vm::restart`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl enable app")?;
    /// vm.restart()?;
    /// assert!(vm.ssh("systemctl is-active app")?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn restart(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.restart().await })
    }

    /// As [`crate::Vm::wait`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl poweroff --no-block")?;
    /// vm.wait()?; // an error if it ends in another way
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait().await })
    }

    /// As [`crate::Vm::destroy`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// Vm::open("web")?.destroy()?; // whoever started it
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn destroy(self) -> Result<()> {
        run(async move { self.0.remove().await })
    }
}
