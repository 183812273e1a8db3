//! Copying, reading and writing files of a VM.

use std::path::Path;

use crate::error::Result;
use crate::files::sftp::Sftp;
use crate::files::walk::Tree;
use crate::files::{CopySummary, FileOptions, download, guest_path, upload};
use crate::util::task::blocking;
use crate::vm::Vm;

impl Vm {
    /// Copies a file, or a directory with everything in it, into the guest. `guest` is the path of
    /// the copy, or ends in `/` to copy into that directory. See [`crate::files`] for what a copy
    /// keeps.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let copied = vm.copy_to("tests/data", "/tmp/data").await?;
    /// println!("{} files, {} bytes", copied.files, copied.bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Files`](crate::Error::Files) says which file failed, on which side, and why. Files
    /// that were already copied stay. [`Error::Ssh`](crate::Error::Ssh) or
    /// [`Error::Process`](crate::Error::Process) if the guest cannot be reached.
    pub async fn copy_to(&self, host: impl AsRef<Path>, guest: &str) -> Result<CopySummary> {
        self.copy_to_with(host, guest, &FileOptions::new()).await
    }

    /// Like [`Vm::copy_to`], with options.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// vm.copy_to_with("hosts", "/etc/hosts", &FileOptions::new().as_root()).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`crate::Vm::copy_to`].
    pub async fn copy_to_with(
        &self,
        host: impl AsRef<Path>,
        guest: &str,
        options: &FileOptions,
    ) -> Result<CopySummary> {
        let guest = guest_path(guest)?;
        let host = host.as_ref().to_owned();
        let root = host.clone();
        let tree = blocking(move || Tree::of(&root)).await?;
        let sftp = self.sftp(options).await?;
        Ok(upload::copy(&sftp, &host, &guest, tree, options).await?)
    }

    /// Copies a file, or a directory with everything in it, from the guest to this host. `host` is
    /// the path of the copy, or ends in `/` to copy into that directory. See [`crate::files`] for
    /// what a copy keeps.
    ///
    /// The guest is not trusted. Nothing is written outside `host`, no link that the guest sends is
    /// followed, and the copy stops at [`COPY_LIMIT`](crate::files::COPY_LIMIT) bytes (see
    /// [`FileOptions::limit`]) and at [`ENTRY_LIMIT`](crate::files::ENTRY_LIMIT) files. A file appears
    /// under its name only when it is complete.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.copy_from("/var/log", "guest-logs").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::copy_to`].
    pub async fn copy_from(&self, guest: &str, host: impl AsRef<Path>) -> Result<CopySummary> {
        self.copy_from_with(guest, host, &FileOptions::new()).await
    }

    /// Like [`Vm::copy_from`], with options.
    ///
    /// # Errors
    /// See [`crate::Vm::copy_from`].
    pub async fn copy_from_with(
        &self,
        guest: &str,
        host: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<CopySummary> {
        let guest = guest_path(guest)?;
        let sftp = self.sftp(options).await?;
        Ok(download::copy(&sftp, &guest, host.as_ref(), options).await?)
    }

    /// Writes a file in the guest, replacing its content if it exists.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.write("config.toml", "port = 80\n").await?; // in the user's home
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::copy_to`].
    pub async fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.write_with(path, bytes, &FileOptions::new()).await
    }

    /// Like [`Vm::write`], with options: as root, or with a mode.
    ///
    /// # Errors
    /// Those of [`Vm::copy_to`].
    pub async fn write_with(
        &self,
        path: &str,
        bytes: impl AsRef<[u8]>,
        options: &FileOptions,
    ) -> Result<()> {
        let path = guest_path(path)?;
        let bytes = bytes.as_ref();
        let sftp = self.sftp(options).await?;
        Ok(upload::write(&sftp, &path, bytes, options).await?)
    }

    /// Reads a file of the guest, of at most [`READ_LIMIT`](crate::files::READ_LIMIT) bytes.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let os = vm.read("/etc/os-release").await?;
    /// assert!(os.starts_with(b"PRETTY_NAME"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::copy_to`]. A larger file is an error.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.read_with(path, &FileOptions::new()).await
    }

    /// Like [`Vm::read`], with options: as root, or with another limit.
    ///
    /// # Errors
    /// Those of [`Vm::read`].
    pub async fn read_with(&self, path: &str, options: &FileOptions) -> Result<Vec<u8>> {
        let path = guest_path(path)?;
        let sftp = self.sftp(options).await?;
        Ok(download::read(&sftp, &path, options).await?)
    }

    async fn sftp(&self, options: &FileOptions) -> Result<Sftp> {
        let stream = self.session().await?.sftp(options.as_root).await?;
        Ok(Sftp::start(stream).await?)
    }
}
