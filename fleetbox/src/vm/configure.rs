//! The builder's options for what a guest is configured with, and what it is waited for.

use std::time::Duration;

use crate::disk::extra_disk::ExtraDisk;
use crate::model::ready::Awaited;
use crate::model::ready::Ready;
use crate::vm::builder::VmBuilder;

impl VmBuilder {
    /// A cloud-config document for the guest's first boot, repeatable: YAML as cloud-init reads
    /// it. It is merged into fleetbox's own: lists are appended, mappings merged, other values
    /// replaced. `hostname`, `fqdn`, `manage_etc_hosts`, `ssh_keys` and `ssh_deletekeys` are
    /// fleetbox's.
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
    /// [`VmBuilder::start`] refuses what is no such document, with
    /// [`SeedError::UserData`](crate::seed::SeedError::UserData).
    pub fn user_data(mut self, document: impl Into<String>) -> Self {
        self.extras.user_data.push(document.into());
        self
    }

    /// A package that cloud-init installs at the first boot, repeatable. [`Ready::CloudInit`]
    /// waits for it.
    pub fn package(mut self, name: impl Into<String>) -> Self {
        self.extras.config.packages.push(name.into());
        self
    }

    /// A shell command that root runs at the end of the first boot, repeatable, in the order
    /// given. [`Ready::CloudInit`] waits for it.
    pub fn run_command(mut self, command: impl Into<String>) -> Self {
        self.extras.config.commands.push(command.into());
        self
    }

    /// An environment variable of everybody who logs in to the guest, [`Vm::ssh`](crate::Vm::ssh)
    /// included, from the first boot on. It is in `/etc/environment`, so the value has no quotation
    /// mark, `#` or line's end.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.extras
            .config
            .environment
            .insert(name.into(), value.into());
        self
    }

    /// A public key, in OpenSSH's one-line form, that may log in besides fleetbox's own,
    /// repeatable.
    pub fn ssh_key(mut self, key: impl Into<String>) -> Self {
        let key: String = key.into();
        let key = key.trim().to_owned();
        self.extras.config.authorized_keys.push(key);
        self
    }

    /// A disk besides the VM's own, repeatable up to [`MAX_EXTRA_DISKS`](crate::MAX_EXTRA_DISKS). A guest with udev has
    /// them as `/dev/disk/by-id/virtio-extra-1` and so on; without, they follow the other disks.
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

    /// What [`VmBuilder::start`] waits for, repeatable, one after the other, each until the boot
    /// timeout at most. Without, it is [`Ready::Ssh`]; what is given takes its place, so that a
    /// guest without SSH can be waited for by [`Ready::Port`] or [`Ready::Console`].
    ///
    /// ```
    /// use fleetbox::{Ready, Vm};
    ///
    /// let vm = Vm::test().package("nginx").wait_for(Ready::CloudInit).wait_for(Ready::Port(80));
    /// ```
    pub fn wait_for(mut self, ready: Ready) -> Self {
        self.extras.awaited.push(Awaited {
            what: ready,
            within: None,
        });
        self
    }

    /// As [`VmBuilder::wait_for`], with a deadline of its own, which counts from the machine's
    /// start.
    pub fn wait_for_within(mut self, ready: Ready, deadline: Duration) -> Self {
        self.extras.awaited.push(Awaited {
            what: ready,
            within: Some(deadline),
        });
        self
    }
}
