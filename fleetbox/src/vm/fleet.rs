//! A handle on the VMs of a state directory.

use std::path::PathBuf;

use crate::store::{Store, StoreError};
use crate::util::task::blocking;

/// The VMs of a state directory. Its methods find, list, stop and remove them by name.
///
/// [`Vm::builder`](crate::Vm::builder) describes a new VM. [`Vm::open`](crate::Vm::open) is short
/// for [`Fleet::open`] in the default directory.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Fleet, STOP_DEADLINE};
///
/// let fleet = Fleet::new();
/// for vm in fleet.list().await? {
///     println!("{} is {}", vm.name, vm.state);
/// }
/// fleet.stop("web", STOP_DEADLINE).await?;
/// fleet.remove("web").await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    home: Option<PathBuf>,
}

impl Fleet {
    /// The VMs of the default state directory: `$FLEETBOX_HOME`, or `~/.fleetbox` if that is not
    /// set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The VMs of the state directory `home`.
    ///
    /// ```
    /// let fleet = fleetbox::Fleet::at("/srv/vms");
    /// assert_eq!(fleet.home()?, std::path::Path::new("/srv/vms"));
    /// # Ok::<(), fleetbox::store::StoreError>(())
    /// ```
    pub fn at(home: impl Into<PathBuf>) -> Self {
        Self {
            home: Some(home.into()),
        }
    }

    /// The state directory, which may not exist yet.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] if no directory was given, `$FLEETBOX_HOME` is not set and there is
    /// no home directory.
    pub fn home(&self) -> Result<PathBuf, StoreError> {
        match &self.home {
            Some(home) => Ok(home.clone()),
            None => Store::default_home(),
        }
    }

    /// Opens the state directory.
    pub(crate) async fn store(&self) -> Result<Store, StoreError> {
        let home = self.home()?;
        blocking(move || Store::open(home)).await
    }
}
