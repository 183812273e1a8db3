//! Real Linux VMs as Rust test fixtures.
//!
//! ```no_run
//! # async fn example() -> fleetbox::Result<()> {
//! use fleetbox::{Size, Vm};
//!
//! let vm = Vm::test().image("debian-12").memory(Size::gib(1)).start().await?;
//! let out = vm.ssh("uname -a").await?;
//! assert!(out.status.success());
//! println!("{}", out.stdout_text());
//! # Ok(())
//! # } // dropped here: the VM is destroyed
//! ```
//!
//! A [`Cluster`] is a group of VMs that share a network.
//!
//! A VM made by [`Vm::test`] lives as long as its handle. A VM made by [`Vm::builder`] has a name,
//! and its disk stays. [`blocking`] offers the same for a plain `#[test]`.
//!
//! There is nothing to install: the processes that run a VM are your own program, started again. A
//! constructor in this crate runs before `main` and turns such a process into a worker or a
//! machine. For the same reason the crate does not work in a dynamic library that is loaded at run
//! time.
//!
//! # Features
//!
//! A feature that is off costs nothing: its dependencies are not compiled. The types are the same
//! with every choice of features. A function that needs a missing feature returns an error that
//! names the feature.
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `download` | yes | downloads of images over HTTP and HTTPS. Without it, an image must be a local file or already in the state directory; otherwise the error is [`ImageError::DownloadDisabled`](images::ImageError::DownloadDisabled) |
//! | `bridge` | no | [`Network::Bridge`], which joins a cluster to the host's network. Without it, the error is [`BridgeError::Disabled`] |

pub mod blocking;
mod disk;
mod error;
pub mod files;
pub mod guest;
mod host;
pub mod images;
mod model;
mod process;
pub mod progress;
pub mod ssh;
pub mod store;
pub mod testing;
mod util;
mod vm;

pub use disk::extra_disk::{ExtraDisk, ExtraDiskError, MAX_EXTRA_DISKS};
pub use disk::{fixture, seed};
pub use error::{Differing, Error, Result, VmFate};
pub use fleetbox_macros::test;
pub use guest::{proxy, workspace};
pub use host::bridge::BridgeError;
pub use host::preflight::{HostUnsupported, nested_virt_supported};
pub use host::resources::InsufficientResources;
pub use host::{budget, preflight};
pub use model::defaults::{DEFAULT_BOOT_TIMEOUT, DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_MEMORY};
pub use model::event::{Event, TimedEvent};
pub use model::network::{InvalidNetwork, Network};
pub use model::ready::{InvalidReady, Ready};
pub use model::size::Size;
pub use model::stream::Stream;
pub use model::timing::{Phase, Timings};
pub use model::{names, size};
pub use process::ProcessError;
pub use ssh::config as ssh_config;
pub use ssh::{ExitStatus, Output};
pub use util::task::ShuttingDown;
pub use vm::Vm;
pub use vm::builder::VmBuilder;
pub use vm::cluster::{Cluster, ClusterBuilder};
pub use vm::events::Events;
pub use vm::fleet::Fleet;
pub use vm::links::{LinkConditions, LinkEnd};
pub use vm::list::{Resolution, VmInfo, VmState};
pub use vm::logs;
pub use vm::remote::PublishedPort;
pub use vm::resize::Resize;
pub use vm::stop::{STOP_DEADLINE, StopOutcome};

// The attribute expands to paths that begin with `fleetbox`. Tests in this crate use it too.
#[cfg(test)]
extern crate self as fleetbox;
