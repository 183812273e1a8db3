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
//! A [`Cluster`] is several of them in one network.
//!
//! A VM made by [`Vm::test`] lives as long as its handle; one made by [`Vm::builder`] has a name
//! and a disk that stays. [`blocking`] has the same for a plain `#[test]`.
//!
//! The processes that run a VM are this very program, started again: a constructor that runs
//! before `main` makes them of it, so there is nothing to install. A program
//! that links this crate as a dynamic library which it loads at run time cannot use it.
//!
//! # Features
//!
//! A feature that is off costs nothing: its dependencies are not compiled. The types are the same
//! with every choice of features; what needs a missing feature returns an error that names it.
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `download` | yes | downloads of images, by HTTP and HTTPS. Without it, images are local files or in the state directory already; else [`ImageError::DownloadDisabled`](images::ImageError::DownloadDisabled) |
//! | `bridge` | no | [`Network::Bridge`], which joins a cluster to the host's network. Without it, [`BridgeError::Disabled`] |

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
pub use error::{Error, Result, VmFate};
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
pub use vm::remote::Published;
pub use vm::resize::Resize;
pub use vm::stop::{STOP_DEADLINE, Stopped};

// The expansion of the attribute, which tests in here use too, names the crate.
#[cfg(test)]
extern crate self as fleetbox;
