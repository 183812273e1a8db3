//! The builder's options that configure the guest, and those that say when it is ready.

use std::time::Duration;

use crate::disk::extra_disk::ExtraDisk;
use crate::model::ready::Ready;
use crate::model::ready::WaitCondition;
use crate::vm::builder::VmBuilder;

impl VmBuilder {
    /// Adds a cloud-config document for the guest's first boot: YAML 1.1, as cloud-init reads it.
    /// May be called more than once. The document is merged into fleetbox's: lists are appended,
    /// mappings merged, other values replaced. fleetbox alone sets `hostname`, `fqdn`,
    /// `manage_etc_hosts`, `ssh_keys` and `ssh_deletekeys`.
    ///
    /// The VM's [user](VmBuilder::user) is cloud-init's default user: top-level
    /// `ssh_authorized_keys`, `ssh_import_id` and `password` reach it.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{Ready, Vm};
    ///
    /// let vm = Vm::test()
    ///     .user_data("write_files:\n- path: /etc/motd\n  content: hello\n")
    ///     .wait_for(Ready::CloudInit)
    ///     .start()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`VmBuilder::start`] refuses an invalid document with
    /// [`SeedError::UserData`](crate::seed::SeedError::UserData).
    pub fn user_data(mut self, document: impl Into<String>) -> Self {
        self.extras.user_data.push(document.into());
        self
    }

    /// Adds a package that cloud-init installs at the first boot. [`Ready::CloudInit`] waits for
    /// it. May be called more than once.
    pub fn package(mut self, name: impl Into<String>) -> Self {
        self.extras.config.packages.push(name.into());
        self
    }

    /// Adds a shell command that root runs at the end of the first boot. [`Ready::CloudInit`] waits
    /// for it. May be called more than once; the commands run in that order.
    pub fn run_command(mut self, command: impl Into<String>) -> Self {
        self.extras.config.commands.push(command.into());
        self
    }

    /// Sets an environment variable for all log-ins to the guest, [`Vm::ssh`](crate::Vm::ssh)
    /// included, from the first boot on. It is written to `/etc/environment`, so its value cannot
    /// contain quotation marks, `#` or control characters such as line breaks.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.extras
            .config
            .environment
            .insert(name.into(), value.into());
        self
    }

    /// Adds a public key that may log in, in OpenSSH's one-line form, besides fleetbox's key. May
    /// be called more than once.
    pub fn ssh_key(mut self, key: impl Into<String>) -> Self {
        let key: String = key.into();
        let key = key.trim().to_owned();
        self.extras.config.authorized_keys.push(key);
        self
    }

    /// Adds an extra disk; a VM can have up to [`MAX_EXTRA_DISKS`](crate::MAX_EXTRA_DISKS). In a guest with udev they are
    /// `/dev/disk/by-id/virtio-extra-1` and so on; without udev they come after the other disks.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{ExtraDisk, Size, Vm};
    ///
    /// let vm = Vm::test().extra_disk(ExtraDisk::empty(Size::gib(1))).start().await?;
    /// vm.ssh("sudo mkfs.ext4 -q /dev/disk/by-id/virtio-extra-1").await?;
    /// # Ok(()) }
    /// ```
    pub fn extra_disk(mut self, disk: ExtraDisk) -> Self {
        self.extras.disks.push(disk);
        self
    }

    /// Sets what [`VmBuilder::start`] waits for. May be called more than once: it waits for one
    /// condition after another, for each at most as long as the boot timeout. Your conditions
    /// replace the default, [`Ready::Ssh`], so [`Ready::Port`] and [`Ready::Console`] work for a
    /// guest without SSH.
    ///
    /// ```
    /// use fleetbox::{Ready, Vm};
    ///
    /// let vm = Vm::test().package("nginx").wait_for(Ready::CloudInit).wait_for(Ready::Port(80));
    /// ```
    pub fn wait_for(mut self, ready: Ready) -> Self {
        self.extras.conditions.push(WaitCondition {
            what: ready,
            within: None,
        });
        self
    }

    /// Like [`VmBuilder::wait_for`], with a separate deadline that counts from the start of the
    /// machine.
    pub fn wait_for_within(mut self, ready: Ready, deadline: Duration) -> Self {
        self.extras.conditions.push(WaitCondition {
            what: ready,
            within: Some(deadline),
        });
        self
    }
}
